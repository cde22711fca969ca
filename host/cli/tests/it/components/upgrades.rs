//! Successful upgrades and their effects.

use std::time::Instant;

use conclave_client::{CallOptions, Client, Consistency};
use serde_json::json;

use super::{load::Load, machines::*};
use crate::harness::{self, Cluster, Setup, eventually, get, put};
use conclave_testing::wat::Wat;

const CLIENTS: usize = 64;

/// An upgrade and a rollback under load: no acknowledged call is lost, and no call fails permanently.
#[tokio::test(flavor = "multi_thread")]
async fn a_live_upgrade_loses_nothing() {
    let (mut cluster, _dir) = cluster_of(&first(), &["--snapshot-entries=2000"]).await;
    let client = cluster.client();
    let initial_component = active(&client).await;
    let load = Load::start(CLIENTS, || cluster.client());
    load.runs(2000).await;

    let component = push_ready(&client, padded(&second().component(), 3 << 20)).await;
    let rehearsed = client.rehearse_component(&component[..8]).await.unwrap();
    assert!(rehearsed.ready, "{rehearsed:?}");
    load.runs(2000).await;
    let begun = Instant::now();
    let activated = client.activate_component(&component[..8], false).await.unwrap();
    assert_eq!((&activated.component, &activated.previous), (&component, &initial_component));
    load.runs(2000).await;
    eprintln!("activation: the longest pause of writes was {:?}", load.longest_pause(begun));
    // The request is repeated, as by a client that lost the response.
    let again = client.activate_component(&component, false).await.unwrap();
    assert_eq!(again.index, activated.index);

    ready(&client, &initial_component).await;
    let begun = Instant::now();
    let rolled_back = client.rollback_component(&component, false).await.unwrap();
    assert_eq!((&rolled_back.component, &rolled_back.previous), (&initial_component, &component));
    assert_eq!(
        client.rollback_component(&component, false).await.unwrap().index,
        rolled_back.index
    );
    load.runs(2000).await;
    eprintln!("rollback: the longest pause of writes was {:?}", load.longest_pause(begun));
    ready(&client, &component).await;
    client.activate_component(&component, false).await.unwrap();
    load.runs(500).await;

    let counts = load.stop().await;
    assert_eq!(counts.unknown, 0, "nothing was lost on the way");
    assert_eq!(all_agree(&cluster, &component).await, counts.acknowledged);
    // All nodes restart at once, from snapshots and logs.
    for id in 1..=3 {
        cluster.kill(id);
    }
    for id in 1..=3 {
        cluster.start_node(id);
    }
    cluster.serving().await;
    assert_eq!(counted(&client, Consistency::Linearizable).await, counts.acknowledged);
    assert_eq!(all_agree(&cluster, &component).await, counts.acknowledged);
    // The list of components has survived as well.
    let components = client.components().await.unwrap();
    assert_eq!(components.len(), 2);
    assert!(
        components[0].active && components[0].id == component && components[0].name == "second"
    );
    assert!(components[1].previous && components[1].id == initial_component);
}

/// The services, reflection and the description are immediately those of the active component.
/// Changes that break clients need an explicit permission.
#[tokio::test(flavor = "multi_thread")]
async fn the_api_follows_the_machine_and_breaking_changes_are_asked_for() {
    let with_service = |body: &str| {
        let source = format!("syntax = \"proto3\"; package t.v1; message M {{}} {body}");
        let mut compiler = protox::Compiler::with_file_resolver(Source(source));
        compiler.include_imports(true).open_file("t.proto").unwrap();
        Wat { descriptor_set: compiler.encode_file_descriptor_set(), ..first() }
    };
    let old = with_service("service S { rpc A(M) returns (M); rpc B(M) returns (M); }");
    let new = with_service("service S { rpc A(M) returns (M); rpc C(M) returns (M); }");
    let (cluster, _dir) = cluster_of(&old, &[]).await;
    let client = cluster.client();
    client.call_raw("t.v1.S/B", Vec::new()).await.unwrap();
    count(&client).await.unwrap();

    let component = push_ready(&client, new.component()).await;
    let diff = client.diff_component(&component).await.unwrap();
    let changes: Vec<_> = diff
        .changes
        .iter()
        .map(|change| (change.subject.as_str(), change.text.as_str(), change.breaking))
        .collect();
    let expected = [("t.v1.S/B", "is not served any more", true), ("t.v1.S/C", "is new", false)];
    assert_eq!(changes, expected);
    assert!(diff.restores);
    let refused = client.activate_component(&component, false).await.unwrap_err();
    assert_eq!(refused.code_name(), "FAILED_PRECONDITION");
    assert!(refused.message().contains("t.v1.S/B is not served any more"), "{refused}");
    assert!(refused.message().contains("--allow-breaking"), "{refused}");
    let before = active(&client).await;
    client.activate_component(&component, true).await.unwrap();

    for id in 1..=3 {
        let client = cluster.client_of(id);
        eventually("the node serves the new methods", async || {
            let known = methods(&client).await;
            match known == ["t.v1.S/A", "t.v1.S/C"] {
                true => Ok(()),
                false => Err(format!("{known:?}")),
            }
        })
        .await;
        let error = client.call_raw("t.v1.S/B", Vec::new()).await.unwrap_err();
        assert_eq!(error.code_name(), "UNIMPLEMENTED", "node {id}: {error}");
        let answer = client.call_raw("t.v1.S/C", Vec::new()).await;
        assert!(answer.is_ok(), "node {id}: {answer:?}");
    }
    // A rollback breaks clients of the new method.
    ready(&client, &before).await;
    let refused = client.rollback_component(&component, false).await.unwrap_err();
    assert!(refused.message().contains("t.v1.S/C"), "{refused}");
    client.rollback_component(&component, true).await.unwrap();
    assert_eq!(all_agree(&cluster, &before).await, 5);
}

