//! The source files of a state machine.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::compile;

/// Returns the files and directories that the component of the crate in `manifest_dir` depends on,
/// for `cargo::rerun-if-changed`: those of the crate and of its path dependencies, the contract,
/// and the lock file.
pub fn watched_paths(manifest_dir: &Path) -> Result<Vec<PathBuf>> {
    let metadata = compile::metadata(manifest_dir)?;
    let mut paths = BTreeSet::new();
    for directory in local_packages(&metadata, manifest_dir)? {
        // Watch named directories, not the whole crate, which may contain a target directory or
        // unrelated files. A missing path would make cargo rerun the build script each time.
        for name in ["Cargo.toml", "build.rs", "src", "proto", "../wit"] {
            let path = directory.join(name);
            if path.exists() {
                paths.insert(path.canonicalize()?);
            }
        }
    }
    if let Some(root) = metadata["workspace_root"].as_str() {
        for name in ["Cargo.lock", "Cargo.toml"] {
            let path = Path::new(root).join(name);
            if path.exists() {
                paths.insert(path);
            }
        }
    }
    Ok(paths.into_iter().collect())
}

/// Returns the directories of the crate and of its path dependencies.
fn local_packages(metadata: &Value, manifest_dir: &Path) -> Result<BTreeSet<PathBuf>> {
    let own = manifest_dir.join("Cargo.toml");
    let own = fs::canonicalize(&own).with_context(|| format!("no {}", own.display()))?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let manifest_of = |package: &Value| package["manifest_path"].as_str().map(PathBuf::from);

    // The metadata gives the directory of each path dependency. Walk them from the crate itself.
    let mut found = BTreeSet::new();
    let mut queue = vec![own];
    while let Some(manifest) = queue.pop() {
        let Some(directory) = manifest.parent() else { continue };
        if !found.insert(directory.to_owned()) {
            continue;
        }
        let package =
            packages.iter().find(|package| manifest_of(package).as_ref() == Some(&manifest));
        let dependencies = package.and_then(|package| package["dependencies"].as_array());
        for dependency in dependencies.into_iter().flatten() {
            // A dev-dependency is not part of the component.
            if dependency["kind"] == "dev" {
                continue;
            }
            if let Some(path) = dependency["path"].as_str() {
                queue.push(Path::new(path).join("Cargo.toml"));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_depends_on_the_sdk_and_the_contract() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
        let watched = watched_paths(&root.join("guest-kv")).unwrap();
        for path in ["guest-kv/src", "guest-kv/proto", "sdk/src", "wit", "Cargo.lock"] {
            assert!(watched.contains(&root.join(path)), "{path} is not in {watched:?}");
        }
        assert!(watched.iter().all(|path| path.exists()));
        assert!(!watched.contains(&root.join("host/machine/src")));
    }
}
