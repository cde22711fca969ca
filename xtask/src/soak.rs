//! `soak`: runs a cluster under a steady load for a long time, with a program of `conclave-testing`.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    build,
    output::{Steps, say},
    process, setup,
    workspace::Workspace,
};

/// Shorter runs are not conclusive enough for `docs/`.
const MINUTES_RECORDED_MIN: f64 = 60.0;
const PLOT: &str = "soak.svg";
const PAGE: &str = "soak.md";

#[derive(Args)]
pub(crate) struct Options {
    /// Duration of the load in minutes. A successful run of 60 minutes or more is written to docs/
    #[arg(long, default_value_t = 60.0)]
    minutes: f64,
    /// Number of puts and deletes per second
    #[arg(long)]
    writes: Option<u64>,
    /// Use a release build. Compiles wasmtime a second time
    #[arg(long)]
    release: bool,
    /// Arguments for the program of the run, after `--`, such as `--keys 100000` or `--data DIR`
    #[arg(last = true, value_name = "ARGUMENTS")]
    rest: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options, steps: &mut Steps) -> Result<()> {
    setup::compiler(steps)?;
    steps.run("build the binary and the load", || {
        let mut build = build::build_programs(workspace, options.release);
        process::run(build.args(["--bin", "soak"]))
    })?;
    let output = workspace.scratch("soak");
    fs::create_dir_all(&output).with_context(|| format!("cannot create {}", output.display()))?;
    // A build during the run would replace the programs, whose versions the page names.
    let programs = ["conclave", "soak"].map(|name| output.join(name));
    for program in &programs {
        let built = workspace
            .binary(options.release)
            .with_file_name(program.file_name().context("a program without a name")?);
        copy(&built, program)?;
    }
    let [binary, soak] = programs;
    steps.run("run a cluster under load", || {
        let mut run = Command::new(soak);
        run.arg("--binary").arg(binary).arg("--output").arg(&output);
        run.args(["--minutes", &options.minutes.to_string()]);
        run.args(["--build", if options.release { "(release build)" } else { "(dev build)" }]);
        run.args(["--revision", &revision(workspace), "--date", &date()]);
        if let Some(writes) = options.writes {
            run.args(["--writes", &writes.to_string()]);
        }
        process::run(run.args(&options.rest))
    })?;
    if options.minutes >= MINUTES_RECORDED_MIN {
        for name in [PLOT, PAGE] {
            copy(&output.join(name), &workspace.root.join("docs").join(name))?;
        }
        say("docs/soak.md and docs/soak.svg are new: commit them");
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    // A running program cannot be overwritten, but it can be removed.
    let _ = fs::remove_file(to);
    fs::copy(from, to).map(drop).with_context(|| format!("cannot copy {}", from.display()))
}

/// Returns the commit for the page, or `unknown` without git.
fn revision(workspace: &Workspace) -> String {
    let mut describe = Command::new("git");
    describe.current_dir(&workspace.root).args(["describe", "--always", "--dirty"]);
    process::capture(&mut describe).map_or("unknown".to_owned(), |text| text.trim().to_owned())
}

fn date() -> String {
    let mut date = Command::new("date");
    process::capture(date.arg("+%Y-%m-%d")).map_or(String::new(), |text| text.trim().to_owned())
}
