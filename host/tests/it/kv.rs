//! The default machine through every node, and what the answers promise.

use conclave_client::{CallOptions, Client};
use serde_json::json;

use crate::harness::{Cluster, call, get, put};

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
