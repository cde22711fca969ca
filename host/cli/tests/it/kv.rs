//! The default state machine through every node, and the guarantees of its responses.

use conclave_client::{CallOptions, Client};
use serde_json::json;

use crate::harness::{Cluster, Setup, call, eventually, get, get_stale, put};

/// A read through any node sees every put that was acknowledged through any other before it.
#[tokio::test(flavor = "multi_thread")]
async fn reads_are_linearizable_on_every_node() {
    let cluster = Cluster::start().await;
    let clients: Vec<Client> = (1..=3).map(|id| cluster.client_of(id)).collect();
    for round in 0..60 {
        let text = round.to_string();
        put(&clients[round % 3], "key", &text).await.unwrap();
        for client in &clients {
            assert_eq!(get(client, "key").await.unwrap(), text, "round {round}");
        }
    }
}

/// Every key is incremented by compare-and-swap through all nodes at once; no increment is lost.
#[tokio::test(flavor = "multi_thread")]
async fn transactions_compare_and_swap() {
    let cluster = Cluster::start().await;
    put(&cluster.client(), "counter", "0").await.unwrap();
    let workers = (1..=3).map(|id| {
        let client = cluster.client_of(id);
        tokio::spawn(async move {
            let mut done = 0;
            while done < 15 {
                let now: u64 = get(&client, "counter").await.unwrap().parse().unwrap();
                let request = json!({
                    "compares": [{ "key": "counter", "text": now.to_string() }],
                    "then": [{ "put": { "key": "counter", "text": (now + 1).to_string() } }],
                });
                let options = CallOptions::write();
                let answer = call(&client, "kv.v1.KV/Txn", request, options).await.unwrap();
                if answer["succeeded"] == true {
                    done += 1;
                }
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    assert_eq!(get(&cluster.client(), "counter").await.unwrap(), "45");
}

async fn put_for(client: &Client, key: &str, ttl_ms: u64) {
    let request = json!({ "key": key, "text": "text", "ttlMs": ttl_ms.to_string() });
    call(client, "kv.v1.KV/Put", request, CallOptions::write()).await.unwrap();
}

/// Waits until a key is gone on every node without any write: the leader ticks when it is due.
async fn is_gone_everywhere(cluster: &Cluster, key: &str) {
    for id in 1..=3 {
        let client = cluster.client_of(id);
        eventually("the key expires", async || match get_stale(&client, key).await {
            Ok(text) => Err(format!("node {id} still has {text}")),
            Err(error) if error.to_string().contains("there is no key") => Ok(()),
            Err(error) => Err(error.to_string()),
        })
        .await;
    }
}

/// A key with a TTL expires in time without writes: under the leader at which it was put, under the
/// next one, and after a restart of all nodes from a snapshot, which does not contain the state
/// machine's wake-up time.
#[tokio::test(flavor = "multi_thread")]
async fn keys_expire_by_themselves() {
    let setup = Setup { flags: vec!["--snapshot-entries=100".into()], ..Setup::default() };
    let mut cluster = Cluster::start_with(setup).await;
    let client = cluster.client();
    put_for(&client, "stays", 3_600_000).await;
    put_for(&client, "first", 300).await;
    assert_eq!(get(&client, "first").await.unwrap(), "text");
    is_gone_everywhere(&cluster, "first").await;

    put_for(&client, "second", 2_000).await;
    let leader = cluster.leader().await;
    cluster.kill(leader);
    cluster.start_node(leader);
    is_gone_everywhere(&cluster, "second").await;

    put_for(&client, "third", 4_000).await;
    for number in 0..150 {
        put(&client, &format!("key/{number}"), "text").await.unwrap();
    }
    eventually("a snapshot is taken", async || {
        let status = client.status().await.map_err(|error| error.to_string())?;
        let least = status.nodes.iter().map(|node| node.snapshot).min().unwrap_or_default();
        if least > 0 { Ok(()) } else { Err(format!("the oldest is at {least}")) }
    })
    .await;
    for id in 1..=3 {
        cluster.kill(id);
    }
    for id in 1..=3 {
        cluster.start_node(id);
    }
    is_gone_everywhere(&cluster, "third").await;
    assert_eq!(get(&client, "stays").await.unwrap(), "text");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_may_live_for_days_and_says_so() {
    let cluster = Cluster::start().await;
    let put = cluster.verb(&["kv", "put", "key", "text", "--ttl", "7d"]);
    assert!(put.status.success(), "{put:?}");
    let get = cluster.verb(&["kv", "get", "key"]);
    assert_eq!(get.stdout, b"text\n");
    let remark = String::from_utf8(get.stderr).unwrap();
    assert!(remark.contains("expires in 6days 23h"), "{remark}");
    let get = cluster.verb(&["kv", "get", "key", "--json"]);
    let get: serde_json::Value = serde_json::from_slice(&get.stdout).unwrap();
    assert!(get["expires_at_ms"].as_u64().unwrap() > 0, "{get}");
    let raw = cluster.verb(&["kv", "get", "key", "--raw"]);
    assert_eq!((raw.stdout, raw.stderr), (b"text".to_vec(), Vec::new()));
}
