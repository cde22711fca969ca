//! From an empty directory to a machine that serves: `conclave new`, its own tests, `conclave build`,
//! `conclave inspect`, three nodes, a call.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use conclave_client::CallOptions;
use serde_json::{Value, json};

use crate::harness::{Cluster, Setup, call, conclave};

/// Three nodes compile 20 MB on two cores, with compilers of the test suite's profile.
const COMPILING_TIME_MAX: Duration = Duration::from_secs(300);

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
    assert_inspected(&component, "my-counter");
    let cluster = Cluster::start_with(with_module(component)).await;
    assert_serves(&cluster, "my_counter.v1.MyCounter").await;

    // A test that cannot fail is none: this machine forgets what it was told once it is restored.
    let source = fs::read_to_string(project.join("src/lib.rs")).unwrap();
    let forgetful = source.replace("{ counts: self.counts.clone() }", "::default()");
    assert_ne!(source, forgetful);
    fs::write(project.join("src/lib.rs"), forgetful).unwrap();
    let tested = cargo_test(&project).env("CARGO_TARGET_DIR", target()).output().unwrap();
    let tested = String::from_utf8_lossy(&tested.stdout).into_owned();
    assert!(tested.contains("and restored after"), "{tested}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_in_python_from_nothing() {
    let project = empty("python").join("my-counter");
    run(conclave().args(["new", "--lang", "python"]).arg(&project));
    // One line more than nothing: a way to break it.
    let source = fs::read_to_string(project.join("machine.py")).unwrap();
    let first_line = "        name_bytes = len(request.name.encode())\n";
    let breaks =
        format!("        assert request.name != \"boom\", \"broken on purpose\"\n{first_line}");
    assert!(source.contains(first_line));
    fs::write(project.join("machine.py"), source.replace(first_line, &breaks)).unwrap();
    let build = || {
        let mut build = conclave();
        build.arg("build").arg(&project).env("CARGO_TARGET_DIR", target());
        build
    };
    let built = build().output().unwrap();
    let why = String::from_utf8_lossy(&built.stderr).into_owned();
    if why.contains("needs python3") || why.contains("from PyPI") {
        eprintln!("skipped: a machine in Python: {why}");
        return;
    }
    assert!(built.status.success(), "{why}");
    let component = PathBuf::from(String::from_utf8_lossy(&built.stdout).trim());

    let tests = || {
        let mut tests = Command::new("python3");
        tests.args(["-m", "unittest"]).current_dir(&project);
        tests.env("PYTHONPATH", target().join("python/packages"));
        let tests = tests.output().unwrap();
        (tests.status.success(), String::from_utf8_lossy(&tests.stderr).into_owned())
    };
    let (passed, said) = tests();
    assert!(passed && said.contains("Ran 3 tests"), "{said}");

    assert_inspected(&component, "my-counter");
    let mut cluster = Cluster::prepared(with_module(component));
    for id in 1..=3 {
        cluster.start_node(id);
    }
    // Each node compiles an interpreter before it serves.
    let compiled = tokio::time::timeout(COMPILING_TIME_MAX, async {
        while !cluster.client().status().await.is_ok_and(|status| status.leader > 0) {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    compiled.await.expect("the nodes compile the module");
    assert_serves(&cluster, "my_counter.v1.MyCounter").await;
    let request = json!({"name": "boom", "amount": 1});
    let add = "my_counter.v1.MyCounter/Add";
    let broken = call(&cluster.client(), add, request, CallOptions::write()).await;
    assert!(broken.unwrap_err().to_string().contains("trapped"));
    let log = cluster.log_tail(cluster.leader().await);
    assert!(log.contains("AssertionError: broken on purpose (machine.py:"), "{log}");
    drop(cluster);

    // Tests that cannot fail are none.
    let source = fs::read_to_string(project.join("machine.py")).unwrap();
    for (right, wrong, symptom) in [
        ("counts=self.counts)", ")", "once restored"),
        ("deterministic=True", "deterministic=False", "gives two snapshots"),
        ("+ request.amount", "+ int(__import__('time').time())", "no clock"),
        ("@query(\"my_counter.v1.MyCounter/Get\")", "", "has no handler"),
    ] {
        let sabotaged = source.replace(right, wrong);
        assert_ne!(source, sabotaged);
        fs::write(project.join("machine.py"), sabotaged).unwrap();
        let (passed, said) = tests();
        assert!(!passed && said.contains(symptom), "{wrong}: {said}");
    }
    fs::write(project.join("machine.py"), "import nothing_of_this_name\n").unwrap();
    let refused = build().output().unwrap();
    assert!(!refused.status.success());
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(why.contains("nothing_of_this_name"), "{why}");
}

fn with_module(component: PathBuf) -> Setup {
    Setup { module: Some(component), ..Setup::default() }
}

/// It is what it should be, and asks for nothing but the contract.
fn assert_inspected(component: &Path, name: &str) {
    let inspected = said(conclave().arg("inspect").arg(component).arg("--json"));
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected["name"], name);
    for import in inspected["imports"].as_array().unwrap() {
        assert!(import.as_str().unwrap().starts_with("conclave:fsm/"), "{inspected}");
    }
    let methods = inspected["methods"].as_array().unwrap();
    let kinds: Vec<_> = methods.iter().map(|method| &method["kind"]).collect();
    assert_eq!(kinds, ["command", "query"]);
}

/// Three nodes serve the service: commands, queries, the machine's own refusals.
async fn assert_serves(cluster: &Cluster, service: &str) {
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
