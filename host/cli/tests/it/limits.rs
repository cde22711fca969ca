//! Limits that decide outcomes change only through the log.

use std::time::Duration;

use conclave_client::proto::cluster::Limits;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    divergence::{COUNT, apply},
    harness::{Cluster, Setup, conclave, put},
};
use conclave_testing::{counters::version, wat::Wat};

const FUEL: &str = "CONCLAVE_FUEL_PER_CALL";
/// Less fuel than a put of [`long`] needs, and more.
const LITTLE: &str = "1000000";
const PLENTY: &str = "2000000";

/// Returns a text whose check takes about 48 instructions per character.
fn long() -> String {
    "\u{e9}".repeat(30_000)
}

fn limits(cluster: &Cluster) -> Value {
    let shown = cluster.verb(&["cluster", "limits", "--json"]);
    serde_json::from_slice(&shown.stdout).unwrap_or_else(|_| panic!("{shown:?}"))
}

/// Starts a node with another limit in its own configuration.
fn start_with_fuel(cluster: &mut Cluster, id: u64, fuel: &str) {
    let mut command = cluster.command(id);
    command.env(FUEL, fuel);
    cluster.run(id, command);
}

async fn put_long(cluster: &Cluster, key: &str) -> Result<Value, String> {
    put(&cluster.client(), key, &long()).await.map_err(|error| error.to_string())
}

/// Regression: nodes that were restarted with another limit gave different outcomes from then on,
/// and also for entries that they replayed.
#[tokio::test(flavor = "multi_thread")]
async fn limits_change_through_the_log_and_in_no_other_way() {
    let mut cluster = Cluster::prepared(Setup::default());
    for id in 1..=3 {
        start_with_fuel(&mut cluster, id, LITTLE);
    }
    cluster.serving().await;
    assert_eq!(limits(&cluster)["index"], 0, "no command has been applied");
    put(&cluster.client(), "short", "x").await.unwrap();
    // The first leader's configuration applies, from the first command on.
    let first = limits(&cluster);
    assert_eq!(first["limits"]["fuel_per_call"], 1_000_000, "{first}");
    assert_eq!(first["limits"]["fuel_per_query"], 1_000_000, "at least: {first}");
    let trapped = put_long(&cluster, "before").await.unwrap_err();
    assert!(trapped.contains("fuel of 1000000"), "{trapped}");

    // A rolling restart with another configuration only raises an alarm.
    for id in 1..=3 {
        cluster.kill(id);
        start_with_fuel(&mut cluster, id, PLENTY);
        cluster.caught_up(&[1, 2, 3]).await;
        let trapped = put_long(&cluster, "meanwhile").await.unwrap_err();
        assert!(trapped.contains("fuel of 1000000"), "{trapped}");
    }
    assert_eq!(limits(&cluster), first);
    let status = cluster.verb(&["status"]);
    let remarks = String::from_utf8_lossy(&status.stderr);
    for id in 1..=3 {
        let says = format!(
            "node {id}: limits in this node's configuration differ from the cluster's, which are in force: fuel_per_call \
             is 2000000 there and 1000000 in the cluster"
        );
        assert!(remarks.contains(&says), "{remarks}");
        assert!(cluster.log_tail(id).contains("fuel_per_call is 2000000 there"));
    }
    cluster.assert_equal();

    // An operator changes the limits.
    let text = "x".repeat(60_000);
    for key in 0..300 {
        put(&cluster.client(), &format!("large-{key}"), &text).await.unwrap();
    }
    for (wrong, says, code) in [
        (&["--fuel-per-call", "5"][..], "fuel_per_call = 5: must be between 1000000", 1),
        (&["--response-bytes-max", "1000"], "response_bytes_max = 1000", 1),
        (&["--memory-bytes-max", "16777216"], "already holds", 1),
        (&[], "required", 2),
    ] {
        let refused = cluster.verb(&[&["cluster", "set-limits"], wrong].concat());
        let why = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(code), "{why}");
        assert!(why.contains(says), "{why}");
    }
    assert_eq!(limits(&cluster), first);
    let set = cluster.verb(&["cluster", "set-limits", "--fuel-per-call", PLENTY, "--json"]);
    assert!(set.status.success(), "{set:?}");
    let set: Value = serde_json::from_slice(&set.stdout).unwrap();
    assert_eq!(limits(&cluster), set);
    assert_eq!(set["limits"]["fuel_per_call"], 2_000_000);
    put_long(&cluster, "after").await.unwrap();
    cluster.caught_up(&[1, 2, 3]).await;
    cluster.assert_equal();
    let status = cluster.verb(&["status"]);
    assert!(!String::from_utf8_lossy(&status.stderr).contains("differ"), "{status:?}");

    // A node that starts from a snapshot has the new limits. One that replays the log applies each
    // entry under its own.
    cluster.client_of(2).snapshot().await.unwrap();
    for id in 1..=3 {
        cluster.kill(id);
    }
    for id in 1..=3 {
        start_with_fuel(&mut cluster, id, LITTLE);
    }
    cluster.serving().await;
    put_long(&cluster, "restarted").await.unwrap();
    cluster.caught_up(&[1, 2, 3]).await;
    cluster.assert_equal();
    for id in 1..=3 {
        let own = cluster.client_of(id).status().await.unwrap();
        assert_eq!(own.limits_index, set["index"].as_u64().unwrap(), "node {id}");
        let own = own.nodes.into_iter().find(|node| node.id == id).unwrap();
        assert_eq!((own.divergences, &*own.fatal_error), (0, ""), "node {id}");
    }

    // The log contains the change.
    cluster.stop(1);
    let replayed = conclave()
        .arg("replay")
        .arg("--data-dir")
        .arg(&cluster.node(1).data_dir)
        .arg("--master-key-file")
        .arg(cluster.dir.path().join("master.key"))
        .args(["--entries", ".."])
        .output()
        .unwrap();
    let listed = String::from_utf8_lossy(&replayed.stdout);
    assert!(replayed.status.success() && listed.contains("set-limits"), "{replayed:?}");
    assert!(listed.contains("trap fuel-exhausted"), "{listed}");
}

