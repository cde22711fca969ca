//! Every state machine under examples/, used as its README describes: built to a component, served
//! by three nodes, called by its client program.
//!
//! The programs are those of `cargo build --example`, which costs nothing where `cargo test
//! --workspace` has already compiled them. `examples/embedded` has a test of its own, because it
//! contains its nodes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use serde_json::Value;

use crate::{
    foreign::{NO_GRPCIO, python},
    harness::{Cluster, Setup, skip},
    projects::{build_python, scratch, serve_python, test_python, without_python},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Returns the client programs of all state machines in Rust by name, compiled together.
fn programs() -> &'static BTreeMap<String, PathBuf> {
    static PROGRAMS: OnceLock<BTreeMap<String, PathBuf>> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        // `cargo xtask test` sets it for this program alone. With it, dependencies would be compiled once more.
        cargo.env_remove("RUSTC_BOOTSTRAP");
        // The whole workspace, so that its dependencies have the same features as in the tests.
        cargo.current_dir(root()).args(["build", "--workspace", "--message-format=json"]);
        cargo.args(
            ["counter", "flags", "lock", "queue"].map(|name| format!("--example={name}-client")),
        );
        let output = cargo.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let messages = String::from_utf8(output.stdout).unwrap();
        let programs = messages.lines().filter_map(|line| {
            let message: Value = serde_json::from_str(line).ok()?;
            let program = message["executable"].as_str()?;
            Some((message["target"]["name"].as_str()?.to_owned(), program.into()))
        });
        programs.collect()
    })
}

/// Starts three nodes that run the state machine.
async fn serve(component: PathBuf) -> Cluster {
    Cluster::start_with(Setup { component: Some(component), ..Setup::default() }).await
}

/// Runs a program with the nodes' addresses and returns its output.
fn said(mut program: Command, cluster: &Cluster) -> String {
    program.args(cluster.nodes.iter().map(|node| &node.client));
    let output = program.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program:?}\n{said}{why}");
    said
}

/// Builds a state machine in Rust, serves it, runs its client program and returns the
/// program's output.
async fn story(name: &str) -> String {
    // One directory for all, which shares the compiled code of their dependencies.
    let target_dir = root().join("target/machines");
    let spec = conclave_build::MachineSpec {
        manifest_dir: root().join("examples").join(name),
        output: target_dir.join(name).with_extension("wasm"),
        target_dir,
    };
    let cluster = serve(conclave_build::build_machine(&spec).unwrap().path).await;
    let said = said(Command::new(&programs()[&format!("{name}-client")]), &cluster);
    // All three nodes have the same state afterwards.
    cluster.caught_up(&[1, 2, 3]).await;
    said
}

fn assert_lines(said: &str, lines: &[&str]) {
    for line in lines {
        assert!(said.contains(line), "{line:?} is not in:\n{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_counter_counts() {
    let said = story("counter").await;
    let lines = ["the count is 0\n", "3 more make 3\n", "OUT_OF_RANGE: the sum does not fit"];
    assert_lines(&said, &lines);
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_are_rolled_out_and_credentials_stay_out_of_sight() {
    let said = story("flags").await;
    assert_lines(
        &said,
        &[
            "at 100 %: on for 40 of 40 users, and for Ada: true\n",
            "a colleague with an outdated version: ABORTED: checkout/new has version 3, not 0",
            "Evaluate of payments/token returns 12 characters\n",
            "the list omits it: true\n",
            "EvaluateAll omits it too: 1 flag\n",
            "change 3: CHANGED rules: step by step\n",
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_goes_on_to_whoever_waits_when_its_owner_dies() {
    let said = story("lock").await;
    assert_lines(
        &said,
        &[
            "worker-1 holds the lock with token 1\n",
            "worker-2 waits at place 1;",
            "worker-2 holds the lock with token 2\n",
            "the ledger refuses worker-1: token 1 is older than 2\n",
            "FAILED_PRECONDITION: the lease of \"worker-1\"",
            "releases the lock: true; the ledger has [\"worker-1 was here\", \"worker-2 was here\"]",
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_nobody_digests_becomes_a_dead_letter() {
    let said = story("queue").await;
    assert_lines(
        &said,
        &[
            "the first is a duplicate: true\n",
            "\"to Ada\" is done: true\n",
            "\"to Grace\" is done: true\n",
            "time 3 with \"poison\"",
            "dead letter \"poison\", given out 3 times\n",
        ],
    );
}

/// Works in a copy, because a build writes into the project. The installed packages are shared with
/// the other tests of state machines in Python.
#[tokio::test(flavor = "multi_thread")]
async fn the_quota_in_python_limits_a_fleet() {
    let (source, project) = (root().join("examples/quota"), scratch().join("quota"));
    if project.exists() {
        fs::remove_dir_all(&project).unwrap();
    }
    copy(&source, &project);
    let built = build_python(&project);
    if let Some(why) = without_python(&built) {
        return skip("the example in Python", &why);
    }
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let descriptors = |dir: &Path| fs::read_to_string(dir.join("descriptor_set.py")).unwrap();
    assert!(
        descriptors(&source) == descriptors(&project),
        "descriptor_set.py is not made of its proto file: run `conclave build examples/quota`"
    );
    let (passed, tested) = test_python(&project);
    assert!(passed && tested.contains("Ran 8 tests"), "{tested}");

    let Some(python) = python() else {
        return skip("the client of the example in Python", NO_GRPCIO);
    };
    let component = PathBuf::from(String::from_utf8_lossy(&built.stdout).trim());
    let cluster = serve_python(component).await;
    let mut client = Command::new(python);
    client.arg(project.join("client.py"));
    let said = said(client, &cluster);
    assert_lines(
        &said,
        &[
            "10 mails were sent through 3 nodes",
            "had to wait: True; took at least the time of 5 more tokens: True\n",
            "Grace's bucket is full: 5 of 5\n",
            "INVALID_ARGUMENT: tokens is 6; it must be 1 to 5\n",
        ],
    );
    cluster.caught_up(&[1, 2, 3]).await;
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_name().to_str() {
            Some("target" | "__pycache__") => {}
            _ if entry.path().is_dir() => copy(&entry.path(), &target),
            _ => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}
