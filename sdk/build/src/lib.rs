//! Builds a state machine from a Rust crate: a WebAssembly component of the world `conclave:fsm/machine`.
//!
//! The build has two steps. First, cargo compiles the crate's `cdylib` for `wasm32-unknown-unknown`
//! with a suitable compiler, found by [`toolchain`]. Then the core module is converted to a
//! component (`component`) and checked for imports that no host would grant. Core modules of other
//! toolchains are converted by [`adapt()`].
//!
//! Build scripts, the project's own commands and the command line use this crate. It therefore has
//! few dependencies and prints nothing: progress goes to a callback.
//!
//! # Environment
//!
//! `CONCLAVE_WASM_COMPILER=rustup|debian` selects a compiler instead of the first one available.
//! All other variables that influence cargo are removed from the inner build. It has another target
//! than the build script that started it. Under `cargo clippy`, the outer compiler is not a
//! compiler at all.

mod adapt;
mod compile;
mod component;
mod environment;
mod provision;
mod sources;
mod toolchain;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

pub use adapt::adapt;
pub use component::{Component, imports, wrap};
pub use provision::provision;
pub use sources::watched_paths;
pub use toolchain::{COMPILER_VARIABLE, Compiler, Toolchain, toolchain};

/// The compilation target for state machines. The target itself adds no imports.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// The cargo profile for state machines. A workspace may define its own `[profile.machine]`;
/// otherwise this crate supplies one.
pub const PROFILE: &str = "machine";

/// The input and output paths of a build.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    /// The directory of the crate's `Cargo.toml`.
    pub manifest_dir: PathBuf,
    /// Cargo's target directory for this build. It must not be one that an outer cargo has locked.
    /// State machines with a common target directory share the compiled code of their dependencies.
    pub target_dir: PathBuf,
    /// The path of the component. Its directory is created. The file is written only if its bytes
    /// change, to avoid needless rebuilds of dependent targets.
    pub output: PathBuf,
}

/// The result of a build.
#[derive(Clone, Debug)]
pub struct Built {
    /// The path of the component, which is the spec's `output`.
    pub path: PathBuf,
    /// The size of the component.
    pub size_bytes: u64,
    /// The imports of the component, such as `conclave:fsm/log@0.1.0`. A host accepts all of them.
    pub imports: Vec<String>,
    /// Whether the file was written because its bytes changed.
    pub changed: bool,
    /// The compiler that was used.
    pub compiler: Compiler,
    /// The files and directories that the component depends on, for `cargo::rerun-if-changed`.
    pub watched: Vec<PathBuf>,
}

/// Compiles a state machine and converts it to a component. Cargo's own messages go to stderr.
pub fn build_machine(spec: &MachineSpec) -> Result<Built> {
    let compiler = toolchain().compiler()?;
    let module_path = compile::core_module(spec, &compiler)?;
    let module = fs::read(&module_path)
        .with_context(|| format!("cannot read the compiled module {}", module_path.display()))?;
    let component = wrap(&module)
        .with_context(|| format!("{} is not a state machine", spec.manifest_dir.display()))?;
    let changed = write_if_changed(&spec.output, &component.bytes)?;
    Ok(Built {
        path: spec.output.clone(),
        size_bytes: component.bytes.len() as u64,
        imports: component.imports,
        changed,
        compiler,
        watched: watched_paths(&spec.manifest_dir)?,
    })
}

/// Writes `bytes` to `path` unless the file has them already. Replaces the file by a rename, so
/// that a reader sees either the old component or the new one.
pub fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_are_not_written_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/machine.wasm");
        assert!(write_if_changed(&path, b"one").unwrap());
        assert!(!write_if_changed(&path, b"one").unwrap());
        assert!(write_if_changed(&path, b"two").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
    }
}