struct Source(String);

impl protox::file::FileResolver for Source {
    fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
        protox::file::File::from_source(name, &self.0)
    }
}

/// Returns the methods in the state machine's description.
async fn methods(client: &Client) -> Vec<String> {
    let name = "conclave.machine.v1.Machine/Describe";
    let described = harness::call(client, name, json!({}), CallOptions::read()).await.unwrap();
    let methods = described["methods"].as_array().cloned().unwrap_or_default();
    methods.iter().map(|method| method["name"].as_str().unwrap().to_owned()).collect()
}

/// A newer program has another default component. That must not affect a cluster with data.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_data_goes_on_with_the_clusters_component() {
    let mut cluster = Cluster::start_with(Setup::default()).await;
    let client = cluster.client();
    put(&client, "key", "before").await.unwrap();
    let component = active(&client).await;
    let other = tempfile::TempDir::new().unwrap();
    let other = write(&other, "other.wasm", &first().component());
    for id in 1..=3 {
        cluster.stop(id);
        let mut command = cluster.command(id);
        command.arg("--component").arg(&other);
        cluster.run(id, command);
        cluster.serving().await;
    }
    assert_eq!(get(&client, "key").await.unwrap(), "before");
    put(&client, "key", "after").await.unwrap();
    cluster.caught_up(&[1, 2, 3]).await;
    for node in client.status().await.unwrap().nodes {
        assert_eq!(node.component, component);
    }
    for id in 1..=3 {
        let log = std::fs::read_to_string(&cluster.node(id).log).unwrap();
        assert!(log.contains("conclave component push"), "node {id} says how to change it: {log}");
    }
}

/// A rehearsal not only restores the newest snapshot, but also applies the calls since. A component
/// that cannot apply them is not ready.
#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_applies_what_was_really_sent() {
    let (cluster, _dir) = cluster_of(&first(), &[]).await;
    let client = cluster.client();
    count(&client).await.unwrap();
    cluster.caught_up(&[1, 2, 3]).await;
    for id in 1..=3 {
        cluster.client_of(id).snapshot().await.unwrap();
    }
    for _ in 0..5 {
        count(&client).await.unwrap();
    }
    cluster.caught_up(&[1, 2, 3]).await;
    let component = push_ready(&client, second().component()).await;
    let rehearsed = client.rehearse_component(&component).await.unwrap().component.unwrap();
    let entries: Vec<_> = rehearsed.nodes.iter().map(|node| node.entries).collect();
    assert_eq!(entries, [5, 5, 5]);

    let broken = Wat { apply: "unreachable", ..second() };
    let broken = push(&client, broken.component()).await.unwrap().id;
    let rehearsed = client.rehearse_component(&broken).await.unwrap();
    assert!(!rehearsed.ready);
    for node in rehearsed.component.unwrap().nodes {
        assert!(node.reason.contains("traps"), "{node:?}");
    }
    let refused = client.activate_component(&broken, false).await.unwrap_err();
    assert!(refused.message().contains("node 3: entry"), "{refused}");
    client.activate_component(&component, false).await.unwrap();
    assert_eq!(all_agree(&cluster, &component).await, 6);
}
