//! `conclave recover`: repairs of directories with which no node can start.

use std::{path::PathBuf, process::Output};

use conclave_client::CallOptions;
use serde_json::json;
use tempfile::TempDir;

use crate::{
    divergence::{COUNT, apply},
    harness::{self, Cluster, Setup, conclave, eventually, get, put},
};
use conclave_testing::{counters::version, wat::Wat};

fn recover(cluster: &Cluster, id: u64, arguments: &[&str]) -> Output {
    let mut command = conclave();
    command.arg("recover").args(arguments).arg("--data-dir").arg(&cluster.node(id).data_dir);
    command.arg("--master-key-file").arg(cluster.dir.path().join("master.key"));
    command.output().unwrap()
}

fn skip(cluster: &Cluster, id: u64, index: u64) -> Output {
    recover(cluster, id, &["--uncommitted", "--trap-entry", &index.to_string()])
}

fn assert_refused(refused: &Output, says: &str) {
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && why.contains(says), "not {says:?}: {refused:?}");
}

/// Puts a key and returns the index of the entry.
async fn put_at(cluster: &Cluster, key: &str) -> u64 {
    let client = cluster.client();
    let method = client.method("kv.v1.KV/Put").await.unwrap();
    let request = json!({ "key": key, "text": "x" });
    let answer = client.call_json_with(&method, request, &CallOptions::write()).await.unwrap();
    answer.index.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn entry_is_skipped_on_stopped_nodes() {
    let mut cluster = Cluster::start().await;
    put_at(&cluster, "covered").await;
    let snapshot = cluster.client_of(1).snapshot().await.unwrap();
    let mut indexes = Vec::new();
    for key in ["first", "second", "third"] {
        indexes.push(put_at(&cluster, key).await);
    }
    cluster.caught_up(&[1, 2, 3]).await;
    assert_refused(&skip(&cluster, 1, indexes[1]), "in use");
    for id in 1..=3 {
        cluster.kill(id);
    }
    assert_refused(&skip(&cluster, 1, snapshot), "part of the newest snapshot");
    assert_refused(&skip(&cluster, 1, indexes[2] + 100), "the log ends at entry");
    for id in 1..=3 {
        let skipped = skip(&cluster, id, indexes[1]);
        let said = String::from_utf8_lossy(&skipped.stdout);
        let is_recorded = said.contains("(kv.v1.KV/Put) is recorded as trapped");
        assert!(skipped.status.success() && is_recorded, "{skipped:?}");
    }
    let again = skip(&cluster, 1, indexes[1]);
    assert!(String::from_utf8_lossy(&again.stdout).contains("had trapped before"), "{again:?}");
    for id in 1..=3 {
        cluster.start_node(id);
    }
    cluster.serving().await;
    let client = cluster.client();
    let missing = get(&client, "second").await.unwrap_err();
    assert!(missing.to_string().contains("there is no key"), "it was skipped: {missing}");
    for key in ["covered", "first", "third"] {
        assert_eq!(get(&client, key).await.unwrap(), "x", "{key}");
    }
    cluster.caught_up(&[1, 2, 3]).await;
    cluster.assert_equal();
    assert!(cluster.log_tail(1).contains("an operator had the entry skipped"));

    // A replay also skips the entry, and shows that.
    cluster.stop(1);
    let mut replay = conclave();
    replay.args(["replay", "--show", &indexes[1].to_string(), "--json", "--data-dir"]);
    replay.arg(&cluster.node(1).data_dir).arg("--master-key-file");
    let shown = replay.arg(cluster.dir.path().join("master.key")).output().unwrap();
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(text.contains("an operator had the entry skipped"), "{shown:?}");
}

/// A node that alone skips an entry has a different state. The consistency checks detect that and
/// repair it.
#[tokio::test(flavor = "multi_thread")]
async fn node_that_alone_skips_an_entry_is_repaired() {
    let flags = vec!["--consistency-check-interval=300ms".to_owned()];
    let mut cluster = Cluster::start_with(Setup { component: None, flags }).await;
    let index = put_at(&cluster, "skipped").await;
    cluster.caught_up(&[1, 2, 3]).await;
    let id = cluster.leader().await % 3 + 1;
    cluster.kill(id);
    let skipped = skip(&cluster, id, index);
    assert!(skipped.status.success(), "{skipped:?}");
    cluster.start_node(id);
    eventually("the node is repaired", async || {
        let status = cluster.client_of(id).status().await.map_err(|error| error.to_string())?;
        let own = status.nodes.into_iter().find(|node| node.id == id).ok_or("unknown")?;
        let is_repaired = own.divergences == 1 && own.fatal_error.is_empty();
        if is_repaired { Ok(()) } else { Err(format!("{own:?}")) }
    })
    .await;
    put(&cluster.client(), "later", "x").await.unwrap();
    cluster.caught_up(&[1, 2, 3]).await;
    let own = harness::get_stale(&cluster.client_of(id), "skipped").await;
    assert_eq!(own.unwrap(), "x");
    cluster.assert_equal();
}

fn written(dir: &TempDir, name: &str, wat: &Wat) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, wat.component()).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_continues_from_its_snapshots_with_another_component() {
    let dir = TempDir::new().unwrap();
    let one = written(&dir, "one.wasm", &version("one", 1, 1, &[1]));
    let ten = written(&dir, "ten.wasm", &version("ten", 10, 1, &[1]));
    let text = dir.path().join("no-component");
    std::fs::write(&text, "text").unwrap();
    let foreign = written(&dir, "foreign.wasm", &version("foreign", 10, 2, &[2]));
    let component = |path: &PathBuf| ["--component".to_owned(), path.display().to_string()];
    let recovered = |cluster: &Cluster, id, path: &PathBuf| {
        let arguments = component(path);
        recover(cluster, id, &[&*arguments[0], &*arguments[1]])
    };
    let mut cluster =
        Cluster::start_with(Setup { component: Some(one.clone()), flags: Vec::new() }).await;
    for counted in 1..=3 {
        assert_eq!(apply(&cluster.client(), COUNT).await.unwrap().0, counted);
    }
    cluster.stop(1);
    assert_refused(&recovered(&cluster, 1, &ten), "there is no snapshot in this directory");
    cluster.start_node(1);
    cluster.caught_up(&[1, 2, 3]).await;
    for id in 1..=3 {
        cluster.client_of(id).snapshot().await.unwrap();
    }
    for counted in 4..=5 {
        assert_eq!(apply(&cluster.client(), COUNT).await.unwrap().0, counted);
    }
    // The component traps on a non-empty request.
    apply(&cluster.client(), b"1").await.unwrap_err();
    cluster.caught_up(&[1, 2, 3]).await;
    for id in 1..=3 {
        cluster.kill(id);
    }
    assert_refused(&recovered(&cluster, 1, &one), "is the active one of the snapshot");
    assert_refused(&recovered(&cluster, 1, &foreign), "restores [2] only");
    assert_refused(&recovered(&cluster, 1, &text), "component");
    for id in 1..=3 {
        let replaced = recovered(&cluster, id, &ten);
        let said = String::from_utf8_lossy(&replaced.stdout);
        let is_active = said.contains("is active from the snapshot at index");
        assert!(replaced.status.success() && is_active, "{replaced:?}");
    }
    for id in 1..=3 {
        cluster.start_node(id);
    }
    cluster.serving().await;
    // Three counts by the component before the snapshot; two, and one now, by the other.
    assert_eq!(apply(&cluster.client(), COUNT).await.unwrap().0, 33);
    cluster.caught_up(&[1, 2, 3]).await;
    cluster.assert_equal();
    let components = cluster.client().components().await.unwrap();
    let active: Vec<_> = components.iter().filter(|component| component.active).collect();
    assert_eq!((active.len(), &*active[0].name), (1, "ten"));
    assert!(
        components.iter().any(|component| component.previous && component.name == "one"),
        "{components:?}"
    );
}
