//! `conclave kv export`: all keys at one revision, and their import.
//!
//! Goal: an export under load is one state of the store. Method: one batch writes the same number
//! to keys at both ends of the key range. In every export the numbers must be equal.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use conclave_client::CallOptions;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Cluster, call, put};

/// Enough for several pages.
const KEYS: usize = 2500;

#[tokio::test(flavor = "multi_thread")]
async fn export_has_one_revision_and_comes_back() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    let dir = TempDir::new().unwrap();
    let document: serde_json::Map<_, _> =
        (0..KEYS).map(|at| (format!("m{at:05}"), json!(format!("value {at}")))).collect();
    let source = dir.path().join("source.json");
    fs::write(&source, Value::Object(document).to_string()).unwrap();
    let imported = cluster.verb(&["kv", "import", source.to_str().unwrap(), "--prefix", "k/"]);
    assert!(imported.status.success(), "{imported:?}");
    let put_raw = async |request| {
        call(&client, "kv.v1.KV/Put", request, CallOptions::write()).await.unwrap();
    };
    put_raw(json!({"key": "k/bytes", "value": "AP+A"})).await;
    put_raw(json!({"key": "k/short", "text": "x", "ttlMs": "3600000"})).await;
    put(&client, "other", "x").await.unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (client, stop) = (cluster.client(), Arc::clone(&stop));
        async move {
            for number in 0_u64.. {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                let put = |key: &str| json!({"put": {"key": key, "text": number.to_string()}});
                let request = json!({"operations": [put("k/a"), put("k/z")]});
                call(&client, "kv.v1.KV/Batch", request, CallOptions::write()).await.unwrap();
            }
        }
    });
    let file = dir.path().join("export.json");
    let export = ["kv", "export", file.to_str().unwrap(), "--prefix", "k/"];
    for _ in 0..5 {
        let exported = tokio::task::block_in_place(|| cluster.verb(&export));
        assert!(exported.status.success(), "{exported:?}");
        let document: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let keys = document["keys"].as_array().unwrap();
        let text =
            |key: &str| keys.iter().find(|found| found["key"] == key).unwrap()["text"].clone();
        assert_eq!(text("k/a"), text("k/z"), "at revision {}", document["revision"]);
        assert_eq!(keys.len(), KEYS + 4);
    }
    stop.store(true, Ordering::Release);
    writer.await.unwrap();

    let list = |prefix: &str| {
        let listed = cluster.verb(&["kv", "list", prefix, "--json"]);
        serde_json::from_slice::<Vec<Value>>(&listed.stdout).unwrap()
    };
    let exported = cluster.verb(&export);
    assert!(exported.status.success(), "{exported:?}");
    let imported = cluster.verb(&["kv", "import", file.to_str().unwrap(), "--prefix", "copy/"]);
    assert!(imported.status.success(), "{imported:?}");
    let (before, after) = (list("k/"), list("copy/k/"));
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(after["key"], format!("copy/{}", before["key"].as_str().unwrap()));
        for field in ["text", "value"] {
            assert_eq!(before[field], after[field]);
        }
        let expires = |found: &Value| found["expires_at_ms"].as_u64();
        match (expires(before), expires(after)) {
            (None, None) => {}
            (Some(before), Some(after)) => assert!(before.abs_diff(after) < 60_000),
            differ => panic!("{differ:?}"),
        }
    }
}