/// A state that needs more memory for a restore than the limit has no snapshot. A higher limit is
/// the way out.
#[tokio::test(flavor = "multi_thread")]
async fn snapshot_that_needs_more_memory_is_taken_after_the_limit_was_raised() {
    let counter = version("large", 1, 1, &[1]);
    // 40 MiB.
    let grows = "(if (i32.eq (memory.grow (i32.const 640)) (i32.const -1)) (then unreachable))";
    let finish = format!("{grows} {}", counter.finish).leak();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("large.wasm");
    std::fs::write(&path, Wat { finish, ..counter }.component()).unwrap();
    let flags = vec!["--memory-bytes-max=16777216".to_owned()];
    let cluster = Cluster::start_with(Setup { component: Some(path), flags }).await;
    apply(&cluster.client(), COUNT).await.unwrap();
    let failed = cluster.client_of(1).snapshot().await.unwrap_err();
    assert!(failed.to_string().contains("memory limit of 33554432"), "{failed}");
    let remarks =
        |cluster: &Cluster| String::from_utf8_lossy(&cluster.verb(&["status"]).stderr).into_owned();
    assert!(
        remarks(&cluster).contains("node 1: no snapshot can be taken"),
        "{}",
        remarks(&cluster)
    );
    let set = cluster.verb(&["cluster", "set-limits", "--memory-bytes-max", "25165824"]);
    assert!(set.status.success(), "{set:?}");
    cluster.client_of(1).snapshot().await.unwrap();
    // The restore needs more than three quarters of the limit, so there is a warning.
    let remarks = remarks(&cluster);
    assert!(!remarks.contains("no snapshot can be taken"), "{remarks}");
    assert!(remarks.contains("node 1: restoring the last snapshot took"), "{remarks}");
    assert_eq!(apply(&cluster.client(), COUNT).await.unwrap().0, 2);
}

/// A change whose leader is killed takes effect on all nodes or on none. An acknowledged change
/// is permanent.
#[tokio::test(flavor = "multi_thread")]
async fn change_during_a_leaders_death_is_made_on_all_nodes_or_on_none() {
    let mut cluster = Cluster::start().await;
    put(&cluster.client(), "first", "x").await.unwrap();
    let mut answered = 0;
    for round in 0..8_u64 {
        let leader = cluster.leader().await;
        let fuel = 1_000_000_000 + round;
        let client = cluster.client();
        let change = Limits { fuel_per_call: Some(fuel), ..Limits::default() };
        let setting = tokio::spawn(async move { client.set_limits(change).await });
        tokio::time::sleep(Duration::from_millis(2 * round)).await;
        cluster.kill(leader);
        let set = setting.await.unwrap();
        cluster.start_node(leader);
        cluster.caught_up(&[1, 2, 3]).await;
        let in_force = limits(&cluster)["limits"]["fuel_per_call"].as_u64().unwrap();
        if set.is_ok() {
            answered += 1;
            assert_eq!(in_force, fuel, "round {round}");
        }
        for id in 1..=3 {
            let own = cluster.client_of(id).status().await.unwrap();
            let in_force_there = own.limits.unwrap().fuel_per_call();
            assert_eq!(in_force_there, in_force, "node {id}, round {round}");
        }
        cluster.assert_equal();
    }
    assert!(answered > 0, "no change was answered, so this test shows little");
}
