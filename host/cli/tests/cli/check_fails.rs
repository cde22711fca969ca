//! `conclave check` of a state machine that fails: the output for scripts and for people.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use tempfile::TempDir;

use conclave_testing::components::wrong;

fn conclave_check(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_conclave"));
    command.current_dir(dir).args(["check", "wrong.wasm"]).args(arguments).output().unwrap()
}

#[test]
fn a_failure_says_what_differs_what_to_do_and_with_which_calls() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("wrong.wasm"), wrong(1)).unwrap();
    let arguments = ["--generate", "100", "--save", "smallest.jsonl"];
    let failed = conclave_check(dir.path(), &arguments);
    assert_eq!(failed.status.code(), Some(1));
    let shown = String::from_utf8(failed.stdout).unwrap();
    let remarks = String::from_utf8(failed.stderr).unwrap();
    for part in ["FAILED", "restore failed", "live: ", "restored: ", "to do:", "for --calls"] {
        assert!(shown.contains(part), "{part:?} is not in: {shown}");
    }
    let last = remarks.lines().last().unwrap();
    assert!(last.starts_with("conclave: wrong does not keep the contract: "), "{remarks}");

    let saved = fs::read_to_string(dir.path().join("smallest.jsonl")).unwrap();
    let (remark, calls) = saved.split_once('\n').unwrap();
    assert!(remark.starts_with("# restore: "), "{saved}");
    assert!(!calls.is_empty() && calls.lines().all(|line| shown.contains(line)), "{saved}");
    let again = conclave_check(dir.path(), &["--calls", "smallest.jsonl", "--json"]);
    assert_eq!(again.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(report["ok"], false);
    let checks = report["checks"].as_array().unwrap();
    let restore = checks.iter().find(|check| check["name"] == "restore").unwrap();
    assert_eq!(restore["verdict"], "failed");
    assert_eq!(restore["log"].as_array().unwrap().len(), calls.lines().count());
    assert_eq!(restore["sides"][0]["name"], "live");
    let error: Value = serde_json::from_slice(&again.stderr).unwrap();
    assert_eq!(error["error"]["code"], "FAILED");
}

#[test]
fn the_verb_says_both_components_and_exits_with_1() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("old.wasm"), wrong(0)).unwrap();
    fs::write(dir.path().join("new.wasm"), wrong(22)).unwrap();
    let check = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_conclave"));
        command
            .current_dir(dir.path())
            .args(["check", "--generate", "50"])
            .args(arguments)
            .output()
            .unwrap()
    };
    let failed = check(&["new.wasm", "--from", "old.wasm"]);
    assert_eq!(failed.status.code(), Some(1));
    let shown = String::from_utf8(failed.stdout).unwrap();
    for part in
        ["from wrong ", "to wrong ", "FAILED", "migration failed", "RESTORES", "for --calls"]
    {
        assert!(shown.contains(part), "{part:?} is not in: {shown}");
    }
    let remarks = String::from_utf8(failed.stderr).unwrap();
    assert!(remarks.contains("cannot replace wrong "), "{remarks}");

    let failed = check(&["new.wasm", "--from", "old.wasm", "--json"]);
    let report: Value = serde_json::from_slice(&failed.stdout).unwrap();
    assert_eq!((&report["ok"], &report["from"]["name"]), (&false.into(), &"wrong".into()));
    assert_eq!(report["from"]["state_version"], 1);
    assert_eq!(report["checks"][1]["name"], "migration");
    assert_eq!(report["checks"][1]["verdict"], "failed");
    assert_eq!(report["checks"][1]["log"].as_array().unwrap().len(), 1);
    let passed = check(&["old.wasm", "--from", "old.wasm", "--json"]);
    assert_eq!(passed.status.code(), Some(0), "{passed:?}");
}
