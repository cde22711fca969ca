//! `machine`: builds a machine of this workspace, or any other crate that is one.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use conclave_build::MachineSpec;

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
    let name = directory.file_name().context("a machine needs a directory of its own")?;
    let output = match &options.output {
        Some(output) => output.clone(),
        None => workspace.target.join(name).with_extension("wasm"),
    };
    let built = steps.run("build the machine", || {
        let target_dir = workspace.scratch("machines");
        conclave_build::build_machine(&MachineSpec { manifest_dir: directory, target_dir, output })
    })?;
    say(&format!("{} kB; run it with `cargo xtask dev --data-dir DIR --module FILE`", {
        built.size_bytes / 1_000
    }));
    result(&built.path.display().to_string());
    Ok(())
}
