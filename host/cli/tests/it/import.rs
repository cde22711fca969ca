//! Real input: the output of `cargo metadata` for this workspace, megabytes of JSON with tens of
//! thousands of values, imported while the leader is killed half-way.
//!
//! The test shows that the import finishes, every key is on every node, a killed node catches up,
//! and no data is lost when all nodes die. No key or value occurs in any file, neither while the
//! nodes run nor afterwards.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::harness::{Cluster, Setup, conclave, eventually, files};

/// The same rule as in `conclave kv import`, implemented a second time so that the two check
/// each other.
fn flatten(value: &Value, key: String, into: &mut BTreeMap<String, String>) {
    let child = |name: &str| {
        let name = name.replace('~', "~0").replace('/', "~1");
        if key.is_empty() { name } else { format!("{key}/{name}") }
    };
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                flatten(value, child(name), into);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (position, value) in items.iter().enumerate() {
                flatten(value, child(&position.to_string()), into);
            }
        }
        Value::String(text) => {
            into.insert(key, text.clone());
        }
        other => {
            into.insert(key, other.to_string());
        }
    }
}

fn metadata(path: &Path) -> BTreeMap<String, String> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.len() > 1_000_000, "the input is real: megabytes");
    fs::write(path, &output.stdout).unwrap();
    let mut expected = BTreeMap::new();
    flatten(&serde_json::from_slice(&output.stdout).unwrap(), String::new(), &mut expected);
    assert!(expected.len() > 10_000, "the input is real: {} values", expected.len());
    expected
}

/// Returns all keys and texts of one node's own state.
fn listed(endpoint: &str) -> Result<BTreeMap<String, String>, String> {
    let mut listing = conclave();
    listing.args(["kv", "list", "--json", "--consistency", "stale", "--endpoints", endpoint]);
    let output = listing.output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let entries: Vec<Value> = serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())?;
    Ok(entries
        .iter()
        .map(|entry| {
            let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
            (text("key"), text("text"))
        })
        .collect())
}

async fn holds(cluster: &Cluster, id: u64, expected: &BTreeMap<String, String>) {
    let endpoint = cluster.node(id).client.clone();
    eventually(&format!("node {id} has every key"), async || {
        let listed = listed(&endpoint)?;
        let wrong = expected.iter().find(|(key, text)| listed.get(*key) != Some(text));
        match wrong {
            Some((key, _)) => Err(format!(
                "{key}: has {:?}, {} of {} keys",
                listed.get(key),
                listed.len(),
                expected.len()
            )),
            None if listed.len() != expected.len() => Err("has keys that were not put".to_owned()),
            None => Ok(()),
        }
    })
    .await;
}

/// Checks that neither keys nor values are readable on the disk.
fn no_plaintext(cluster: &Cluster, expected: &BTreeMap<String, String>) {
    // Short texts occur by chance in any megabyte of noise, and some are names that are not secret.
    let longest = |texts: Vec<&String>| {
        let mut texts: Vec<String> = texts.into_iter().filter(|t| t.len() >= 24).cloned().collect();
        texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
        texts.dedup();
        texts
    };
    let mut needles = longest(expected.keys().collect());
    needles.truncate(2000);
    let mut values = longest(expected.values().collect());
    values.truncate(2000);
    needles.extend(values);
    // Index of the texts by their first bytes, for a fast search.
    let beginnings: HashMap<&[u8], &str> =
        needles.iter().map(|needle| (&needle.as_bytes()[..24], needle.as_str())).collect();
    let mut searched = 0;
    for node in &cluster.nodes {
        for path in files(&node.data_dir) {
            let Ok(bytes) = fs::read(&path) else { continue }; // Purged meanwhile.
            searched += bytes.iter().filter(|byte| **byte != 0).count();
            for window in bytes.windows(24) {
                let found = beginnings.get(window);
                assert!(found.is_none(), "{found:?} is readable in {}", path.display());
            }
        }
    }
    assert!(searched > 3_000_000, "searched {searched} bytes: the data was not there");
}

#[tokio::test(flavor = "multi_thread")]
async fn survives_the_leader_and_leaves_no_plaintext() {
    // Small limits cause snapshots and purges during the import, so that restarts use them.
    let setup = Setup {
        flags: vec!["--snapshot-entries=100".into(), "--keep-entries=50".into()],
        ..Setup::default()
    };
    let mut cluster = Cluster::start_with(setup).await;
    let file = cluster.dir.path().join("metadata.json");
    let expected = metadata(&file);
    let endpoints = cluster.nodes.iter().map(|node| node.client.clone()).collect::<Vec<_>>();

    let leader = cluster.leader().await;
    let client = cluster.client();
    let mut import = conclave()
        .args(["kv", "import", "--timeout", "60s", "--endpoints", &endpoints.join(",")])
        .arg(&file)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = import.stderr.take().unwrap();
    let said = std::thread::spawn(move || {
        BufReader::new(stderr).lines().map_while(Result::ok).collect::<Vec<_>>().join("\n")
    });
    // The import is half done when half of the batches have been applied.
    let batches = (expected.len() / 128) as u64;
    eventually("half of the import is done", async || {
        let status = client.status().await.map_err(|error| error.to_string())?;
        let applied = status.nodes.iter().map(|node| node.applied).max().unwrap_or_default();
        if applied >= batches / 2 { Ok(()) } else { Err(format!("{applied} entries")) }
    })
    .await;
    assert!(import.try_wait().unwrap().is_none(), "the import was over before the leader died");
    cluster.kill(leader);
    let output = import.wait_with_output().unwrap();
    let said = said.join().unwrap();
    assert!(output.status.success(), "the import failed: {said}");

    for id in (1..=3).filter(|id| *id != leader) {
        holds(&cluster, id, &expected).await;
    }
    cluster.start_node(leader);
    holds(&cluster, leader, &expected).await;
    no_plaintext(&cluster, &expected);

    for id in 1..=3 {
        cluster.kill(id);
    }
    no_plaintext(&cluster, &expected);
    for id in 1..=3 {
        cluster.start_node(id);
    }
    cluster.serving().await;
    for id in 1..=3 {
        holds(&cluster, id, &expected).await;
    }
    let status = client.status().await.unwrap();
    assert!(status.nodes.iter().all(|n| n.snapshot > 0 && n.purged > 0), "{status:?}");
}
