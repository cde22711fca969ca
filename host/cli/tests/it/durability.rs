//! Durable means synced. Under a system-call trace of the leader, every acknowledged put of a
//! single client has a write to sled's `db` file and then a completed fdatasync of it. Both lie
//! between the times when the put was sent and when its response arrived.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::harness::{Cluster, eventually, put, skip};

const PUTS: usize = 40;

pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[derive(Debug, PartialEq)]
enum Event {
    Written(f64),
    Synced(f64),
}

/// Parses strace's lines: `PID TIME call(FD<path>, …) = result`, or two halves if another thread
/// was traced in between. An event happens when its call has returned.
fn events(trace: &str) -> Vec<Event> {
    let mut begun: BTreeMap<(&str, &str), bool> = BTreeMap::new();
    let mut events = Vec::new();
    for line in trace.lines() {
        // strace pads shorter process ids.
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let Some((time, call)) = rest.trim_start().split_once(' ') else { continue };
        let Ok(time) = time.parse::<f64>() else { continue };
        let resumed = call.strip_prefix("<... ");
        let name = resumed.unwrap_or(call).split(['(', ' ']).next().unwrap_or_default();
        let on_db = match resumed {
            Some(_) => begun.remove(&(pid, name)).unwrap_or(false),
            None => call.contains("/db>"),
        };
        if call.ends_with("<unfinished ...>") {
            begun.insert((pid, name), on_db);
            continue;
        }
        if !on_db || call.contains("= -1") {
            continue;
        }
        events.push(if name == "fdatasync" { Event::Synced(time) } else { Event::Written(time) });
    }
    events
}

#[test]
fn a_trace_is_read_in_both_forms() {
    let trace = "\
12  10.1 pwrite64(7</d/log/db>, \"..\"..., 10, 0) = 10
12 10.2 fdatasync(9</d/log/db> <unfinished ...>
13 10.3 pwrite64(8</d/log/snap.1>, \"..\"..., 10, 0) = 10
12 10.4 <... fdatasync resumed>) = 0
12 10.5 fdatasync(9</d/log/db>) = -1 EIO";
    assert_eq!(events(trace), [Event::Written(10.1), Event::Synced(10.4)]);
}

/// The reason why a test is skipped, see [`strace_works`].
pub(crate) const NO_STRACE: &str = "strace is not installed or may not trace here";

pub(crate) fn strace_works() -> bool {
    let probe = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output();
    probe.is_ok_and(|output| output.status.success())
}

fn trace_of(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_put_was_synced_first() {
    if !strace_works() {
        return skip("every acknowledged put was synced first", NO_STRACE);
    }
    let cluster = Cluster::start().await;
    // A traced node is slow and may lose its leadership because of that. Then its disk
    // decides nothing.
    for _ in 0..5 {
        let before = term(&cluster).await;
        let leader = cluster.leader().await;
        let (spans, events) = traced_puts(&cluster, leader).await;
        if (before, leader) == (term(&cluster).await, cluster.leader().await) {
            return assert_synced_first(&spans, &events);
        }
    }
    panic!("the leader changed in every attempt");
}

async fn term(cluster: &Cluster) -> u64 {
    cluster.client().status().await.unwrap().term
}

/// Returns the times when each put was sent and acknowledged, and the leader's disk events.
async fn traced_puts(cluster: &Cluster, leader: u64) -> (Vec<(f64, f64)>, Vec<Event>) {
    let path = cluster.dir.path().join("trace");
    let _ = fs::remove_file(&path);
    let mut strace = Command::new("strace")
        .args(["-f", "-ttt", "-y", "-e", "trace=pwrite64,pwritev,write,fdatasync", "-o"])
        .arg(&path)
        .args(["-p", &cluster.pid(leader).to_string()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let client = cluster.client_of(leader);
    eventually("the trace has begun", async || {
        put(&client, "warm", "up").await.map_err(|error| error.to_string())?;
        if trace_of(&path).contains("/db>") { Ok(()) } else { Err("no event".to_owned()) }
    })
    .await;
    let mut spans = Vec::new();
    for number in 0..PUTS {
        let sent = now();
        put(&client, &format!("key/{number}"), "text").await.unwrap();
        spans.push((sent, now()));
    }
    let pid = rustix::process::Pid::from_child(&strace);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    strace.wait().unwrap();
    (spans, events(&trace_of(&path)))
}

fn assert_synced_first(spans: &[(f64, f64)], events: &[Event]) {
    for (number, (sent, acknowledged)) in spans.iter().enumerate() {
        let within = |time: f64| (*sent..=*acknowledged).contains(&time);
        let written = events.iter().position(|e| matches!(e, Event::Written(t) if within(*t)));
        let written = written.unwrap_or_else(|| panic!("put {number}: the record was not written"));
        let synced = events[written..].iter().any(|e| matches!(e, Event::Synced(t) if within(*t)));
        assert!(synced, "put {number} was acknowledged before it was synced");
    }
}
