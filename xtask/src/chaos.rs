//! `chaos`: tests clusters under random faults, with this tree or with a copy that has a planted bug.

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
    process::{self, Streamed},
    setup,
    workspace::{Workspace, cargo},
};

/// The directory of the patches that plant bugs.
const PLANTED: &str = "host/testing/planted";
/// The prefix of a patch's first line if its bug is found by a test of the suite `it`, not by
/// random schedules.
const STORY: &str = "Found by: it ";
/// The text that `host/testing/src/bin/chaos.rs` prints in the line of a run that violates an invariant.
const VIOLATION: &str = ": VIOLATION: ";
/// The exit status of that program after such a run. An error of the program itself has another status.
const VIOLATED: i32 = 1;

#[derive(Args)]
pub(crate) struct Options {
    /// Time in minutes during which new runs are started
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Seed of the first run; later runs use the following numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of nodes: 3 or 5. Default: 3, and 5 in every fourth run
    #[arg(long)]
    nodes: Option<u64>,
    /// Test a copy of this tree with the bug planted by host/testing/planted/NAME.patch. Succeeds if
    /// the bug is found: by random schedules, or by the test named in the first line of the patch
    #[arg(long, value_name = "NAME")]
    planted: Option<String>,
    /// Arguments for the program of the runs, after `--`, such as `--schedule FILE` or `--keep-going`
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
    let story = story(workspace, name)?;
    let binary =
        steps.run("build a copy with the planted bug", || planted_binary(workspace, name))?;
    if let Some(test) = story {
        return look_by_story(workspace, name, &test, &binary, steps);
    }
    let mut runs = runs(options, &chaos, &binary, &output.join(name));
    steps.run("look for the planted bug", || {
        let Streamed { status, lines } = process::stream(&mut runs)?;
        if finds_violation(status.code(), &lines)? {
            say(&format!("the planted bug {name} was found"));
            return Ok(());
        }
        bail!("the planted bug {name} was not found in {} minutes", options.minutes)
    })
}

/// Returns the test that finds a planted bug, if its patch names one.
fn story(workspace: &Workspace, name: &str) -> Result<Option<String>> {
    let patch = workspace.root.join(PLANTED).join(format!("{name}.patch"));
    if !patch.is_file() {
        bail!(
            "there is no {}; available patches: {}",
            patch.display(),
            names(workspace)?.join(", ")
        );
    }
    let patch =
        fs::read_to_string(&patch).with_context(|| format!("cannot read {}", patch.display()))?;
    story_of(&patch)
}

/// Returns the test named in the first line of a patch, if any.
fn story_of(patch: &str) -> Result<Option<String>> {
    let first = patch.lines().next().unwrap_or_default();
    let Some(test) = first.strip_prefix(STORY) else {
        // Otherwise random schedules would search for this bug, but they do not find it.
        anyhow::ensure!(
            !first.starts_with("Found by"),
            "the first line of the patch is `{first}`: write `{STORY}MODULE::TEST`"
        );
        return Ok(None);
    };
    let test = test.trim();
    let is_name = test.contains("::") && !test.contains(char::is_whitespace);
    anyhow::ensure!(
        is_name,
        "`{test}` is not the full name of a test: write `{STORY}MODULE::TEST`"
    );
    Ok(Some(test.to_owned()))
}

/// Returns whether a program of random schedules found a violation, from its exit status and output.
///
/// # Errors
/// If the program did not judge its runs, for example because a cluster could not be started.
fn finds_violation(code: Option<i32>, lines: &[String]) -> Result<bool> {
    let reported = lines.iter().any(|line| line.starts_with("seed ") && line.contains(VIOLATION));
    match (code, reported) {
        (Some(0), false) => Ok(false),
        (Some(VIOLATED), true) => Ok(true),
        (code, _) => bail!(
            "the program of the runs ended with status {code:?} and reported {} violation; the bug is neither \
             found nor ruled out",
            if reported { "a" } else { "no" }
        ),
    }
}

/// The result of one test, from the output of its test program.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
    /// The output has no result of this test: for example, no test has this name, or it did not compile.
    Absent,
}

/// Returns the verdict on the test of this name. Results of other tests are ignored.
fn verdict(test: &str, lines: &[String]) -> Verdict {
    let results = lines.iter().filter_map(|line| line.strip_prefix("test ")?.strip_prefix(test));
    for result in results {
        match result.trim_end() {
            " ... ok" => return Verdict::Passed,
            " ... FAILED" => return Verdict::Failed,
            _ => {}
        }
    }
    Verdict::Absent
}

