//! Snapshots between nodes: on bad links, from damaged disks, and into state machines with
//! slow restores.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use conclave_client::{CallOptions, Client, proto::cluster::Node};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    harness::{Cluster, Setup, call, eventually, files, get, get_stale, put},
    link::Link,
};
use conclave_testing::{counters::version, wat::Wat};

/// Puts texts that together make a state of this many bytes.
async fn fill(client: &Client, bytes: usize) {
    const TEXT_BYTES: usize = 256 << 10;
    for number in 0..bytes / TEXT_BYTES {
        let text = format!("{number:08}").repeat(TEXT_BYTES / 8);
        put(client, &format!("large/{number}"), &text).await.unwrap();
    }
}

async fn node(client: &Client, id: u64) -> Result<Node, String> {
    let status = client.status().await.map_err(|error| error.to_string())?;
    status.nodes.into_iter().find(|node| node.id == id).ok_or_else(|| "no such node".to_owned())
}

/// Waits until a node has purged the entries that a node at index `behind` needs.
async fn purged_beyond(client: &Client, id: u64, behind: u64) {
    eventually("the log is purged", async || {
        let node = node(client, id).await?;
        if node.purged > behind { Ok(()) } else { Err(format!("{node:?}")) }
    })
    .await;
}

/// Starts a cluster whose nodes reach one of the followers only through a link. That node
/// is killed.
async fn with_link(flags: &[&str]) -> (Cluster, Link, u64, u64) {
    let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    let mut cluster = Cluster::prepared(Setup { flags, ..Setup::default() });
    let away = 3;
    let link = Link::to(cluster.node(away).peer.clone()).await;
    cluster.reach(away, link.address.clone());
    for id in 1..=3 {
        cluster.start_node(id);
    }
    cluster.serving().await;
    put(&cluster.client(), "key", "before").await.unwrap();
    // The node behind the link must not lead.
    eventually("another node leads", async || {
        if cluster.leader().await != away {
            return Ok(());
        }
        cluster.stop(away);
        cluster.serving().await;
        let others = (1..=2).map(|id| cluster.node(id).client.clone());
        let others = Client::builder().endpoints(others).build().unwrap();
        put(&others, "key", "before").await.map_err(|error| error.to_string())?;
        cluster.start_node(away);
        Err("the node behind the link leads".to_owned())
    })
    .await;
    cluster.caught_up(&[1, 2, 3]).await;
    cluster.kill(away);
    let leader = cluster.leader().await;
    (cluster, link, leader, away)
}

/// A broken connection loses only the bytes in transit, not those that the follower has.
#[tokio::test(flavor = "multi_thread")]
async fn transfer_continues_after_a_broken_connection() {
    const STATE_BYTES: usize = 16 << 20;
    let (mut cluster, link, leader, away) =
        with_link(&["--snapshot-entries=100", "--keep-entries=0"]).await;
    let client = cluster.client();
    fill(&client, STATE_BYTES).await;
    for number in 0..300 {
        put(&client, &format!("small/{number}"), "text").await.unwrap();
    }
    purged_beyond(&client, leader, 256).await;
    // Slow enough that no bytes wait in sockets when the connection breaks.
    link.throttle(6 << 20);
    let before = link.passed();
    link.cut_after(10 << 20);
    cluster.start_node(away);
    cluster.caught_up(&[1, 2, 3]).await;
    assert!(link.was_cut());
    let passed = link.passed() - before;
    assert!(
        passed < (STATE_BYTES + (5 << 20)) as u64,
        "{passed} bytes for a state of {STATE_BYTES}"
    );
    assert_eq!(get_stale(&cluster.client_of(away), "small/299").await.unwrap(), "text");
    let left = files(&cluster.node(away).data_dir.join("snapshots"));
    assert_eq!(left.len(), 1, "{left:?}");
    cluster.stop(away);
    cluster.start_node(away);
    cluster.caught_up(&[1, 2, 3]).await;
}

