//! Project template for Rust.

use super::{File, Name};

/// The files of the SDK's crates and of the contract, gathered from this repository by `build.rs`.
const SDK: &[(&str, &str)] = &include!(concat!(env!("OUT_DIR"), "/rust_sdk.rs"));

const TEMPLATE: [(&str, &str); 8] = [
    (".gitignore", include_str!("../../../../sdk/templates/rust/gitignore")),
    ("Cargo.toml", include_str!("../../../../sdk/templates/rust/Cargo.toml")),
    ("README.md", include_str!("../../../../sdk/templates/rust/README.md")),
    ("rustfmt.toml", include_str!("../../../../sdk/templates/rust/rustfmt.toml")),
    ("build.rs", include_str!("../../../../sdk/templates/rust/build.rs")),
    (
        "proto/my_machine/v1/my_machine.proto",
        include_str!("../../../../sdk/templates/rust/proto/my_machine/v1/my_machine.proto"),
    ),
    ("src/lib.rs", include_str!("../../../../sdk/templates/rust/src/lib.rs")),
    ("tests/contract.rs", include_str!("../../../../sdk/templates/rust/tests/contract.rs")),
];

/// Returns the project's files.
pub(super) fn project(name: &Name) -> Vec<File> {
    let own = TEMPLATE.iter().map(|(path, text)| {
        let text = text.replace("SDK_VERSION", env!("CARGO_PKG_VERSION"));
        (name.instead_of_the_templates(path), name.instead_of_the_templates(&text))
    });
    let lints = include_str!("../../../../sdk/clippy.toml");
    let lints = [("clippy.toml".to_owned(), lints.to_owned())];
    let sdk = SDK.iter().map(|(path, text)| (format!("vendor/{path}"), (*text).to_owned()));
    own.chain(lints).chain(sdk).collect()
}

/// Returns the next commands for the user.
pub(super) fn commands(name: &Name) -> [String; 3] {
    [
        "cargo test".to_owned(),
        "conclave build".to_owned(),
        format!("conclave dev --component target/{}.wasm --watch", name.kebab()),
    ]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn manifest(files: &[File], path: &str) -> toml::Table {
        let (_, text) = files.iter().find(|(file, _)| file == path).unwrap();
        text.parse().unwrap()
    }

    #[test]
    fn a_project_has_its_own_name_everywhere() {
        let files = project(&Name::of(Path::new("my-lock")).unwrap());
        assert!(files.iter().any(|(path, _)| path == "proto/my_lock/v1/my_lock.proto"));
        for (path, text) in &files {
            for template in ["my-machine", "my_machine", "MyMachine", "SDK_VERSION"] {
                // The SDK's own documentation may mention a state machine of its reader.
                let own = !path.starts_with("vendor/");
                assert!(!(own && text.contains(template)), "{path} says {template}");
            }
        }
    }

    #[test]
    fn a_project_brings_what_its_sdk_needs_and_uses_the_same_prost() {
        let files = project(&Name::of(Path::new("my-lock")).unwrap());
        let (own, vendor) = (manifest(&files, "Cargo.toml"), manifest(&files, "vendor/Cargo.toml"));
        assert_eq!(own["dependencies"]["prost"], vendor["workspace"]["dependencies"]["prost"]);
        for member in vendor["workspace"]["members"].as_array().unwrap() {
            manifest(&files, &format!("vendor/{}/Cargo.toml", member.as_str().unwrap()));
        }
        for path in ["vendor/wit/fsm.wit", "vendor/LICENSE", "vendor/sdk/src/testing/mod.rs"] {
            assert!(files.iter().any(|(file, _)| file == path), "{path}");
        }
        let lints = "std::collections::HashMap";
        assert!(files.iter().any(|(file, text)| file == "clippy.toml" && text.contains(lints)));
    }
}
