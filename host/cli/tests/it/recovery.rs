//! Recovery after nodes die: every acknowledged write is on every node.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use conclave_client::CallOptions;
use serde_json::json;

use crate::harness::{Cluster, Setup, call, eventually, get, get_stale, put};

const PUTS: usize = 600;

/// Waits until some more puts have been acknowledged.
async fn goes_on(done: &AtomicUsize) {
    let enough = (done.load(Ordering::Relaxed) + 40).min(PUTS);
    eventually("writing continues", async || {
        let now = done.load(Ordering::Relaxed);
        if now >= enough { Ok(()) } else { Err(format!("{now} of {enough} puts")) }
    })
    .await;
}

/// Nodes are killed in turn under load. Finally, each acknowledged put is on every node.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_puts_survive_any_order_of_kills() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    let done = Arc::new(AtomicUsize::new(0));
    let writer = tokio::spawn({
        let (client, done) = (client.clone(), done.clone());
        async move {
            let mut acknowledged = Vec::new();
            for number in 0..PUTS {
                let key = format!("key/{number:04}");
                if put(&client, &key, &number.to_string()).await.is_ok() {
                    acknowledged.push((key, number.to_string()));
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
            acknowledged
        }
    });
    for id in [1, 2, 3] {
        goes_on(&done).await;
        cluster.kill(id);
        goes_on(&done).await;
        cluster.start_node(id);
        cluster.serving().await;
    }
    let acknowledged = writer.await.unwrap();
    assert!(acknowledged.len() > 500, "{} puts were acknowledged", acknowledged.len());
    cluster.caught_up(&[1, 2, 3]).await;
    for id in 1..=3 {
        let client = cluster.client_of(id);
        for (key, text) in &acknowledged {
            assert_eq!(&get_stale(&client, key).await.unwrap(), text, "{key} on node {id}");
        }
    }
}

/// A killed leader may be back before the others have noticed. It must not continue to lead in its
/// old term: it may lack entries that it had sent, and would assign their indexes to other entries.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_back_at_once_is_elected_anew() {
    let flags = ["--election-min=3s", "--election-max=4s"];
    let setup = Setup { flags: flags.map(str::to_owned).into(), ..Setup::default() };
    let mut cluster = Cluster::start_with(setup).await;
    let (client, leader) = (cluster.client(), cluster.leader().await);
    let before = client.status().await.unwrap().term;
    let done = Arc::new(AtomicUsize::new(0));
    let puts = (0..PUTS / 10).map(|writer| {
        let (client, done) = (client.clone(), done.clone());
        tokio::spawn(async move {
            for number in 0..10 {
                put(&client, &format!("key/{writer}/{number}"), "text").await.unwrap();
                done.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let puts: Vec<_> = puts.collect();
    goes_on(&done).await;
    cluster.kill(leader);
    cluster.start_node(leader);
    for writer in puts {
        writer.await.unwrap();
    }
    cluster.caught_up(&[1, 2, 3]).await;
    assert!(client.status().await.unwrap().term > before, "it still leads in term {before}");
    for id in 1..=3 {
        let client = cluster.client_of(id);
        for (writer, number) in (0..PUTS).map(|put| (put / 10, put % 10)) {
            let text = get_stale(&client, &format!("key/{writer}/{number}")).await.unwrap();
            assert_eq!(text, "text", "key/{writer}/{number} on node {id}");
        }
    }
}

/// A stopping leader has proposed commands whose outcome it will not learn. If one of them were
/// reported as not applied, the client would send it again, and it would be applied twice.
#[tokio::test(flavor = "multi_thread")]
async fn no_command_is_applied_twice_when_the_leader_stops() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for round in 0..4 {
        let leader = cluster.leader().await;
        for writer in 0..64 {
            let follower = (leader + writer % 2) % 3 + 1;
            let (client, stop) = (cluster.client_of(follower), stop.clone());
            writers.push(tokio::spawn(async move {
                let mut sent = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("{round}/{writer}/{}", sent.len());
                    let request = json!({ "key": key, "text": "text" });
                    // Some calls have an unknown outcome and are not sent again.
                    let _ = call(&client, "kv.v1.KV/Put", request, CallOptions::write()).await;
                    sent.push(key);
                }
                sent
            }));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        cluster.stop(leader);
        cluster.start_node(leader);
        cluster.serving().await;
        stop.store(true, Ordering::Relaxed);
        let sent = futures::future::join_all(writers.drain(..)).await;
        stop.store(false, Ordering::Relaxed);
        let sent: Vec<String> = sent.into_iter().flat_map(Result::unwrap).collect();
        assert!(sent.len() > 100, "{} puts", sent.len());
        for key in sent {
            let got = call(&client, "kv.v1.KV/Get", json!({ "key": key }), CallOptions::read());
            if let Ok(got) = got.await {
                assert_eq!(got["kv"]["version"], "1", "{key} was put twice");
            }
        }
    }
}

/// A follower that was down so long that the entries it needs are purged gets a snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_was_away_gets_a_snapshot() {
    let setup = Setup {
        flags: vec!["--snapshot-entries=100".into(), "--keep-entries=0".into()],
        ..Setup::default()
    };
    let mut cluster = Cluster::start_with(setup).await;
    let leader = cluster.leader().await;
    let away = leader % 3 + 1;
    cluster.kill(away);
    let client = cluster.client();
    let puts = (0..600).map(|number| {
        let client = client.clone();
        async move { put(&client, &format!("key/{number}"), "text").await.unwrap() }
    });
    futures::future::join_all(puts).await;
    let purged = eventually("the leader has purged", async || {
        let status = client.status().await.map_err(|error| error.to_string())?;
        let purged = status.nodes.iter().map(|node| node.purged).max().unwrap_or_default();
        if purged > 300 { Ok(purged) } else { Err(format!("{:?}", status.nodes)) }
    })
    .await;
    cluster.start_node(away);
    cluster.caught_up(&[1, 2, 3]).await;
    let own = cluster.client_of(away);
    for number in 0..600 {
        assert_eq!(get_stale(&own, &format!("key/{number}")).await.unwrap(), "text");
    }
    let status = client.status().await.unwrap();
    let node = status.nodes.iter().find(|node| node.id == away).unwrap();
    assert!(node.snapshot >= purged, "{node:?}");
    // The follower can be restarted from that snapshot.
    cluster.stop(away);
    cluster.start_node(away);
    cluster.caught_up(&[1, 2, 3]).await;
    assert_eq!(get_stale(&own, "key/599").await.unwrap(), "text");
}

/// With two of three nodes dead, no write is acknowledged and no linearizable read answered; stale
/// reads are. After one node is back, the cluster serves again.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_promised() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    put(&client, "key", "before").await.unwrap();
    cluster.caught_up(&[1, 2, 3]).await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    for id in &others {
        cluster.kill(*id);
    }
    let impatient = conclave_client::Client::builder()
        .endpoints([cluster.node(leader).client.clone()])
        .deadline(Duration::from_secs(4))
        .build()
        .unwrap();
    let refused = put(&impatient, "key", "after").await.unwrap_err();
    assert!(
        refused.is_unavailable() || refused.is_deadline() || refused.outcome_unknown(),
        "{refused}"
    );
    let refused = get(&impatient, "key").await.unwrap_err();
    assert!(refused.is_unavailable() || refused.is_deadline(), "{refused}");
    assert_eq!(get_stale(&impatient, "key").await.unwrap(), "before");
    eventually("health says so", async || match impatient.is_serving().await {
        Ok(false) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    cluster.start_node(others[0]);
    put(&client, "key", "again").await.unwrap();
    assert_eq!(get(&client, "key").await.unwrap(), "again");
}

/// A node that lost its data directory must not vote again under its old id.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_data_is_refused() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    put(&client, "key", "text").await.unwrap();
    cluster.caught_up(&[1, 2, 3]).await;
    cluster.kill(1);
    std::fs::remove_dir_all(&cluster.node(1).data_dir).unwrap();
    cluster.start_node(1);
    eventually("the node is refused by name", async || {
        let said = (1..=3).map(|id| cluster.log_tail(id)).collect::<String>();
        if said.contains("it has lost its log and its votes") { Ok(()) } else { Err(said) }
    })
    .await;
    put(&client, "key", "still").await.unwrap();
    let status = client.status().await.unwrap();
    assert!(
        status
            .nodes
            .iter()
            .any(|node| node.id == 1 && node.applied == 0 || node.role == "unreachable"),
        "{status:?}"
    );
}

/// Without a leader no call is proposed, so after a deadline no outcome is unknown.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_without_a_leader_leaves_nothing_in_doubt() {
    let mut cluster = Cluster::start().await;
    put(&cluster.client(), "key", "before").await.unwrap();
    let leader = cluster.leader().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    cluster.kill(leader);
    cluster.kill(others[0]);
    let endpoint = [cluster.node(others[1]).client.clone()];
    let client = conclave_client::Client::builder().endpoints(endpoint.clone()).build().unwrap();
    eventually("health says so", async || match client.is_serving().await {
        Ok(false) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let hasty = conclave_client::Client::builder().endpoints(endpoint);
    let hasty = hasty.deadline(Duration::from_millis(400)).build().unwrap();
    let refused = put(&hasty, "key", "after").await.unwrap_err();
    assert!(refused.not_applied(), "{refused:?}");
}
