//! `hostile`: runs hostile clients beside ordinary ones, with a program of `conclave-testing`.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::{build, output::Steps, process, setup, workspace::Workspace};

#[derive(Args)]
pub(crate) struct Options {
    /// Duration of the attacks in minutes
    #[arg(long, default_value_t = 60.0)]
    minutes: f64,
    /// Use a release build. Compiles wasmtime a second time
    #[arg(long)]
    release: bool,
    /// Arguments for the program of the run, after `--`, such as `--clients 16` or `--seed 7`
    #[arg(last = true, value_name = "ARGUMENTS")]
    rest: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options, steps: &mut Steps) -> Result<()> {
    setup::compiler(steps)?;
    steps.run("build the binary and the clients", || {
        let mut build = build::build_programs(workspace, options.release);
        process::run(build.args(["--bin", "hostile"]))
    })?;
    let binary = workspace.binary(options.release);
    steps.run("run hostile clients beside ordinary ones", || {
        let mut run = Command::new(binary.with_file_name("hostile"));
        run.arg("--binary").arg(&binary).args(["--minutes", &options.minutes.to_string()]);
        process::run(run.args(&options.rest))
    })
}
