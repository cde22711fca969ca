//! `conclave check --data-dir`: the calls of a real cluster as the check's input.

use std::{path::Path, process::Output};

use conclave_client::CallOptions;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Cluster, call, conclave, eventually, files, get, put};

/// Runs the verb on a node's directory, with a work directory for the copy, which must be
/// empty afterwards.
pub(crate) fn check(cluster: &Cluster, id: u64, key: &Path, arguments: &[&str]) -> Output {
    let work = TempDir::new().unwrap();
    let output = conclave()
        .arg("check")
        .args(arguments)
        .arg("--data-dir")
        .arg(&cluster.node(id).data_dir)
        .arg("--master-key-file")
        .arg(key)
        .arg("--work-dir")
        .arg(work.path())
        .output()
        .unwrap();
    assert!(files(work.path()).is_empty(), "a copy was left behind");
    output
}

fn refused(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "it was not refused: {stderr}");
    stderr
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clusters_calls_are_the_checks_input() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    for color in ["red", "green", "blue"] {
        put(&client, "color", color).await.unwrap();
    }
    let delete = json!({"key": "color"});
    call(&client, "kv.v1.KV/Delete", delete, CallOptions::write()).await.unwrap();
    let lease = json!({"key": "lease", "text": "short", "ttl_ms": 100});
    call(&client, "kv.v1.KV/Put", lease, CallOptions::write()).await.unwrap();
    eventually("the key expires by a tick", async || match get(&client, "lease").await {
        Err(error) if error.code_name() == "NOT_FOUND" => Ok(()),
        found => Err(format!("{found:?}")),
    })
    .await;
    cluster.caught_up(&[1, 2, 3]).await;
    let key = cluster.dir.path().join("master.key");
    let error = refused(&check(&cluster, 2, &key, &[]));
    assert!(error.contains("in use") && error.contains(&cluster.pid(2).to_string()), "{error}");
    for id in 1..=3 {
        cluster.stop(id);
    }
    let wrong = cluster.dir.path().join("wrong.key");
    assert!(conclave().args(["key", "generate"]).arg(&wrong).status().unwrap().success());
    let error = refused(&check(&cluster, 2, &wrong, &[]));
    assert!(error.contains("keyring") && error.contains("key"), "{error}");

    let checked = check(&cluster, 2, &key, &["--json"]);
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{said}");
    assert!(said.contains("5 calls and ") && said.contains(" ticks from entries 0 to "), "{said}");
    assert!(
        said.contains("of the log of node 2; the state is empty at first, as it was"),
        "{said}"
    );
    let report: Value = serde_json::from_slice(&checked.stdout).unwrap();
    let calls = &report["calls"];
    assert_eq!((&report["ok"], &calls["commands"]), (&json!(true), &json!(5)), "{report:#}");
    assert!(calls["refused"] == 0 && calls["ticks"].as_u64().unwrap() > 0, "{report:#}");

    let usage = check(&cluster, 2, &key, &["--calls", "calls.jsonl"]);
    assert_eq!(usage.status.code(), Some(2), "two sources of calls");
}
