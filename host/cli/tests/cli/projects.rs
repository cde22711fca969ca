//! `new`, `build` and `inspect` without a compiler for components. `it/projects.rs` tests the
//! whole way.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{code, err, out};

fn conclave(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_conclave"));
    command.current_dir(dir).args(arguments).output().unwrap()
}

#[test]
fn a_new_project_is_a_directory_of_its_own() {
    let dir = TempDir::new().unwrap();
    let made = conclave(dir.path(), &["new", "machines/my-lock"]);
    assert_eq!(code(&made), 0, "{}", err(&made));
    assert!(out(&made).starts_with("cd machines/my-lock\n"), "{}", out(&made));
    let project = dir.path().join("machines/my-lock");
    for file in ["Cargo.toml", "README.md", "proto/my_lock/v1/my_lock.proto", "tests/contract.rs"] {
        assert!(project.join(file).is_file(), "{file}");
    }
    let source = fs::read_to_string(project.join("src/lib.rs")).unwrap();
    assert!(source.contains("conclave_sdk::export!(MyLock);"), "{source}");

    fs::write(project.join("src/lib.rs"), "mine").unwrap();
    let again = conclave(dir.path(), &["new", "machines/my-lock"]);
    assert_eq!(code(&again), 1);
    assert!(err(&again).contains("machines/my-lock exists"), "{}", err(&again));
    assert_eq!(fs::read_to_string(project.join("src/lib.rs")).unwrap(), "mine");
}

#[test]
fn a_new_project_in_python_has_its_descriptor_set() {
    let dir = TempDir::new().unwrap();
    let made = conclave(dir.path(), &["new", "my-lock", "--lang", "python"]);
    assert_eq!(code(&made), 0, "{}", err(&made));
    for file in ["machine.py", "descriptor_set.py", "conclave_sdk/wit/fsm.wit"] {
        assert!(dir.path().join("my-lock").join(file).is_file(), "{file}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_conclave"));
    let command = command.args(["build", "my-lock"]).current_dir(dir.path());
    let refused = command.env("PATH", dir.path()).output().unwrap();
    assert_eq!(code(&refused), 1);
    assert!(err(&refused).contains("apt-get install python3"), "{}", err(&refused));
}

#[test]
fn a_bad_name_is_refused_before_anything_is_made() {
    let dir = TempDir::new().unwrap();
    for name in ["MyLock", "my_lock", "2-locks", "match", "grpc", "schloß", "..", &"a".repeat(60)]
    {
        let refused = conclave(dir.path(), &["new", &format!("deep/{name}")]);
        assert_eq!(code(&refused), 2, "{name}: {}", err(&refused));
        assert!(err(&refused).contains("cannot be a state machine's name"), "{}", err(&refused));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    assert_eq!(code(&conclave(dir.path(), &["new", "lock", "--lang", "cobol"])), 2);
}

#[test]
fn what_is_no_project_is_not_built() {
    let dir = TempDir::new().unwrap();
    let refused = conclave(dir.path(), &["build"]);
    assert_eq!(code(&refused), 1);
    assert!(err(&refused).contains("Cargo.toml"), "{}", err(&refused));
    assert!(err(&refused).contains("conclave new"), "{}", err(&refused));
}

/// Goal: if the compiler is missing, the error explains how to install it, and no file is
/// left behind.
#[test]
fn a_missing_compiler_is_named_with_how_to_install_it() {
    let dir = TempDir::new().unwrap();
    assert_eq!(code(&conclave(dir.path(), &["new", "lock"])), 0);
    let mut command = Command::new(env!("CARGO_BIN_EXE_conclave"));
    let refused = command
        .args(["build", "lock"])
        .current_dir(dir.path())
        .env("PATH", dir.path())
        .env("CONCLAVE_WASM_COMPILER", "rustup")
        .output()
        .unwrap();
    assert_eq!(code(&refused), 1);
    let said = err(&refused);
    assert!(said.contains("rustup target add wasm32-unknown-unknown"), "{said}");
    assert!(said.contains("apt-get install"), "{said}");
    assert!(!dir.path().join("lock/target").exists());
}

#[test]
fn the_default_machine_is_inspected_for_people_and_for_programs() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("kv.wasm"), conclave_cli::DEFAULT_MACHINE).unwrap();
    let shown = out(&conclave(dir.path(), &["inspect", "kv.wasm"]));
    let line = |name: &str| {
        let line = shown.lines().find(|line| line.starts_with(name));
        line.unwrap_or_else(|| panic!("no {name} in {shown}")).to_owned()
    };
    assert!(line("name").ends_with(" kv"));
    assert!(line("imports").contains("conclave:fsm@0.1.0 log"));
    assert!(line("memory").contains("at most 1024.0 MiB"));
    assert!(line("kv.v1.KV/Put").ends_with("command") && line("kv.v1.KV/Get").ends_with("query"));
    assert_eq!(out(&conclave(dir.path(), &["inspect"])), shown, "it is what is inside");

    let json = out(&conclave(dir.path(), &["inspect", "kv.wasm", "--json"]));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["size_bytes"], conclave_cli::DEFAULT_MACHINE.len());
    assert_eq!((&json["name"], &json["state_version"]), (&"kv".into(), &2.into()));
    assert!(line("component").ends_with(json["component"].as_str().unwrap()));
    assert_eq!(json["component"].as_str().unwrap().len(), 64);
    let memory = &json["memory"];
    assert_eq!(memory["declared_bytes_max"], 4_u64 << 30, "it declares no maximum");
    assert_eq!(memory["bytes_max"], 1 << 30);
    assert!(memory["started_bytes"].as_u64().unwrap() >= 1 << 16);
    let methods = json["methods"].as_array().unwrap();
    assert!(methods.contains(&serde_json::json!({"name": "kv.v1.KV/Range", "kind": "query"})));
}

#[test]
fn a_file_that_no_node_would_serve_says_why() {
    let dir = TempDir::new().unwrap();
    for (file, bytes, why) in [
        ("text", &b"not wasm"[..], "not WebAssembly"),
        ("empty", b"", "empty"),
        ("core", b"\0asm\x01\0\0\0", "conclave build"),
        ("torn", &conclave_cli::DEFAULT_MACHINE[..1000], "does not compile"),
    ] {
        fs::write(dir.path().join(file), bytes).unwrap();
        let refused = conclave(dir.path(), &["inspect", file]);
        assert_eq!((code(&refused), out(&refused).as_str()), (1, ""));
        let said = err(&refused);
        assert!(said.contains(why) && said.contains(file), "{file}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let missing = conclave(dir.path(), &["inspect", "nothing", "--json"]);
    let error: Value = serde_json::from_str(&err(&missing)).unwrap();
    assert!(error["error"]["message"].as_str().unwrap().starts_with("nothing: "), "{error}");
}