/// Bit rot in a leader's newest snapshot leads to a line in its log and another snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn leader_replaces_a_damaged_snapshot() {
    let (mut cluster, _link, leader, away) =
        with_link(&["--snapshot-entries=100000", "--keep-entries=0"]).await;
    let client = cluster.client();
    fill(&client, 1 << 20).await;
    for number in 0..300 {
        put(&client, &format!("small/{number}"), "text").await.unwrap();
    }
    cluster.client_of(leader).snapshot().await.unwrap();
    purged_beyond(&client, leader, 256).await;
    let snapshot = files(&cluster.node(leader).data_dir.join("snapshots")).pop().unwrap();
    let mut bytes = std::fs::read(&snapshot).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&snapshot, bytes).unwrap();
    cluster.start_node(away);
    cluster.caught_up(&[1, 2, 3]).await;
    assert_eq!(get_stale(&cluster.client_of(away), "small/299").await.unwrap(), "text");
    assert_eq!(cluster.leader().await, leader, "it still leads");
    let log = std::fs::read_to_string(&cluster.node(leader).log).unwrap();
    let name = snapshot.file_name().unwrap().to_str().unwrap();
    let errors = log.lines().filter(|line| line.contains("ERROR"));
    let errors: Vec<_> = errors.collect();
    assert!(errors.len() == 1 && errors[0].contains(name), "{errors:?}");
    // The leader starts from the new snapshot.
    cluster.stop(leader);
    cluster.start_node(leader);
    cluster.caught_up(&[1, 2, 3]).await;
    assert_eq!(get(&cluster.client_of(leader), "small/299").await.unwrap(), "text");
}

/// While a snapshot is sent through a slow link, the log grows by many times the number of entries
/// that are normally kept.
#[tokio::test(flavor = "multi_thread")]
async fn follower_catches_up_under_load() {
    let flags = ["--snapshot-entries=200", "--keep-entries=50", "--keep-bytes=1048576"];
    let (mut cluster, link, leader, away) = with_link(&flags).await;
    let client = cluster.client();
    fill(&client, 8 << 20).await;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let (client, stop, done) = (client.clone(), stop.clone(), done.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let number = done.fetch_add(1, Ordering::Relaxed);
                    put(&client, &format!("small/{writer}"), &number.to_string()).await.unwrap();
                }
            })
        })
        .collect();
    let behind = node(&client, leader).await.unwrap().last_log;
    purged_beyond(&client, leader, behind).await;
    link.throttle(2 << 20);
    let (puts_before, began) = (done.load(Ordering::Relaxed), Instant::now());
    cluster.start_node(away);
    eventually("the follower keeps up", async || {
        let status = client.status().await.map_err(|error| error.to_string())?;
        let at = |id| status.nodes.iter().find(|node| node.id == id).map_or(0, |node| node.applied);
        let lag = at(leader).saturating_sub(at(away));
        if at(away) > behind && lag < 100 { Ok(()) } else { Err(format!("{:?}", status.nodes)) }
    })
    .await;
    let puts = done.load(Ordering::Relaxed) - puts_before;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    // The snapshot alone took four seconds on the link. Meanwhile, more entries came than are
    // normally kept.
    assert!(puts > 1_000 && began.elapsed() > Duration::from_secs(4), "{puts} puts");
    cluster.caught_up(&[1, 2, 3]).await;
    // The entries kept for the follower are purged once they are not needed.
    eventually("the log is as short as before", async || {
        put(&client, "small/last", "text").await.map_err(|error| error.to_string())?;
        let node = node(&client, leader).await?;
        let kept = node.last_log - node.purged;
        if kept < 1_000 { Ok(()) } else { Err(format!("{node:?}")) }
    })
    .await;
}

/// A query with this request adds a thousand to the state of the instance that serves it.
const CORRUPT: &[u8] = b"333";
const TRAP: &[u8] = b"1";

/// A state machine that counts, and takes some seconds to restore a state: a loop in the last call
/// of a restore.
fn slow_to_restore() -> Wat {
    let counter = version("slow", 1, 1, &[1]);
    let finish = format!("(call $spin) {}", counter.finish);
    Wat {
        apply: "(if (i32.eq (local.get 8) (i32.const 1)) (then unreachable))
            (i64.store (i32.const 8) (i64.add (i64.load (i32.const 8)) (i64.const 1)))
            (i32.store (i32.const 268) (i32.const 8))
            (i32.store (i32.const 264) (i32.const 8)) (i32.const 256)",
        query: "(if (i32.eq (local.get 8) (i32.const 3)) (then
              (i64.store (i32.const 8) (i64.add (i64.load (i32.const 8)) (i64.const 1000)))))
            (i64.store (i32.const 704) (i64.load (i32.const 8)))
            (i32.store8 (i32.const 512) (i32.const 0)) (i32.store (i32.const 516) (i32.const 704))
            (i32.store (i32.const 520) (i32.const 8)) (i32.const 512)",
        finish: finish.leak(),
        more: format!(
            "{} (func $spin (local i64) (local.set 0 (i64.const 1500000000))
               (loop (br_if 0 (i64.ne (i64.const 0)
                 (local.tee 0 (i64.sub (local.get 0) (i64.const 1)))))))",
            counter.more
        ),
        ..counter
    }
}

async fn slow_cluster(flags: &[&str]) -> (Cluster, TempDir) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("slow.wasm");
    std::fs::write(&path, slow_to_restore().component()).unwrap();
    let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    (Cluster::start_with(Setup { component: Some(path), flags }).await, dir)
}

