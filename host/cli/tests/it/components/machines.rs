//! State machines that count, and helpers of the tests.

use std::path::PathBuf;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use conclave_client::{CallOptions, Client, Consistency, Error, proto::cluster::Component};
use conclave_types::ComponentId;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Cluster, Setup, call, eventually};
use conclave_testing::{counters::version, wat::Wat};

/// Counts by one; has state version 1 and also restores 2.
pub(super) fn first() -> Wat {
    version("first", 1, 1, &[1, 2])
}

/// Counts by one; has state version 2 and also restores 1.
pub(super) fn second() -> Wat {
    version("second", 1, 2, &[1, 2])
}

/// Counts by one; has state version 1 and does not restore 2.
pub(super) fn narrow() -> Wat {
    version("narrow", 1, 1, &[1])
}

/// Returns a component with this many meaningless bytes appended.
pub(super) fn padded(component: &[u8], bytes: usize) -> Bytes {
    let mut padded = component.to_vec();
    let name = b"\x07padding";
    // A custom section: its kind, and its size in LEB128, five bytes long.
    padded.push(0);
    let mut size = name.len() + bytes;
    for position in 0..5 {
        let more = if position < 4 { 0x80 } else { 0 };
        padded.push((size & 0x7f) as u8 | more);
        size >>= 7;
    }
    padded.extend_from_slice(name);
    // Bytes that do not compress or repeat, so that a misplaced part is detected.
    let mut state = 7_u32;
    padded.extend((0..bytes).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    }));
    padded.into()
}

/// Starts a cluster with a state machine. Also returns the directory of its component.
pub(super) async fn cluster_of(machine: &Wat, flags: &[&str]) -> (Cluster, TempDir) {
    let dir = TempDir::new().unwrap();
    let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    let component = Some(write(&dir, "initial_component.wasm", &machine.component()));
    (Cluster::start_with(Setup { component, flags }).await, dir)
}

/// Writes a component to a file.
pub(super) fn write(dir: &TempDir, name: &str, component: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, component).unwrap();
    path
}

/// Sends one count.
pub(super) async fn count(client: &Client) -> Result<(), Error> {
    let options = CallOptions::write();
    apply(client, options).await.map(drop)
}

pub(super) async fn apply(client: &Client, options: CallOptions) -> Result<Value, Error> {
    call(client, "conclave.machine.v1.Machine/Apply", json!({"method": "any"}), options).await
}

/// Returns the count, as this client's nodes have it.
pub(super) async fn counted(client: &Client, consistency: Consistency) -> i64 {
    let options = CallOptions::read().consistency(consistency);
    let request = json!({"method": "any"});
    let answer = call(client, "conclave.machine.v1.Machine/Query", request, options).await.unwrap();
    let words = BASE64.decode(answer["response"].as_str().unwrap()).unwrap();
    i64::from_le_bytes(words[..8].try_into().unwrap())
}

/// Asserts that every node has the same count and runs this component.
pub(super) async fn all_agree(cluster: &Cluster, component: &str) -> i64 {
    cluster.caught_up(&[1, 2, 3]).await;
    let mut numbers = Vec::new();
    for id in 1..=3 {
        // The node's own standby answers, once it has applied this far.
        numbers.push(counted(&cluster.client_of(id), Consistency::Linearizable).await);
    }
    assert!(numbers.iter().all(|number| *number == numbers[0]), "{numbers:?}");
    for node in cluster.client().status().await.unwrap().nodes {
        assert_eq!(node.component, component, "node {}", node.id);
    }
    numbers[0]
}

/// Pushes a component.
pub(super) async fn push(client: &Client, component: Bytes) -> Result<Component, Error> {
    let id = ComponentId::of(&component).0;
    client.push_component(id, component, |_| {}).await
}

/// Pushes a component, waits until every node is ready for it, and returns its id.
pub(super) async fn push_ready(client: &Client, component: Bytes) -> String {
    let component = push(client, component).await.unwrap();
    ready(client, &component.id).await;
    component.id
}

/// Waits until every node is ready for a component.
pub(super) async fn ready(client: &Client, id: &str) {
    eventually("every node is ready", async || {
        let components = client.components().await.map_err(|error| error.to_string())?;
        let component =
            components.iter().find(|component| component.id == id).ok_or("it is not there")?;
        match component.nodes.iter().all(|node| node.state == "ready") {
            true => Ok(()),
            false => Err(format!("{:?}", component.nodes)),
        }
    })
    .await;
}

/// Returns the active component's id.
pub(super) async fn active(client: &Client) -> String {
    let components = client.components().await.unwrap();
    components.into_iter().find(|component| component.active).unwrap().id
}
