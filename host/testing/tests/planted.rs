//! Checks that the patches of planted bugs apply to the current tree. `cargo xtask chaos --planted
//! NAME` needs them.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests fail by panicking and print skipped parts"
)]

use std::{fs, path::Path, process::Command};

#[test]
fn every_planted_bug_applies_to_the_tree() {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = crate_dir.join("../..");
    if Command::new("git").arg("--version").output().is_err() {
        eprintln!("skipped: planted bugs: git is not installed");
        return;
    }
    let mut count = 0;
    for entry in fs::read_dir(crate_dir.join("planted")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "patch") {
            continue;
        }
        let mut check = Command::new("git");
        let checked =
            check.current_dir(&root).args(["apply", "--check"]).arg(&path).output().unwrap();
        assert!(
            checked.status.success(),
            "{} does not apply any more: adapt it to the changed code, or remove it together with its entry in \
             host/testing/README.md\n{}",
            path.display(),
            String::from_utf8_lossy(&checked.stderr)
        );
        count += 1;
    }
    assert!(count > 0, "there are no planted bugs");
}
