//! Build script: compiles the default state machine and gathers the SDK's files. The binary
//! contains both.
use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use conclave_build::MachineSpec;

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    default_machine(&out)?;
    sdk(&out)
}

/// Compiles `guest-kv` to `OUT_DIR/kv.wasm`. All profiles share one target directory beside this
/// build's, because the component is the same in each profile.
fn default_machine(out: &Path) -> Result<(), Box<dyn Error>> {
    let target_dir = out.ancestors().nth(4).ok_or("OUT_DIR is not inside a target directory")?;
    let manifest_dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let built = conclave_build::build_machine(&MachineSpec {
        manifest_dir: manifest_dir.join("../../guest-kv"),
        target_dir: target_dir.join("machines"),
        output: out.join("kv.wasm"),
    })?;
    println!("cargo::rerun-if-env-changed={}", conclave_build::COMPILER_VARIABLE);
    for path in built.watched {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    Ok(())
}

/// Paths in this repository of the SDK files that `conclave new` writes into a Rust project.
const RUST_SDK: [&str; 6] =
    ["LICENSE", "sdk/Cargo.toml", "sdk/src", "sdk/protobuf/Cargo.toml", "sdk/protobuf/src", "wit"];
/// The same for a Python project.
const PYTHON_SDK: [&str; 3] = ["LICENSE", "sdk/python/conclave_sdk", "wit"];

/// Writes `OUT_DIR/rust_sdk.rs` and `python_sdk.rs`: lists of files with their contents. Paths and
/// contents are those of this repository, except for the manifest of the SDK's workspace.
fn sdk(out: &Path) -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../..").canonicalize()?;
    let manifest = out.join("sdk_workspace.toml");
    fs::write(&manifest, sdk_workspace(&root)?)?;
    let mut rust = gather(&root, &RUST_SDK)?;
    rust.push(("Cargo.toml".into(), manifest));
    for (list, files) in [("rust_sdk.rs", rust), ("python_sdk.rs", gather(&root, &PYTHON_SDK)?)] {
        let line = |(place, file)| format!("    ({place:?}, include_str!({file:?})),\n");
        let lines: String = files.into_iter().map(line).collect();
        fs::write(out.join(list), format!("[\n{lines}]\n"))?;
    }
    Ok(())
}

/// Returns the files under these paths: each path in the repository with its location on disk.
fn gather(root: &Path, places: &[&str]) -> Result<Vec<(PathBuf, PathBuf)>, Box<dyn Error>> {
    let mut files = Vec::new();
    let mut queue: Vec<_> = places.iter().map(|place| root.join(place)).collect();
    for place in &queue {
        println!("cargo::rerun-if-changed={}", place.display());
    }
    while let Some(path) = queue.pop() {
        if path.is_file() {
            files.push((path.strip_prefix(root)?.to_owned(), path));
        } else if path.file_name().is_some_and(|name| name != "__pycache__") {
            for entry in fs::read_dir(path)? {
                queue.push(entry?.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Builds the manifest from which the SDK's crates inherit: this workspace's, reduced to the parts
/// that they use.
fn sdk_workspace(root: &Path) -> Result<String, Box<dyn Error>> {
    const MEMBERS: [&str; 2] = ["sdk", "sdk/protobuf"];
    let manifest = root.join("Cargo.toml");
    println!("cargo::rerun-if-changed={}", manifest.display());
    let mut workspace: toml::Table = fs::read_to_string(manifest)?.parse()?;
    workspace.retain(|name, _| name == "workspace");
    let table = workspace["workspace"].as_table_mut().ok_or("the root is not a workspace")?;
    table.insert("members".to_owned(), MEMBERS.to_vec().into());
    table.remove("default-members");
    let mut used = Vec::new();
    for member in MEMBERS {
        let member: toml::Table =
            fs::read_to_string(root.join(member).join("Cargo.toml"))?.parse()?;
        // Cargo also reads dev-dependencies, although it fetches none of them.
        for table in ["dependencies", "dev-dependencies"] {
            let dependencies = member.get(table).and_then(toml::Value::as_table);
            used.extend(dependencies.into_iter().flat_map(|table| table.keys().cloned()));
        }
    }
    let dependencies = table["dependencies"].as_table_mut().ok_or("no dependencies")?;
    dependencies.retain(|name, _| used.iter().any(|used| used == name));
    Ok(toml::to_string(&workspace)?)
}
