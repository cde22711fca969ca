//! `machine`: builds a machine of this workspace, or any other crate that is one.

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
    /// The directory of the machine's crate, such as examples/counter.
    directory: PathBuf,
    /// Where the component goes [default: target/NAME.wasm].
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options, steps: &mut Steps) -> Result<()> {
    setup::compiler(steps)?;
    let directory = options
        .directory
        .canonicalize()
        .with_context(|| format!("there is no {}", options.directory.display()))?;
    let built =
        steps.run("build the machine", || build(workspace, &directory, options.output.clone()))?;
    say(&format!("{} kB; run it with `cargo xtask dev --data-dir DIR --component FILE`", {
        built.size_bytes / 1_000
    }));
    result(&built.path.display().to_string());
    Ok(())
}

/// Builds the machine of a crate, to target/NAME.wasm if nowhere else.
pub(crate) fn build(
    workspace: &Workspace,
    directory: &Path,
    output: Option<PathBuf>,
) -> Result<Built> {
    let name = directory.file_name().context("a machine needs a directory of its own")?;
    let output = output.unwrap_or_else(|| workspace.target.join(name).with_extension("wasm"));
    conclave_build::build_machine(&MachineSpec {
        manifest_dir: directory.to_owned(),
        target_dir: workspace.scratch("machines"),
        output,
    })
}
