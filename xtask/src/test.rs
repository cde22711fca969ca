//! `test`: the whole suite.

use anyhow::Result;
use clap::Args;

use crate::{
    docker,
    output::{Steps, skip},
    process,
    setup::{self, TestTools},
    workspace::{Workspace, cargo},
};

#[derive(Args)]
pub(crate) struct Options {
    /// Only tests whose name holds this. Leaves out the image.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Leave out the image and the compose cluster.
    #[arg(long)]
    no_docker: bool,
    /// For the test programs, after `--`: such as `--nocapture` or `--ignored`.
    #[arg(last = true, value_name = "ARGUMENTS")]
    rest: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options, steps: &mut Steps) -> Result<()> {
    let tools = setup::everything(workspace, steps)?;
    // The binary comes along. Building it by itself would choose other features for some libraries,
    // and compile wasmtime twice.
    steps.run("build the tests (wasmtime takes several minutes, once)", || {
        process::run(cargo_test(workspace, &tools).arg("--no-run"))
    })?;
    steps.run("run the tests", || {
        let mut test = cargo_test(workspace, &tools);
        test.arg("--no-fail-fast").args(&options.filter);
        process::run(test.arg("--").args(&options.rest))
    })?;
    if options.filter.is_some() {
        skip("the image and the compose cluster", "only some tests were asked for");
        return Ok(());
    }
    if options.no_docker {
        skip("the image and the compose cluster", "--no-docker");
        return Ok(());
    }
    docker::test(workspace, &workspace.binary(false), steps)
}

fn cargo_test(workspace: &Workspace, tools: &TestTools) -> std::process::Command {
    let mut command = cargo();
    command.current_dir(&workspace.root).args(["test", "--workspace"]);
    if let Some(python) = &tools.python {
        command.env("CONCLAVE_TEST_PYTHON", python);
    }
    command
}