async fn ask(
    client: &Client,
    method: &str,
    request: &[u8],
    options: CallOptions,
) -> Result<(), String> {
    let request = json!({"method": "any", "request": BASE64.encode(request)});
    let method = format!("conclave.machine.v1.Machine/{method}");
    let answer = call(client, &method, request, options).await;
    answer.map(drop).map_err(|error| error.to_string())
}

async fn count(client: &Client) -> Result<(), String> {
    let options = CallOptions::write().deadline(Duration::from_secs(5));
    ask(client, "Apply", b"", options).await
}

/// A follower that restores a snapshot still answers its leader. With the third node gone,
/// linearizable reads need it.
#[tokio::test(flavor = "multi_thread")]
async fn follower_answers_its_leader_while_it_restores_a_snapshot() {
    let (mut cluster, _dir) = slow_cluster(&["--keep-entries=0"]).await;
    let leader = cluster.leader().await;
    let (away, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    cluster.kill(away);
    let client = cluster.client_of(leader);
    for _ in 0..300 {
        count(&client).await.unwrap();
    }
    cluster.client_of(leader).snapshot().await.unwrap();
    purged_beyond(&client, leader, 256).await;
    cluster.start_node(away);
    let received = cluster.node(away).data_dir.join("snapshots");
    eventually("the snapshot has been received", async || {
        let found = files(&received);
        if found.is_empty() { Err("nothing".to_owned()) } else { Ok(()) }
    })
    .await;
    cluster.kill(other);
    let term = client.status().await.unwrap().term;
    // Before the snapshot is installed, its file has a temporary name.
    let mut answered = 0;
    while files(&received).iter().all(|path| path.extension().is_some_and(|end| end == "tmp")) {
        let options = CallOptions::read().deadline(Duration::from_secs(1));
        ask(&client, "Query", b"", options)
            .await
            .unwrap_or_else(|error| panic!("after {answered} answers: {error}"));
        // A leader whose heartbeats are not answered for an election timeout does not report that
        // it leads.
        let leads = cluster.metric(leader, "conclave_raft_is_leader");
        assert_eq!(leads, Ok(1.0), "after {answered} answers");
        answered += 1;
    }
    assert!(answered > 20, "{answered} answers: it was not slow");
    assert_eq!(client.status().await.unwrap().term, term, "the leader still leads");
    cluster.caught_up(&[leader, away]).await;
    count(&client).await.unwrap();
}

/// A node whose state is being replaced has an intact log. With the third node gone, every write
/// needs it.
#[tokio::test(flavor = "multi_thread")]
async fn node_under_repair_acknowledges_entries() {
    let (mut cluster, _dir) = slow_cluster(&["--consistency-check-interval=300ms"]).await;
    let client = cluster.client();
    let leader = cluster.leader().await;
    let (victim, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    count(&client).await.unwrap();
    cluster.caught_up(&[1, 2, 3]).await;
    // The standby's state spreads to both instances: by a snapshot, and by a trap after it.
    let stale = CallOptions::read().consistency(conclave_client::Consistency::Stale);
    ask(&cluster.client_of(victim), "Query", CORRUPT, stale).await.unwrap();
    cluster.client_of(victim).snapshot().await.unwrap();
    ask(&client, "Apply", TRAP, CallOptions::write()).await.unwrap_err();
    count(&client).await.unwrap();
    let received = cluster.node(victim).data_dir.join("snapshots");
    eventually("a healthy state has been received", async || {
        let found = files(&received);
        let node = node(&client, victim).await?;
        let arrived = found.iter().any(|path| path.extension().is_some_and(|end| end == "tmp"));
        if node.divergences == 1 && arrived { Ok(()) } else { Err(format!("{found:?} {node:?}")) }
    })
    .await;
    cluster.kill(other);
    // With enough writers, the commit index advances in more steps than openraft's queue to the
    // state machine had places by default.
    let client = cluster.client_of(leader);
    let (stop, counted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let writers = (0..8).map(|_| {
        let (client, stop, counted) = (client.clone(), stop.clone(), counted.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let before = counted.fetch_add(1, Ordering::Relaxed);
                count(&client)
                    .await
                    .unwrap_or_else(|error| panic!("after {before} entries: {error}"));
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    eventually("the node is repaired", async || {
        let node = node(&client, victim).await?;
        if node.fatal_error.is_empty() { Ok(()) } else { Err(format!("{node:?}")) }
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let counted = counted.load(Ordering::Relaxed);
    assert!(counted > 100, "{counted} entries: it was not slow");
    cluster.caught_up(&[leader, victim]).await;
    cluster.start_node(other);
    cluster.caught_up(&[1, 2, 3]).await;
    cluster.assert_running(victim);
}
