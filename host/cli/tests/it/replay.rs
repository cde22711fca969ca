//! `conclave replay`: the entries and states of a stopped node's directory, which is not changed.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Instant, SystemTime},
};

use conclave_client::CallOptions;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    harness::{self, Cluster, Setup, conclave, files, put},
    recorded,
    traps::{add, call, hostile, setup},
};
use conclave_testing::{counters::version, wat::Wat};

/// Runs the verb on a node's directory, with a work directory for the copy, which must be
/// empty afterwards.
pub(crate) fn replay(cluster: &Cluster, id: u64, arguments: &[&str]) -> Output {
    let key = cluster.dir.path().join("master.key");
    replay_of(&cluster.node(id).data_dir, &key, arguments)
}

fn replay_of(data_dir: &Path, key: &Path, arguments: &[&str]) -> Output {
    let work = TempDir::new().unwrap();
    let output = conclave()
        .args(["replay", "--data-dir"])
        .arg(data_dir)
        .arg("--master-key-file")
        .arg(key)
        .arg("--work-dir")
        .arg(work.path())
        .args(arguments)
        .output()
        .unwrap();
    assert_eq!(files(work.path()), Vec::<PathBuf>::new(), "a copy was left behind");
    output
}

/// Returns the verb's output as JSON.
pub(crate) fn replayed(cluster: &Cluster, id: u64, arguments: &[&str]) -> Value {
    let output = replay(cluster, id, &[arguments, &["--json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Returns the error of a refused run.
fn refused(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "it was not refused: {stderr}");
    stderr
}

/// Returns every file with its bytes, its permissions and its modification time.
fn picture(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, u32, SystemTime, i64)> {
    let one = |path: PathBuf| {
        let metadata = fs::metadata(&path).unwrap();
        let mode = metadata.permissions().mode();
        let facts =
            (fs::read(&path).unwrap(), mode, metadata.modified().unwrap(), metadata.ctime());
        (path, facts)
    };
    files(dir).into_iter().map(one).collect()
}

fn index_of(listed: &Value, wanted: impl Fn(&Value) -> bool) -> Vec<u64> {
    let listed = listed["listed"].as_array().unwrap();
    listed
        .iter()
        .filter(|entry| wanted(entry))
        .map(|entry| entry["index"].as_u64().unwrap())
        .collect()
}

fn is_put(entry: &Value) -> bool {
    entry["method"] == "kv.v1.KV/Put"
}

const GET: [&str; 3] = ["--query", "kv.v1.KV/Get", r#"{"key": "color"}"#];

#[tokio::test(flavor = "multi_thread")]
async fn the_state_at_any_index_is_there_and_the_directory_stays_as_it_is() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    for color in ["red", "green", "blue"] {
        put(&client, "color", color).await.unwrap();
    }
    cluster.caught_up(&[1, 2, 3]).await;
    // A running node has its directory locked.
    let error = refused(&replay(&cluster, 2, &[]));
    assert!(error.contains("in use") && error.contains(&cluster.pid(2).to_string()), "{error}");
    for id in 1..=3 {
        cluster.stop(id);
    }

    let data_dir = cluster.node(2).data_dir.clone();
    let before = picture(&data_dir);
    let listed = replayed(&cluster, 2, &["--entries", ".."]);
    assert_eq!((&listed["cluster"], &listed["node"]), (&json!("test"), &json!(2)));
    let puts = index_of(&listed, is_put);
    assert_eq!(puts.len(), 3, "{listed}");
    for (index, expected) in puts.iter().zip(["red", "green", "blue"]) {
        let at = replayed(&cluster, 2, &[&["--to", &index.to_string()][..], &GET].concat());
        assert_eq!(at["index"], json!(index));
        let answer = &at["answers"][0]["answer"];
        assert!(answer.to_string().contains(expected), "{answer}");
    }
    let first = (puts[0] - 1).to_string();
    let at = replayed(&cluster, 2, &[&["--to", &first][..], &GET].concat());
    assert!(!at["answers"][0].to_string().contains("red"), "{at}");

    // One entry with its request and response.
    let shown = replayed(&cluster, 2, &["--show", &puts[1].to_string()]);
    let entry = &shown["shown"][0];
    assert_eq!(entry["kind"], "call");
    assert_eq!(entry["request"], json!({"key": "color", "text": "green"}), "{entry}");
    assert!(entry["outcome"]["response"].is_object(), "{entry}");
    let people = replay(&cluster, 2, &["--show", &puts[1].to_string()]);
    let said = String::from_utf8(people.stdout).unwrap();
    assert!(said.contains("kv.v1.KV/Put") && said.contains("green"), "{said}");
    assert!(String::from_utf8_lossy(&people.stderr).contains("secret"));

    // The same on another node, which has the same log.
    let other = replayed(&cluster, 3, &["--entries", ".."]);
    assert_eq!(index_of(&other, is_put), puts);

    // An index beyond the end of the log.
    let error = refused(&replay(&cluster, 2, &["--to", "99999"]));
    assert!(error.contains("the log ends at"), "{error}");
    let wrong = cluster.dir.path().join("wrong.key");
    assert!(conclave().args(["key", "generate"]).arg(&wrong).status().unwrap().success());
    let error = refused(&replay_of(&data_dir, &wrong, &[]));
    assert!(error.contains("keyring") && error.contains("key"), "{error}");
    let key = cluster.dir.path().join("master.key");
    let error = refused(&replay_of(cluster.dir.path(), &key, &[]));
    assert!(error.contains("identity"), "{error}");

    let after = picture(&data_dir);
    assert!(before == after, "the directory was changed: {:?}", changed(&before, &after));
    // A copy of the directory works as well. In one with a changed byte, the error names the
    // damaged file.
    let copy = cluster.dir.path().join("copy");
    copy_dir(&data_dir, &copy);
    assert!(replay_of(&copy, &key, &["--entries", ".."]).status.success());
    let initial_component = copy.join("initial-component");
    let mut bytes = fs::read(&initial_component).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&initial_component, bytes).unwrap();
    let error = refused(&replay_of(&copy, &key, &[]));
    assert!(
        error.contains(&initial_component.display().to_string()) && error.contains("damaged"),
        "{error}"
    );
    // The node continues normally.
    for id in 1..=3 {
        cluster.start_node(id);
    }
    cluster.serving().await;
    assert_eq!(harness::get(&cluster.client(), "color").await.unwrap(), "blue");
}

fn changed<T: PartialEq>(
    before: &BTreeMap<PathBuf, T>,
    after: &BTreeMap<PathBuf, T>,
) -> Vec<PathBuf> {
    let names = before.keys().chain(after.keys());
    names.filter(|path| before.get(*path) != after.get(*path)).cloned().collect()
}

fn copy_dir(from: &Path, to: &Path) {
    // The only directory that may be empty.
    fs::create_dir_all(to.join("snapshots")).unwrap();
    for file in files(from) {
        let copy = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(file, copy).unwrap();
    }
}

/// A state machine whose entries take long. All of them are in one batch of the replay.
fn slow() -> Wat {
    Wat {
        apply: "(loop $again (local.set 9 (i32.add (local.get 9) (i32.const 1)))
              (br_if $again (i32.lt_u (local.get 9) (i32.const 100000000))))
            (i32.store (i32.const 268) (i32.const 0)) (i32.const 256)",
        ..version("slow", 1, 1, &[1])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_it_ends_at_once_and_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let component = dir.path().join("slow.wasm");
    fs::write(&component, slow().component()).unwrap();
    let setup = Setup { component: Some(component), flags: Vec::new() };
    let mut cluster = Cluster::prepared(setup);
    cluster.nodes.truncate(1);
    cluster.start_node(1);
    cluster.serving().await;
    for _ in 0..30 {
        let request = json!({"method": "any", "request": ""});
        let method = "conclave.machine.v1.Machine/Apply";
        harness::call(&cluster.client(), method, request, CallOptions::write()).await.unwrap();
    }
    cluster.stop(1);
    let data_dir = cluster.node(1).data_dir.clone();
    let before = picture(&data_dir);
    let begun = Instant::now();
    replayed(&cluster, 1, &[]);
    let whole = begun.elapsed();

    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let work = TempDir::new().unwrap();
        let mut command = conclave();
        command.args(["replay", "--data-dir"]).arg(&data_dir).arg("--work-dir").arg(work.path());
        command.arg("--master-key-file").arg(cluster.dir.path().join("master.key"));
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let threads = format!("/proc/{}/task", child.id());
        harness::eventually("the machine runs", async || {
            let tasks = fs::read_dir(&threads).map_err(|error| error.to_string())?;
            let names = tasks.flatten().map(|task| fs::read_to_string(task.path().join("comm")));
            let names: Vec<String> = names.flatten().collect();
            let runs = names.iter().any(|name| name.trim() == "primary");
            if runs { Ok(()) } else { Err(format!("{names:?}")) }
        })
        .await;
        assert_ne!(files(work.path()), Vec::<PathBuf>::new(), "there is a copy");
        let began = Instant::now();
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        let took = began.elapsed();
        assert!(took < whole / 3, "it took {took:?} to stop what takes {whole:?}");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = refused(&output);
        assert!(said.contains("stopped") && said.contains("unchanged"), "{said}");
        assert!(fs::read_dir(work.path()).unwrap().next().is_none(), "a copy was left behind");
    }
    let after = picture(&data_dir);
    assert!(before == after, "the directory was changed: {:?}", changed(&before, &after));
}

/// Before a snapshot there is no log, and the error names the first index that is available.
#[tokio::test(flavor = "multi_thread")]
async fn before_the_snapshot_there_is_nothing() {
    let flags = vec!["--snapshot-entries=100".into(), "--keep-entries=0".into()];
    let mut cluster = Cluster::start_with(Setup { component: None, flags }).await;
    let client = cluster.client();
    // The log is purged in pieces of some hundreds of entries.
    for round in 0..700 {
        put(&client, "color", &format!("color {round}")).await.unwrap();
    }
    harness::eventually("a snapshot was taken and the log purged", async || {
        let status = client.status().await.map_err(|error| error.to_string())?;
        let snapshots = status.nodes.iter().map(|node| node.snapshot).min();
        if snapshots.unwrap_or(0) >= 600 { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    for round in 700..710 {
        put(&client, "color", &format!("color {round}")).await.unwrap();
    }
    cluster.caught_up(&[1, 2, 3]).await;
    cluster.stop(1);
    let error = refused(&replay(&cluster, 1, &["--to", "5"]));
    assert!(error.contains("index 5 is gone") && error.contains("snapshot"), "{error}");
    let listed = replayed(&cluster, 1, &["--entries", ".."]);
    assert_eq!(listed["began_with"], "snapshot");
    let puts = index_of(&listed, is_put);
    let (count, third_last) = (puts.len(), puts[puts.len() - 3]);
    assert!((3..=700).contains(&count), "{count}");
    let at = replayed(&cluster, 1, &[&["--to", &third_last.to_string()][..], &GET].concat());
    assert!(at["answers"][0].to_string().contains("color 707"), "{at}");

    // A check with the remaining calls starts with the empty state, and reports that.
    let key = cluster.dir.path().join("master.key");
    let checked = recorded::check(&cluster, 1, &key, &["--shrink", "0"]);
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success() && said.contains("are in a snapshot only"), "{said}");
    assert!(!said.contains("from entries 0 to"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_is_shown_with_the_names_of_the_functions_that_led_to_it() {
    let mut cluster = Cluster::start_with(setup()).await;
    let client = cluster.client();
    assert_eq!(add(&client, 5).await, 5);
    for method in ["Panic", "DivideByZero", "Recurse"] {
        call(&client, method, json!({})).await.unwrap_err();
        add(&client, 1).await;
    }
    call(&client, "Fail", json!({})).await.unwrap_err();
    // A query that traps is not an entry.
    let options = CallOptions::read();
    let query = harness::call(&client, "hostile.v1.Hostile/QueryPanic", json!({}), options);
    query.await.unwrap_err();
    cluster.caught_up(&[1, 2, 3]).await;
    for id in 1..=3 {
        cluster.stop(id);
    }
    let with = |flags: &[&str]| replayed(&cluster, 1, flags);
    let listed = with(&["--entries", ".."]);
    assert_eq!((&listed["traps"], &listed["failures"]), (&json!(3), &json!(1)), "{listed}");
    let entry = |method: &str| {
        let method = format!("hostile.v1.Hostile/{method}");
        index_of(&listed, |entry| entry["method"] == method.as_str())[0]
    };
    let total = ["--query", "hostile.v1.Hostile/Get", "{}"];
    for (method, trap, function, before) in [
        ("Panic", "panic", "hostile::panics", "5"),
        ("DivideByZero", "invalid", "hostile::divides_by_zero", "6"),
        ("Recurse", "stack-exhausted", "hostile::recurses", "7"),
    ] {
        let index = entry(method);
        let shown = with(&["--show", &index.to_string()]);
        let outcome = &shown["shown"][0]["outcome"];
        assert_eq!(outcome["trap"], trap, "{outcome}");
        let backtrace = outcome["backtrace"].as_array().unwrap();
        let names =
            backtrace.iter().map(|line| line.as_str().unwrap()).collect::<Vec<_>>().join("\n");
        assert!(names.contains(function), "{method}: {names}");
        assert!(!names.contains("!_ZN") && !names.contains("!_R"), "not demangled: {names}");
        // The trap was rolled back: the state is the same before and after.
        for to in [index - 1, index] {
            let at = with(&[&["--to", &to.to_string()][..], &total].concat());
            assert!(at["answers"][0]["answer"]["response"].to_string().contains(before), "{at}");
        }
    }
    let panicked = with(&["--show", &entry("Panic").to_string()]);
    let words = panicked["shown"][0]["outcome"]["last_error"].as_str().unwrap();
    assert!(words.contains("panicked as asked") && words.contains("lib.rs"), "{words}");
    let failed = with(&["--show", &entry("Fail").to_string()]);
    let outcome = &failed["shown"][0]["outcome"];
    assert_eq!(outcome["failure"], "FAILED_PRECONDITION", "{outcome}");
    assert_eq!(outcome["message"], "failed as asked", "{outcome}");
    let trapping = with(&["--query", "hostile.v1.Hostile/QueryPanic", "{}"]);
    assert_eq!(trapping["answers"][0]["answer"]["trap"], "panic", "{trapping}");

    // Another component, which has none of these methods.
    let kv = cluster.dir.path().join("kv.wasm");
    fs::write(&kv, conclave_cli::DEFAULT_MACHINE).unwrap();
    let kv = kv.to_str().unwrap();
    let shown = with(&["--show", &entry("Panic").to_string(), "--component", kv]);
    assert!(shown["shown"][0]["outcome"]["failure"].is_string(), "{shown}");
    let compared = with(&["--component", kv, "--compare", "--differences-max", "2"]);
    assert_eq!(
        (&compared["compared"], &compared["different"]),
        (&json!(8), &json!(8)),
        "{compared}"
    );
    assert_eq!(compared["differences"].as_array().unwrap().len(), 2, "{compared}");
    let own = hostile();
    let compared = with(&["--component", own.to_str().unwrap(), "--compare"]);
    assert_eq!(compared["different"], json!(0), "{compared}");
    assert!(refused(&replay(&cluster, 1, &["--component", "/dev/null"])).contains("WebAssembly"));
}
