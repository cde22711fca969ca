//! Builds the component of `examples/counter`, which the program includes.

use std::{env, path::PathBuf};

use anyhow::Context as _;
use conclave_build::MachineSpec;

fn main() -> anyhow::Result<()> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let manifest_dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    // This must not be the directory that this build has locked. It is below it, so that `cargo
    // clean` removes it too.
    let target_dir = out.ancestors().nth(4).context("OUT_DIR is not inside a target directory")?;
    let built = conclave_build::build_machine(&MachineSpec {
        manifest_dir: manifest_dir.join("../counter"),
        target_dir: target_dir.join("machines"),
        output: out.join("counter.wasm"),
    })?;
    println!("cargo::rerun-if-env-changed={}", conclave_build::COMPILER_VARIABLE);
    for path in built.watched {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    Ok(())
}
