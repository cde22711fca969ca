//! `test`: runs the whole test suite.
//!
//! The test programs run one after another, as with `cargo test`, but this command starts them
//! directly. The test harness measures the time of each test, which cargo does not pass through.
//! The slowest tests are listed at the end.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::{
    docker,
    output::{Steps, result, say, skip},
    process::{self, Streamed},
    setup::{self, TestTools},
    workspace::{Workspace, cargo},
};

/// The number of slow tests to list.
const SLOWEST: usize = 20;

#[derive(Args)]
pub(crate) struct Options {
    /// Run only tests whose name contains this. Skips the image
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Skip the image and the compose cluster
    #[arg(long)]
    no_docker: bool,
    /// Arguments for the test programs, after `--`, such as `--nocapture` or `--ignored`
    #[arg(last = true, value_name = "ARGUMENTS")]
    rest: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options, steps: &mut Steps) -> Result<()> {
    let tools = setup::everything(workspace, steps)?;
    // This also builds the binary. A separate build would select other features for some libraries
    // and compile wasmtime twice.
    let programs = steps.run("build the tests (wasmtime takes several minutes, once)", || {
        process::run(cargo_test(workspace).arg("--no-run"))?;
        programs(workspace)
    })?;
    steps.run("run the examples in the documentation", || {
        let mut test = cargo_test(workspace);
        test.arg("--doc").arg("--no-fail-fast").args(&options.filter);
        process::run(&mut test)
    })?;
    steps.run("run the tests", || run_programs(&programs, options, &tools))?;
    if options.filter.is_some() {
        skip("the image and the compose cluster", "only some tests were selected");
        return Ok(());
    }
    if options.no_docker {
        skip("the image and the compose cluster", "--no-docker");
        return Ok(());
    }
    docker::test(workspace, &workspace.binary(false), steps)
}

fn cargo_test(workspace: &Workspace) -> Command {
    let mut command = cargo();
    command.current_dir(&workspace.root).args(["test", "--workspace"]);
    command
}

/// A test program.
struct Program {
    /// The package and the target, such as `conclave-cli it`.
    name: String,
    executable: PathBuf,
    /// The directory of its package, in which it runs.
    package: PathBuf,
}

/// Returns the built test programs, in cargo's order.
fn programs(workspace: &Workspace) -> Result<Vec<Program>> {
    let mut list = cargo_test(workspace);
    let messages = process::capture(list.args(["--no-run", "--message-format", "json"]))?;
    messages.lines().filter_map(|line| program(line).transpose()).collect()
}

/// Returns the test program that a message of cargo describes, if any.
fn program(message: &str) -> Result<Option<Program>> {
    let message: Value = serde_json::from_str(message).context("cannot read a message of cargo")?;
    let is_test = message["profile"]["test"].as_bool() == Some(true);
    let Some(executable) = message["executable"].as_str().filter(|_| is_test) else {
        return Ok(None);
    };
    let manifest = PathBuf::from(message["manifest_path"].as_str().unwrap_or_default());
    let package = manifest.parent().context("a package without a folder")?.to_owned();
    let folder = package.file_name().unwrap_or_default().to_string_lossy();
    let name = format!("{folder} {}", message["target"]["name"].as_str().unwrap_or_default());
    Ok(Some(Program { name, executable: executable.into(), package }))
}

/// A test that has run.
#[derive(Debug, PartialEq)]
struct Test {
    name: String,
    seconds: f64,
}

fn run_programs(programs: &[Program], options: &Options, tools: &TestTools) -> Result<()> {
    let (mut failed, mut tests) = (Vec::new(), Vec::new());
    for program in programs {
        let mut run = Command::new(&program.executable);
        run.current_dir(&program.package).args(&options.filter);
        // Test times are unstable. This variable allows them on a stable compiler, and is set only
        // for this program.
        run.env("RUSTC_BOOTSTRAP", "1").args(["-Z", "unstable-options", "--report-time"]);
        run.args(&options.rest);
        if let Some(python) = &tools.python {
            run.env("CONCLAVE_TEST_PYTHON", python);
        }
        let Streamed { status, lines } = process::stream(&mut run)?;
        tests.extend(
            lines
                .iter()
                .filter_map(|line| timed(line))
                .map(|(name, seconds)| Test { name: format!("{} {name}", program.name), seconds }),
        );
        if !status.success() {
            failed.push(format!("{} ({status})", program.name));
        }
    }
    result(&slowest(tests));
    if !failed.is_empty() {
        bail!("some tests failed in these programs: {}", failed.join(", "));
    }
    say("all tests passed");
    Ok(())
}

/// Returns the name and the time in a line of the test harness: `test NAME ... ok <1.234s>`.
fn timed(line: &str) -> Option<(&str, f64)> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let seconds = rest.split_once('<')?.1.strip_suffix("s>")?;
    Some((name, seconds.parse().ok()?))
}

/// Formats the list of the slowest tests.
fn slowest(mut tests: Vec<Test>) -> String {
    tests.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let total: f64 = tests.iter().map(|test| test.seconds).sum();
    let lines = tests.iter().take(SLOWEST);
    let lines = lines.map(|test| format!("{:8.1} s  {}\n", test.seconds, test.name));
    format!(
        "\n{} tests took {total:.0} s in total, some of them in parallel; the slowest:\n{}",
        tests.len(),
        lines.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_harness_are_read() {
        assert_eq!(timed("test a::b ... ok <0.123s>"), Some(("a::b", 0.123)));
        assert_eq!(timed("test a::b ... FAILED <12.000s>"), Some(("a::b", 12.0)));
        assert_eq!(timed("test a::b ... ignored"), None);
        assert_eq!(timed("running 3 tests"), None);
    }

    #[test]
    fn slowest_tests_come_first() {
        let test = |name: &str, seconds| Test { name: name.to_owned(), seconds };
        let text = slowest(vec![test("quick", 0.1), test("slow", 70.25)]);
        let lines: Vec<_> = text.lines().skip(2).map(str::trim).collect();
        assert_eq!(lines, ["70.2 s  slow", "0.1 s  quick"]);
    }
}
