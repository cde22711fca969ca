//! `machine`: builds the component of a state machine, in this workspace or elsewhere.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use conclave_build::{Built, MachineSpec};

use crate::{
    output::{Steps, result, say},
    setup,
    workspace::Workspace,
};

#[derive(Args)]
pub(crate) struct Options {
    /// Directory of the state machine's crate, such as examples/counter
    directory: PathBuf,
    /// Path of the component [default: target/NAME.wasm]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options, steps: &mut Steps) -> Result<()> {
    setup::compiler(steps)?;
    let directory = options
        .directory
        .canonicalize()
        .with_context(|| format!("cannot find {}", options.directory.display()))?;
    let built = steps
        .run("build the component", || build(workspace, &directory, options.output.clone()))?;
    say(&format!("{} kB; run it with `cargo xtask dev --data-dir DIR --component FILE`", {
        built.size_bytes / 1_000
    }));
    result(&built.path.display().to_string());
    Ok(())
}

/// Builds the component of a crate, by default to target/NAME.wasm.
pub(crate) fn build(
    workspace: &Workspace,
    directory: &Path,
    output: Option<PathBuf>,
) -> Result<Built> {
    let name = directory.file_name().context("the crate's directory has no name")?;
    let output = output.unwrap_or_else(|| workspace.target.join(name).with_extension("wasm"));
    conclave_build::build_machine(&MachineSpec {
        manifest_dir: directory.to_owned(),
        target_dir: workspace.scratch("machines"),
        output,
    })
}
