//! From an empty directory to a running state machine: `conclave new`, its own tests, `conclave
//! build`, `conclave inspect`, `conclave check`, three nodes, a call.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use conclave_client::{CallOptions, Consistency};
use serde_json::{Value, json};

use crate::harness::{Cluster, Setup, call, conclave, skip};

/// Maximum time for three nodes to compile 20 MB on two cores, with compilers of the test
/// suite's profile.
const COMPILING_TIME_MAX: Duration = Duration::from_secs(300);

/// Serializes installations: the packages for Python builds are shared, and two installations at
/// once would disturb each other.
static INSTALLING: Mutex<()> = Mutex::new(());

/// Returns an empty directory at the same path in every run. Code that cargo compiled there can be
/// reused, which saves minutes.
pub(crate) fn empty(name: &str) -> PathBuf {
    let dir = scratch().join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir).unwrap();
    }
    fs::create_dir_all(&dir).unwrap();
    dir
}

pub(crate) fn scratch() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("projects")
}

/// Returns the directory of compiled dependencies, shared by all runs.
pub(crate) fn target() -> PathBuf {
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

/// Builds a Python project, which needs an interpreter and access to PyPI.
pub(crate) fn build_python(project: &Path) -> Output {
    let _turn = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    conclave().arg("build").arg(project).env("CARGO_TARGET_DIR", target()).output().unwrap()
}

/// Returns the reason why Python projects cannot be built on this host, if the build reported that.
pub(crate) fn without_python(built: &Output) -> Option<String> {
    let said = String::from_utf8_lossy(&built.stderr);
    let why = |line: &&str| line.contains("needs python3") || line.contains("from PyPI");
    said.lines().find(why).map(str::to_owned)
}

/// Runs the tests of a Python project with the packages that its build installed. Returns whether
/// they passed, and their output.
pub(crate) fn test_python(project: &Path) -> (bool, String) {
    let mut tests = Command::new("python3");
    tests.args(["-m", "unittest"]).current_dir(project);
    tests.env("PYTHONPATH", target().join("python/packages"));
    // The SDK's directory is one of the sources from which the host is built.
    tests.env("PYTHONDONTWRITEBYTECODE", "1");
    let tests = tests.output().unwrap();
    (tests.status.success(), String::from_utf8_lossy(&tests.stderr).into_owned())
}

/// Starts three nodes with a component from Python. Each compiles an interpreter before it serves.
pub(crate) async fn serve_python(component: PathBuf) -> Cluster {
    let mut cluster = Cluster::prepared(with_component(component));
    for id in 1..=3 {
        cluster.start_node(id);
    }
    let compiled = tokio::time::timeout(COMPILING_TIME_MAX, async {
        while !cluster.client().status().await.is_ok_and(|status| status.leader > 0) {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    compiled.await.expect("the nodes compile the component");
    cluster
}

/// Returns the command that runs a project's own tests, as its author does.
fn cargo_test(project: &Path) -> Command {
    let mut command = Command::new("cargo");
    // `cargo xtask test` sets it for this program alone.
    command.env_remove("RUSTC_BOOTSTRAP");
    command.arg("test").current_dir(project);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_in_rust_from_nothing() {
    let project = empty("rust").join("my-counter");
    run(conclave().arg("new").arg(&project));
    // The tested dependency versions, which are already downloaded.
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock"), project.join("Cargo.lock"))
        .unwrap();
    let tested = said(&mut cargo_test(&project));
    assert!(tested.contains("3 passed"), "{tested}");

    let built = said(conclave().arg("build").arg(&project));
    let component = PathBuf::from(built.trim());
    assert_eq!(component, project.join("target/my-counter.wasm"));
    let imports = assert_sound(&component, "my-counter");
    assert!(imports.iter().all(|import| import.starts_with("conclave:fsm/")), "{imports:?}");
    let cluster = Cluster::start_with(with_component(component)).await;
    assert_serves(&cluster, "my_counter.v1.MyCounter").await;

    // The tests can fail: this state machine loses its state when it is restored.
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
    // Additional lines: a way to make it fail, and a method that shows the time and random numbers
    // of its standard library.
    let source = fs::read_to_string(project.join("machine.py")).unwrap();
    let first_line = "        name_bytes = len(request.name.encode())\n";
    let breaks = format!("{MORE_PYTHON}{first_line}");
    let imports = "import os, random, socket, time, uuid\n\nfrom conclave_sdk import";
    assert!(source.contains(first_line));
    let source = source.replace(first_line, &breaks).replace("from conclave_sdk import", imports);
    fs::write(project.join("machine.py"), source).unwrap();
    let built = build_python(&project);
    if let Some(why) = without_python(&built) {
        return skip("a machine in Python", &why);
    }
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let component = PathBuf::from(String::from_utf8_lossy(&built.stdout).trim());

    let (passed, said) = test_python(&project);
    assert!(passed && said.contains("Ran 3 tests"), "{said}");
    // The conformance tests' own tests, with the packages of the project.
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sdk/python");
    let (passed, said) = test_python(&sdk);
    assert!(passed && said.contains("Ran 5 tests"), "{said}");

    let imports = assert_sound(&component, "my-counter");
    assert!(imports.iter().any(|import| import.starts_with("wasi:clocks/wall-clock@0.2.")));
    let cluster = serve_python(component).await;
    assert_serves(&cluster, "my_counter.v1.MyCounter").await;
    let request = json!({"name": "boom", "amount": 1});
    let add = "my_counter.v1.MyCounter/Add";
    let broken = call(&cluster.client(), add, request, CallOptions::write()).await;
    assert!(broken.unwrap_err().to_string().contains("trapped"));
    let log = cluster.log_tail(cluster.leader().await);
    assert!(log.contains("AssertionError: broken on purpose (machine.py:"), "{log}");
    assert_sees_the_log(&cluster).await;
    drop(cluster);

    // The tests can fail.
    let source = fs::read_to_string(project.join("machine.py")).unwrap();
    for (right, wrong, symptom) in [
        ("counts=self.counts)", ")", "once restored"),
        ("deterministic=True", "deterministic=False", "gives two snapshots"),
        ("+ request.amount", "+ int(__import__('time').time())", "no clock"),
        (
            "raise Failure(Code.INV",
            "self.counts['no'] = 1; raise Failure(Code.INV",
            "failed and changed",
        ),
        ("@query(\"my_counter.v1.MyCounter/Get\")", "", "has no handler"),
    ] {
        let sabotaged = source.replace(right, wrong);
        assert_ne!(source, sabotaged);
        fs::write(project.join("machine.py"), sabotaged).unwrap();
        let (passed, said) = test_python(&project);
        assert!(!passed && said.contains(symptom), "{wrong}: {said}");
    }
    fs::write(project.join("machine.py"), "import nothing_of_this_name\n").unwrap();
    let refused = build_python(&project);
    assert!(!refused.status.success());
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(why.contains("nothing_of_this_name"), "{why}");
}

const MORE_PYTHON: &str = r#"        assert request.name != "boom", "broken on purpose"
        if request.name == "wasi":
            try:
                socket.socket()
            except OSError as error:
                print("no socket:", error)
            seen = f"{time.time()} {random.random()} {os.urandom(4).hex()} {hash('pear')} {uuid.uuid4()}"
            print("it sees", seen)
            self.counts[seen] = 1
            raise Failure(Code.OUT_OF_RANGE, seen)
"#;

/// Asserts that the standard library gives the same values on all nodes: the state machine keeps
/// them, and each node is queried. They differ between entries, and printed text is in the log.
async fn assert_sees_the_log(cluster: &Cluster) {
    let (add, get) = ("my_counter.v1.MyCounter/Add", "my_counter.v1.MyCounter/Get");
    let mut before = String::new();
    for _ in 0..2 {
        let request = json!({"name": "wasi", "amount": 1});
        let seen = call(&cluster.client(), add, request, CallOptions::write()).await.unwrap_err();
        let seen = seen.to_string();
        let (time, rest) = seen.split_once(' ').unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - time.parse::<f64>().unwrap()).abs() < 60.0, "{seen}");
        assert_ne!(rest, before);
        before = rest.to_owned();
        cluster.caught_up(&[1, 2, 3]).await;
        for id in 1..=3 {
            let client = cluster.client_of(id);
            let stale = CallOptions::read().consistency(Consistency::Stale);
            let kept = call(&client, get, json!({"name": seen}), stale).await;
            assert_eq!(kept.unwrap()["count"], "1", "on node {id}");
        }
        let log = cluster.log_tail(cluster.leader().await);
        assert!(log.contains(&format!("it sees {seen}")), "{log}");
        assert!(log.contains("no socket: "), "{log}");
    }
}

fn with_component(component: PathBuf) -> Setup {
    Setup { component: Some(component), ..Setup::default() }
}

/// Asserts that a component has this name and passes the checks, and returns its imports.
fn assert_sound(component: &Path, name: &str) -> Vec<String> {
    let inspected = said(conclave().arg("inspect").arg(component).arg("--json"));
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected["name"], name);
    let checked =
        said(conclave().arg("check").arg(component).args(["--generate", "200", "--json"]));
    let checked: Value = serde_json::from_str(&checked).unwrap();
    assert_eq!(checked["ok"], true, "{checked:#}");
    let methods = inspected["methods"].as_array().unwrap();
    let kinds: Vec<_> = methods.iter().map(|method| &method["kind"]).collect();
    assert_eq!(kinds, ["command", "query"]);
    let imports = inspected["imports"].as_array().unwrap();
    imports.iter().map(|import| import.as_str().unwrap().to_owned()).collect()
}

/// Asserts that three nodes serve the service: commands, queries, and the state machine's
/// own failures.
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
