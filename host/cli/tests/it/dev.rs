//! `conclave dev`: one command starts three nodes, and the next run finds them again.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{PATIENCE, conclave};

/// The port base of a run: below 32768, where the kernel's range for outgoing connections begins. A
/// test may add an offset of its own, up to 90.
pub(crate) fn port_base() -> u16 {
    20_000 + (std::process::id() % 40) as u16 * 300
}

fn dev(dir: &Path, base: u16) -> (Child, String) {
    let mut child = conclave()
        .args(["dev", "--nodes", "3", "--port-base", &base.to_string(), "--data-dir"])
        .arg(dir)
        // Settings of other nodes, which must not affect these nodes.
        .env("CONCLAVE_CONFIG", "/no/such/file.toml")
        .env("CONCLAVE_MASTER_KEY", "not a key")
        .env("CONCLAVE_HEARTBEAT", "nonsense")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut said).unwrap();
    // Drains the output, so that the child never blocks.
    std::thread::spawn(move || stdout.lines().map_while(Result::ok).for_each(drop));
    (child, said)
}

pub(crate) fn stop(mut child: Child) {
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "dev does not stop");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn run(endpoints: &str, words: &[&str]) -> String {
    let output = conclave().args(words).args(["--endpoints", endpoints]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "conclave {words:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn alive(pid: u64) -> bool {
    Path::new(&format!("/proc/{pid}/exe")).exists()
}

/// Restarts a killed node and a running one, with a verb in another process.
fn restart_and_status(dir: &Path, nodes: &[Value]) {
    let verb = |words: &[&str]| {
        let output = conclave().arg("dev").args(words).arg("--data-dir").arg(dir).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "conclave dev {words:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    };
    let status = || -> Value { serde_json::from_str(&verb(&["status", "--json"])).unwrap() };
    let pid = |id: usize| status()["nodes"][id - 1]["pid"].as_i64();
    let first = nodes[0]["pid"].as_i64().unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(first as i32).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let deadline = Instant::now() + PATIENCE;
    while pid(1).is_some() {
        assert!(Instant::now() < deadline, "the end of node 1 is not noticed");
    }
    assert!(verb(&["status"]).contains("stopped"), "{}", verb(&["status"]));
    verb(&["restart", "1"]);
    let second = pid(2).unwrap();
    verb(&["restart", "2"]);
    let status = loop {
        let status = status();
        if status["nodes"].as_array().unwrap().iter().all(|node| node["serving"] == true) {
            break status;
        }
        assert!(Instant::now() < deadline, "not all nodes serve again: {status}");
    };
    assert_eq!(status["running"], true);
    let pids = [1, 2].map(|id: usize| status["nodes"][id - 1]["pid"].as_i64().unwrap());
    assert!(pids[0] != first && pids[1] != second, "{status}");
}

#[test]
fn three_nodes_with_one_command() {
    let dir = TempDir::new().unwrap();
    let base = port_base();
    let endpoints = format!("127.0.0.1:{},127.0.0.1:{}", base + 1, base + 2);
    let (child, said) = dev(dir.path(), base);
    assert!(said.contains("serv"), "says that it serves: {said:?}");

    let described = fs::read_to_string(dir.path().join("cluster.json")).unwrap();
    let described: Value = serde_json::from_str(&described).unwrap();
    let nodes = described["nodes"].as_array().unwrap().clone();
    assert_eq!(nodes.len(), 3);
    for (position, node) in nodes.iter().enumerate() {
        let id = position as u16 + 1;
        assert_eq!(node["id"], id);
        assert_eq!(node["client"], format!("127.0.0.1:{}", base + id));
        assert_eq!(node["peer"], format!("127.0.0.1:{}", base + 100 + id));
        assert_eq!(node["admin"], format!("127.0.0.1:{}", base + 200 + id));
        assert!(alive(node["pid"].as_u64().unwrap()) && node["data_dir"].is_string(), "{node}");
    }

    // The three nodes share the code that one of them compiled.
    let compiled = fs::read_dir(dir.path().join("compiled")).unwrap();
    let is_code = |path: &Path| path.extension().is_some_and(|extension| extension == "compiled");
    assert_eq!(compiled.filter(|entry| is_code(&entry.as_ref().unwrap().path())).count(), 1);

    run(&endpoints, &["kv", "put", "greeting", "hello"]);
    assert_eq!(run(&endpoints, &["kv", "get", "greeting"]).trim(), "hello");
    let status: Value = serde_json::from_str(&run(&endpoints, &["status", "--json"])).unwrap();
    assert!(status["leader"].as_u64().unwrap() > 0 && status["term"].as_u64().unwrap() > 0);
    for node in status["nodes"].as_array().unwrap() {
        assert!(node["id"].is_u64() && node["role"].is_string(), "{node}");
        assert!(node["applied"].is_u64() && node["component"].is_string(), "{node}");
    }
    let called = run(&endpoints, &["call", "kv.v1.KV/Get", r#"{"key": "greeting"}"#]);
    assert!(called.contains("hello"), "{called}");

    assert_eq!(fs::read_to_string(dir.path().join(".gitignore")).unwrap(), "*\n");
    restart_and_status(dir.path(), &nodes);

    stop(child);
    for node in &nodes {
        assert!(!alive(node["pid"].as_u64().unwrap()), "node {} outlived dev", node["id"]);
    }
    let (child, _) = dev(dir.path(), base);
    assert_eq!(run(&endpoints, &["kv", "get", "greeting"]).trim(), "hello");
    stop(child);
}
