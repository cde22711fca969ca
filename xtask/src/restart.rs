//! `restart`: measures the duration of a restart, and the time without a standby after a trap, with
//! a program of `conclave-testing`.

use std::{path::PathBuf, process::Command};

use anyhow::Result;
use clap::Args;

use crate::{
    build,
    output::{Steps, skip},
    process, setup,
    workspace::Workspace,
};

#[derive(Args)]
pub(crate) struct Options {
    /// Measure this binary instead of building one, for example of another version
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Use a release build. Compiles wasmtime a second time
    #[arg(long)]
    release: bool,
    /// Arguments for the measuring program, after `--`, such as `--keys 100000` or `--rounds 3`
    #[arg(last = true, value_name = "ARGUMENTS")]
    rest: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options, steps: &mut Steps) -> Result<()> {
    setup::compiler(steps)?;
    steps.run("build the binary and the measuring program", || {
        let mut build = build::build_programs(workspace, options.release);
        process::run(build.args(["--bin", "restart"]))
    })?;
    let built = workspace.binary(options.release);
    let component = workspace.scratch("restart").join("quota.wasm");
    let python = steps.run("build the component in Python", || {
        let mut build = Command::new(&built);
        build.arg("build").arg(workspace.root.join("examples/quota"));
        build.arg("--output").arg(&component);
        build.arg("--target-dir").arg(workspace.scratch("restart"));
        process::run(&mut build).map(|()| true).or_else(|error| {
            skip("restarts with a large component", &format!("{error:#}"));
            Ok(false)
        })
    })?;
    steps.run("measure", || {
        let mut measure = Command::new(built.with_file_name("restart"));
        measure.arg("--binary").arg(options.binary.as_ref().unwrap_or(&built));
        if python {
            measure.arg("--component").arg(&component);
        }
        process::run(measure.args(&options.rest))
    })
}
