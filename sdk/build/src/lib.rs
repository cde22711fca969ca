//! Turns a Rust crate into a machine: a WebAssembly component of the world `conclave:fsm/machine`.
//!
//! Two steps: cargo compiles the crate's `cdylib` for `wasm32-unknown-unknown` ([`toolchain`] finds a
//! compiler that can), and the core module becomes a component (`component`), checked for imports
//! that no host would grant. Core modules of other toolchains become one, too ([`adapt()`]). The crate is used by build scripts, by the project's own commands and by
//! the command line, so it depends on little and prints nothing: progress goes to a callback.
//!
//! # Environment
//!
//! `CONCLAVE_WASM_COMPILER=rustup|debian` chooses a compiler instead of taking the first that is
//! there. Every other variable that steers cargo is taken away from the inner build: it runs for
//! another target than the build script that started it, and under `cargo clippy` the outer one is
//! not even a compiler.

mod adapt;
mod compile;
mod component;
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

/// The target that machines compile for. It has no imports of its own.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// The cargo profile that machines compile with. A workspace may define its own `[profile.machine]`;
/// otherwise this crate supplies one.
pub const PROFILE: &str = "machine";

/// What to build, and where to put it.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    /// The directory of the crate's `Cargo.toml`.
    pub manifest_dir: PathBuf,
    /// Cargo's target directory for this build. It must not be one that an outer cargo holds locked;
    /// machines that share one share their dependencies' compiled code.
    pub target_dir: PathBuf,
    /// The component. Its directory is created; the file is written only if its bytes change, so that
    /// what depends on it is not rebuilt for nothing.
    pub output: PathBuf,
}

/// A machine that was built.
#[derive(Clone, Debug)]
pub struct Built {
    /// The component, which is the spec's `output`.
    pub path: PathBuf,
    /// Its size.
    pub size_bytes: u64,
    /// What it imports, such as `conclave:fsm/log@0.1.0`. Nothing that a host would refuse.
    pub imports: Vec<String>,
    /// Whether the file was written, as its bytes were not there already.
    pub changed: bool,
    /// The compiler that was used.
    pub compiler: Compiler,
    /// The files and directories that the component depends on, for `cargo::rerun-if-changed`.
    pub watched: Vec<PathBuf>,
}

/// Compiles a machine and makes it a component. Cargo's own messages go to stderr.
pub fn build_machine(spec: &MachineSpec) -> Result<Built> {
    let compiler = toolchain().compiler()?;
    let module_path = compile::core_module(spec, &compiler)?;
    let module = fs::read(&module_path)
        .with_context(|| format!("cannot read the compiled module {}", module_path.display()))?;
    let component = wrap(&module)
        .with_context(|| format!("{} is not a machine", spec.manifest_dir.display()))?;
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

/// Replaces `path` by rename, so that a reader sees the old component or the new one.
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
        let directory = std::env::temp_dir().join(format!("conclave-build-{}", std::process::id()));
        let path = directory.join("deep/machine.wasm");
        assert!(write_if_changed(&path, b"one").unwrap());
        assert!(!write_if_changed(&path, b"one").unwrap());
        assert!(write_if_changed(&path, b"two").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        fs::remove_dir_all(directory).unwrap();
    }
}
