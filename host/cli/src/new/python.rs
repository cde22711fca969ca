//! Project template for Python.

use super::{File, Name};

/// The files of the SDK's package and of the contract, gathered from this repository by `build.rs`.
const SDK: &[(&str, &str)] = &include!(concat!(env!("OUT_DIR"), "/python_sdk.rs"));

const TEMPLATE: [(&str, &str); 7] = [
    (".gitignore", include_str!("../../../../sdk/templates/python/gitignore")),
    ("README.md", include_str!("../../../../sdk/templates/python/README.md")),
    ("machine.py", include_str!("../../../../sdk/templates/python/machine.py")),
    (
        "proto/my_machine/v1/my_machine.proto",
        include_str!("../../../../sdk/templates/rust/proto/my_machine/v1/my_machine.proto"),
    ),
    ("pyproject.toml", include_str!("../../../../sdk/templates/python/pyproject.toml")),
    ("tests/__init__.py", ""),
    (
        "tests/test_contract.py",
        include_str!("../../../../sdk/templates/python/tests/test_contract.py"),
    ),
];

/// Returns the package `conclave_sdk`, which contains the contract so that the two stay together.
pub(crate) fn sdk() -> impl Iterator<Item = File> {
    SDK.iter().map(|(path, text)| {
        let path = match path.strip_prefix("sdk/python/") {
            Some(path) => path.to_owned(),
            None => format!("conclave_sdk/{path}"),
        };
        (path, (*text).to_owned())
    })
}

/// Returns the project's files, except the descriptor set, which is compiled from its protobuf.
pub(super) fn project(name: &Name) -> Vec<File> {
    let own = TEMPLATE.iter().map(|(path, text)| {
        (name.instead_of_the_templates(path), name.instead_of_the_templates(text))
    });
    own.chain(sdk()).collect()
}

/// Returns the next commands for the user.
pub(super) fn commands(name: &Name) -> [String; 3] {
    [
        "conclave build".to_owned(),
        "PYTHONPATH=target/python/packages python3 -m unittest".to_owned(),
        format!("conclave dev --component target/{}.wasm --watch", name.kebab()),
    ]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_project_has_its_own_name_everywhere_and_brings_the_sdk() {
        let files = project(&Name::of(Path::new("my-lock")).unwrap());
        for (path, text) in &files {
            for template in ["my-machine", "my_machine", "MyMachine"] {
                assert!(!text.contains(template), "{path} says {template}");
            }
        }
        for path in [
            "conclave_sdk/testing.py",
            "conclave_sdk/wit/fsm.wit",
            "conclave_sdk/LICENSE",
            "proto/my_lock/v1/my_lock.proto",
        ] {
            assert!(files.iter().any(|(file, _)| file == path), "{path}");
        }
    }
}
