//! `chaos`: clusters under random faults, of this tree or of a copy with a planted bug.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    build,
    output::{Steps, say},
    process, setup,
    workspace::{Workspace, cargo},
};

/// The patches that plant bugs.
const PLANTED: &str = "host/testing/planted";
/// How the first line of a patch begins whose bug is found by a test of the suite `it` and not by random schedules.
const STORY: &str = "Found by: it ";

#[derive(Args)]
pub(crate) struct Options {
    /// How long to begin new runs, in minutes.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// The seed of the first run; the next runs have the numbers after it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The number of nodes: 3 or 5. Default: 3, and 5 in each fourth run.
    #[arg(long)]
    nodes: Option<u64>,
    /// Test a copy of this tree with a bug planted by host/testing/planted/NAME.patch. Succeeds if the bug is found: by
    /// random schedules, or by the test that the first line of the patch names.
    #[arg(long, value_name = "NAME")]
    planted: Option<String>,
    /// For the program that makes the runs, after `--`: such as `--schedule FILE` or `--keep-going`.
    #[arg(last = true, value_name = "ARGUMENTS")]
    rest: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options, steps: &mut Steps) -> Result<()> {
    setup::compiler(steps)?;
    let chaos = workspace.target.join("debug/chaos");
    steps.run("build the binary and the harness", || {
        process::run(build::build_programs(workspace, false).args(["--bin", "chaos"]))
    })?;
    let output = workspace.scratch("chaos");
    let Some(name) = &options.planted else {
        let mut runs = runs(options, &chaos, &workspace.binary(false), &output);
        return steps.run("run clusters under faults", || process::run(&mut runs));
    };
    let binary =
        steps.run("build a copy with the planted bug", || planted_binary(workspace, name))?;
    if let Some(test) = story(workspace, name)? {
        return look_by_story(name, &test, &binary, steps);
    }
    let mut runs = runs(options, &chaos, &binary, &output.join(name));
    steps.run("look for the planted bug", || {
        say(&format!("$ {}", process::command_line(&runs)));
        let status = runs.status().context("cannot start the harness")?;
        match status.code() {
            Some(1) => {
                say(&format!("the planted bug {name} was found"));
                Ok(())
            }
            Some(0) => bail!("the planted bug {name} was not found in {} minutes", options.minutes),
            _ => bail!("the runs failed ({status})"),
        }
    })
}

/// The test that finds a planted bug, if its patch names one.
fn story(workspace: &Workspace, name: &str) -> Result<Option<String>> {
    let patch = workspace.root.join(PLANTED).join(format!("{name}.patch"));
    let patch = fs::read_to_string(&patch).with_context(|| format!("no {}", patch.display()))?;
    let first = patch.lines().next().unwrap_or_default();
    Ok(first.strip_prefix(STORY).map(|test| test.trim().to_owned()))
}

/// Runs one test of this tree against the binary with the planted bug.
fn look_by_story(name: &str, test: &str, binary: &Path, steps: &mut Steps) -> Result<()> {
    let story = || {
        let mut story = cargo();
        story.args(["test", "--workspace", "--test", "it"]).env("CONCLAVE_BINARY", binary);
        story
    };
    steps.run("build the tests", || process::run(story().arg("--no-run")))?;
    steps.run("look for the planted bug", || {
        let mut story = story();
        story.args(["--", test]);
        say(&format!("$ {}", process::command_line(&story)));
        let status = story.status().context("cannot start the test")?;
        anyhow::ensure!(!status.success(), "the planted bug {name} was not found by {test}");
        say(&format!("the planted bug {name} was found by {test}"));
        Ok(())
    })
}

fn runs(options: &Options, chaos: &Path, binary: &Path, output: &Path) -> Command {
    let mut runs = Command::new(chaos);
    runs.arg("--binary").arg(binary).arg("--output").arg(output);
    runs.args(["--minutes", &options.minutes.to_string(), "--seed", &options.seed.to_string()]);
    if let Some(nodes) = options.nodes {
        runs.args(["--nodes", &nodes.to_string()]);
    }
    runs.args(&options.rest);
    runs
}

/// Copies the tree as git has it and as it is changed, applies the patch, and builds that in a target directory of its
/// own, which all planted bugs share.
fn planted_binary(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    let patch = workspace.root.join(PLANTED).join(format!("{name}.patch"));
    if !patch.is_file() {
        bail!("there is no {}; there are: {}", patch.display(), names(workspace)?.join(", "));
    }
    let scratch = workspace.scratch("chaos");
    let (tree, target) = (scratch.join("tree"), scratch.join("target"));
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    }
    fs::create_dir_all(&target)?;
    let mut files = Command::new("git");
    files.current_dir(&workspace.root).args(["ls-files", "--cached", "--others"]);
    for file in process::capture(files.arg("--exclude-standard"))?.lines() {
        let (from, to) = (workspace.root.join(file), tree.join(file));
        // A file that was removed is still in git's index.
        if from.is_file() {
            fs::create_dir_all(to.parent().context("a file without a directory")?)?;
            fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
    }
    let mut apply = Command::new("git");
    apply.current_dir(&tree).env("GIT_CEILING_DIRECTORIES", &scratch);
    process::run(apply.arg("apply").arg(&patch))?;
    if !target.join("debug").exists() {
        share_dependencies(workspace, &target)?;
    }
    let mut build = cargo();
    build.current_dir(&tree).env("CARGO_TARGET_DIR", &target);
    build.args(["build", "--workspace", "--bin", "conclave", "--example", "load"]);
    process::run(&mut build)?;
    Ok(target.join("debug/conclave"))
}

/// The libraries are the same: compiled code of theirs that is there already saves a compilation of wasmtime.
fn share_dependencies(workspace: &Workspace, target: &Path) -> Result<()> {
    let built = workspace.target.join("debug");
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(&built).arg(target);
    process::run(&mut copy)
}

fn names(workspace: &Workspace) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(workspace.root.join(PLANTED))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "patch") {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}