/// Runs one test of this tree. It must pass with the binary of this tree and fail with that of the
/// planted bug.
fn look_by_story(
    workspace: &Workspace,
    name: &str,
    test: &str,
    planted: &Path,
    steps: &mut Steps,
) -> Result<()> {
    let story = |binary: &Path| {
        let mut story = cargo();
        story.current_dir(&workspace.root).args(["test", "--workspace", "--test", "it"]);
        story.env("CONCLAVE_BINARY", binary);
        story
    };
    let sound = workspace.binary(false);
    steps.run("build the tests", || process::run(story(&sound).arg("--no-run")))?;
    let judge = |binary: &Path| -> Result<Verdict> {
        let mut story = story(binary);
        let Streamed { lines, .. } = process::stream(story.args(["--", "--exact", test]))?;
        Ok(verdict(test, &lines))
    };
    steps.run("run the test without the planted bug", || match judge(&sound)? {
        Verdict::Passed => Ok(()),
        Verdict::Failed => bail!("{test} fails without the bug, so it cannot detect the bug"),
        Verdict::Absent => bail!("there is no result of {test}: check that the test exists"),
    })?;
    steps.run("look for the planted bug", || match judge(planted)? {
        Verdict::Failed => {
            say(&format!("the planted bug {name} was found by {test}"));
            Ok(())
        }
        Verdict::Passed => bail!("the planted bug {name} was not found by {test}"),
        Verdict::Absent => bail!("there is no result of {test}: the test did not finish"),
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

/// Copies the tree with its uncommitted changes, applies the patch, and builds the copy in a
/// separate target directory, which all planted bugs share.
fn planted_binary(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    let patch = workspace.root.join(PLANTED).join(format!("{name}.patch"));
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
        // A file that was removed can still be in git's index.
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

/// Copies the compiled libraries, which are the same. This saves a compilation of wasmtime.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn bug_is_found_by_the_failure_of_the_named_test_only() {
        let test = "network::old_copy";
        let of = |output| verdict(test, &lines(output));
        assert_eq!(of("running 1 test\ntest network::old_copy ... FAILED\n"), Verdict::Failed);
        assert_eq!(of("test network::old_copy ... ok"), Verdict::Passed);
        assert_eq!(of("test network::old_copy_is_refused ... FAILED"), Verdict::Absent);
        assert_eq!(of("test other::network::old_copy ... FAILED"), Verdict::Absent);
        assert_eq!(of("test network::old_copy ... ignored"), Verdict::Absent);
        assert_eq!(of("running 0 tests\ntest result: ok. 0 passed"), Verdict::Absent);
        assert_eq!(of("error[E0425]: cannot find value\ntest result: FAILED"), Verdict::Absent);
        assert_eq!(
            of("test chaos::any ... FAILED\ntest network::old_copy ... ok"),
            Verdict::Passed,
            "another test failed"
        );
    }

    #[test]
    fn bug_is_found_by_a_reported_violation_and_not_by_an_error() {
        let violation =
            lines("skipped: disks\nseed 3, 3 nodes, 21 s: VIOLATION: 9 operations [pause]");
        let sound = lines("seed 3, 3 nodes, 21 s: ok: 9 operations [pause]");
        let error = lines("error: the run with seed 3 could not be made: VIOLATION: none");
        assert!(finds_violation(Some(1), &violation).unwrap());
        assert!(!finds_violation(Some(0), &sound).unwrap());
        for (code, lines) in [
            (Some(1), &sound),
            (Some(1), &error),
            (Some(2), &error),
            (Some(2), &violation),
            (Some(101), &sound),
            (None, &sound),
        ] {
            assert!(finds_violation(code, lines).is_err(), "{code:?} {lines:?}");
        }
    }

    #[test]
    fn first_line_of_a_patch_names_the_test() {
        let name = |patch| story_of(patch).unwrap();
        assert_eq!(
            name("Found by: it cuts::story \ndiff --git a b"),
            Some("cuts::story".to_owned())
        );
        assert_eq!(name("diff --git a b\nFound by: it cuts::story"), None);
        assert_eq!(name(""), None);
        for wrong in [
            "Found by it cuts::story",
            "Found by: store log::reads",
            "Found by: it ",
            "Found by: it cuts",
        ] {
            assert!(story_of(wrong).is_err(), "{wrong}");
        }
    }

    /// A wrong test name would otherwise be noticed only when the bug is searched for.
    #[test]
    fn every_planted_bug_is_found_by_a_test_that_exists_or_by_schedules() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for entry in fs::read_dir(root.join(PLANTED)).unwrap() {
            let path = entry.unwrap().path();
            let Some(test) = story_of(&fs::read_to_string(&path).unwrap()).unwrap() else {
                continue;
            };
            let (component, function) = test.split_once("::").unwrap();
            let source =
                fs::read_to_string(root.join(format!("host/cli/tests/it/{component}.rs"))).unwrap();
            assert!(
                source.contains(&format!("async fn {function}()")),
                "{}: {test}",
                path.display()
            );
        }
    }
}
