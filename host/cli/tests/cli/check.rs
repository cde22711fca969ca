//! `check` as a process: exit codes, stdout and stderr, and files. The findings, and state machines
//! that fail, are tested in `host/check`.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{code, err, out};

fn check(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_conclave"));
    command.current_dir(dir).arg("check").args(arguments).output().unwrap()
}

fn dir_with_store() -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("kv.wasm"), conclave_cli::DEFAULT_MACHINE).unwrap();
    dir
}

#[test]
fn a_right_machine_passes_for_people_and_for_programs() {
    let dir = dir_with_store();
    let passed = check(dir.path(), &["kv.wasm", "--generate", "60"]);
    assert_eq!(code(&passed), 0, "{}{}", out(&passed), err(&passed));
    let shown = out(&passed);
    assert!(shown.starts_with("kv "), "{shown}");
    assert!(shown.contains("generated with seed 1"), "{shown}");
    for name in conclave_check::names() {
        let line = shown.lines().find(|line| line.split_whitespace().nth(1) == Some(name));
        assert!(line.is_some_and(|line| line.starts_with("ok")), "{name} in {shown}");
    }
    let passed = check(dir.path(), &["--generate", "60", "--seed", "9", "--json"]);
    assert_eq!((code(&passed), err(&passed).as_str()), (0, ""));
    let report: Value = serde_json::from_str(&out(&passed)).unwrap();
    assert_eq!((&report["name"], &report["ok"]), (&"kv".into(), &true.into()));
    assert_eq!(report["calls"]["seed"], 9);
    let checks = report["checks"].as_array().unwrap();
    assert_eq!(checks.len(), conclave_check::names().count());
    assert!(checks.iter().all(|check| check["verdict"] == "ok"), "{report:#}");
}

#[test]
fn calls_come_from_a_file() {
    let dir = dir_with_store();
    let lines = "# two puts\n\
        {\"method\": \"kv.v1.KV/Put\", \"request\": {\"key\": \"a\", \"text\": \"1\"}}\n\n\
        {\"method\": \"kv.v1.KV/Get\", \"request\": {\"key\": \"a\"}}\n";
    fs::write(dir.path().join("calls"), lines).unwrap();
    let passed = check(dir.path(), &["kv.wasm", "--calls", "calls"]);
    assert_eq!(code(&passed), 0, "{}", err(&passed));
    let shown = out(&passed);
    assert!(
        shown.contains("1 commands, 1 queries and 0 ticks, as given; 0 were refused"),
        "{shown}"
    );
}

#[test]
fn what_is_wrong_with_the_arguments_is_wrong_usage() {
    let dir = dir_with_store();
    fs::write(dir.path().join("bad"), "\n{\"method\": \"kv.v1.KV/Put\", \"request\": {\"k\": 1}}")
        .unwrap();
    fs::write(dir.path().join("none"), "# nothing\n").unwrap();
    for (arguments, why) in [
        (&["kv.wasm", "--calls", "bad"][..], "bad: line 2: `request`"),
        (&["kv.wasm", "--calls", "none"], "none: there are no calls"),
        (&["kv.wasm", "--calls", "bad", "--seed", "2"], "cannot be used with"),
        (&["kv.wasm", "--generate", "0"], "--generate"),
        (&["kv.wasm", "--skip", "everything"], "no check everything"),
    ] {
        let refused = check(dir.path(), arguments);
        assert_eq!(code(&refused), 2, "{arguments:?}: {}", err(&refused));
        assert!(err(&refused).contains(why), "{arguments:?}: {}", err(&refused));
        assert_eq!(out(&refused), "", "{arguments:?}");
    }
}

#[test]
fn what_is_no_machine_fails() {
    let dir = dir_with_store();
    fs::write(dir.path().join("text"), "not wasm").unwrap();
    for (arguments, why) in [
        (&["text"][..], "text: this is not WebAssembly"),
        (&["nothing"], "nothing: "),
        (&["kv.wasm", "--calls", "nothing"], "nothing: "),
    ] {
        let refused = check(dir.path(), arguments);
        assert_eq!((code(&refused), out(&refused).as_str()), (1, ""), "{}", err(&refused));
        assert!(err(&refused).contains(why), "{arguments:?}: {}", err(&refused));
        assert_eq!(err(&refused).lines().count(), 1, "{}", err(&refused));
    }
    let refused = check(dir.path(), &["text", "--json"]);
    let error: Value = serde_json::from_str(&err(&refused)).unwrap();
    assert!(error["error"]["message"].as_str().unwrap().starts_with("text: "), "{error}");
}
