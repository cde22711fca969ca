//! `hostile`: hostile clients beside ordinary ones. The program that runs them is of `conclave-testing`.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::{build, output::Steps, process, setup, workspace::Workspace};

#[derive(Args)]
pub(crate) struct Options {
    /// How long the attacks take, in minutes.
    #[arg(long, default_value_t = 60.0)]
    minutes: f64,
    /// Use a release build. It compiles wasmtime once more.
    #[arg(long)]
    release: bool,
    /// For the program that makes the run, after `--`: such as `--clients 16` or `--seed 7`.
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
