//! From an empty directory to a machine that serves: `conclave new`, its own tests, `conclave build`,
//! `conclave inspect`, three nodes, a call.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use conclave_client::CallOptions;
use serde_json::{Value, json};

use crate::harness::{Cluster, Setup, call, conclave};

/// A directory that is empty, and at the same place in every run: what cargo compiled there stays
/// useful, which saves minutes.
fn empty(name: &str) -> PathBuf {
    let dir = scratch().join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir).unwrap();
    }
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn scratch() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("projects")
}

/// Compiled dependencies, shared by the runs.
fn target() -> PathBuf {
    scratch().join("target")
}

fn run(command: &mut Command) -> Output {
    let output = command.env("CARGO_TARGET_DIR", target()).output().unwrap();
    let said = [&output.stdout[..], &output.stderr].concat();
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&said));
    output
}

fn said(command: &mut Command) -> String {
    String::from_utf8(run(command).stdout).unwrap()
}

/// Its own tests, as its author runs them.
fn cargo_test(project: &Path) -> Command {
    let mut command = Command::new("cargo");
    command.arg("test").current_dir(project);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_in_rust_from_nothing() {
    let project = empty("rust").join("my-counter");
    run(conclave().arg("new").arg(&project));
    // The versions that this repository is tested with, which are here already.
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock"), project.join("Cargo.lock"))
        .unwrap();
    let tested = said(&mut cargo_test(&project));
    assert!(tested.contains("3 passed"), "{tested}");

    let built = said(conclave().arg("build").arg(&project));
    let component = PathBuf::from(built.trim());
    assert_eq!(component, project.join("target/my-counter.wasm"));
    assert_imports(&component, "my-counter");
    serves(component, "my_counter.v1.MyCounter").await;

    // A test that cannot fail is none: this machine forgets what it was told once it is restored.
    let source = fs::read_to_string(project.join("src/lib.rs")).unwrap();
    let forgetful = source.replace("{ counts: self.counts.clone() }", "::default()");
    assert_ne!(source, forgetful);
    fs::write(project.join("src/lib.rs"), forgetful).unwrap();
    let tested = cargo_test(&project).env("CARGO_TARGET_DIR", target()).output().unwrap();
    let tested = String::from_utf8_lossy(&tested.stdout).into_owned();
    assert!(tested.contains("and restored after"), "{tested}");
}

/// It is what it should be, and asks for nothing but the contract.
fn assert_imports(component: &Path, name: &str) {
    let inspected = said(conclave().arg("inspect").arg(component).arg("--json"));
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected["name"], name);
    for import in inspected["imports"].as_array().unwrap() {
        assert!(import.as_str().unwrap().starts_with("conclave:fsm/"), "{inspected}");
    }
    let kinds: Vec<_> =
        inspected["methods"].as_array().unwrap().iter().map(|m| &m["kind"]).collect();
    assert_eq!(kinds, ["command", "query"]);
}

/// Three nodes serve the service: commands, queries, the machine's own refusals.
async fn serves(component: PathBuf, service: &str) {
    let cluster = Cluster::start_with(Setup { module: Some(component), ..Setup::default() }).await;
    let client = cluster.client();
    let (add, get) = (format!("{service}/Add"), format!("{service}/Get"));
    for expected in ["3", "6"] {
        let request = json!({"name": "pear", "amount": 3});
        let answer = call(&client, &add, request, CallOptions::write()).await.unwrap();
        assert_eq!(answer["count"], expected);
    }
    let count = call(&client, &get, json!({"name": "pear"}), CallOptions::read()).await.unwrap();
    assert_eq!(count["count"], "6");
    let missing = call(&client, &get, json!({"name": "fig"}), CallOptions::read()).await;
    assert!(missing.unwrap_err().to_string().contains("nothing was added"));
    let refused = call(&client, &add, json!({"amount": 1}), CallOptions::write()).await;
    assert!(refused.unwrap_err().to_string().contains("1 to 256 bytes"));
    cluster.caught_up(&[1, 2, 3]).await;
}
