//! An activation that takes seconds. It occupies openraft's state machine task, and must not make
//! the node unresponsive.

use std::time::{Duration, Instant};

use conclave_client::{CallOptions, Consistency};
use tokio::task::JoinSet;

use super::machines::*;
use conclave_testing::{counters::version, wat::Wat};

/// Maximum number of writes. openraft's queue to the state machine has 1024 places by default, one
/// for each step of the commit index.
const WRITES_MAX: usize = 6000;
const COMMITTED: &str = "conclave_raft_committed_index";

/// Counts by one, and needs some seconds to restore a state.
fn slow() -> Wat {
    let counter = version("slow", 1, 1, &[1]);
    Wat {
        finish: format!("(call $spin) {}", counter.finish).leak(),
        more: format!(
            "{} (func $spin (local i64) (local.set 0 (i64.const 8000000000))
               (loop (br_if 0 (i64.ne (i64.const 0)
                 (local.tee 0 (i64.sub (local.get 0) (i64.const 1)))))))",
            counter.more
        ),
        ..counter
    }
}

/// Writes wait for the activation, and each is answered. Nothing else waits: the nodes answer
/// heartbeats and votes, so no leader is elected.
#[tokio::test(flavor = "multi_thread")]
async fn slow_activation_deposes_no_leader() {
    let (cluster, _dir) = cluster_of(&first(), &[]).await;
    let leader = cluster.leader().await;
    let client = cluster.client_of(leader);
    count(&client).await.unwrap();
    let component = push_ready(&client, slow().component()).await;
    let term = client.status().await.unwrap().term;
    let began = Instant::now();
    let activating = tokio::spawn({
        let (client, component) = (client.clone(), component.clone());
        async move { client.activate_component(&component, false).await.map(|_| began.elapsed()) }
    });
    // Sent one after the other, so that each is a step of the commit index. A connection has room
    // for some hundreds.
    let mut writes = JoinSet::new();
    let writers: Vec<_> = (0..8).map(|_| cluster.client_of(leader)).collect();
    let reader = cluster.client_of(leader);
    let mut longest_read = Duration::ZERO;
    let before = cluster.metric(leader, COMMITTED).unwrap();
    while !activating.is_finished() && writes.len() < WRITES_MAX {
        let writer = writers[writes.len() % writers.len()].clone();
        writes.spawn(async move {
            let options = CallOptions::write().deadline(Duration::from_secs(60));
            apply(&writer, options).await.map_err(|error| error.to_string())
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        if writes.len().is_multiple_of(100) {
            let began = Instant::now();
            counted(&reader, Consistency::Stale).await;
            longest_read = longest_read.max(began.elapsed());
        }
    }
    let committed = cluster.metric(leader, COMMITTED).unwrap() - before;
    let count = writes.len();
    let took = activating.await.unwrap().unwrap();
    while let Some(answered) = writes.join_next().await {
        answered.unwrap().unwrap();
    }
    eprintln!(
        "the activation took {took:?}; {committed} entries were committed meanwhile; all were answered after {:?}; \
         the longest stale read took {longest_read:?}",
        began.elapsed()
    );
    assert!(count > 2000, "{count} writes: it was not slow");
    assert!(committed + 300.0 > count as f64, "{committed} of {count} writes were committed");
    let status = client.status().await.unwrap();
    assert_eq!((status.term, status.leader), (term, leader), "{:?}", status.nodes);
    assert_eq!(all_agree(&cluster, &component).await, 1 + count as i64);
}
