//! Wrong clocks: the log's time follows no single clock.
//!
//! Debian's libfaketime moves each node's wall clock, through a file that it reads once per second.
//! Monotonic clocks are not changed.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use conclave_client::{CallOptions, Client, Consistency, proto::cluster::Clock};
use rustix::process::Signal;
use serde_json::json;

use crate::harness::{
    Cluster, Setup, call, conclave, eventually, get, get_with_options, put, skip,
};

const HOUR_S: i64 = 3_600;

/// Returns the path of the library, if it is installed.
fn faketime() -> Option<PathBuf> {
    let libraries = std::fs::read_dir("/usr/lib").ok()?.flatten();
    let mut found = libraries
        .map(|entry| entry.path().join("faketime/libfaketime.so.1"))
        .filter(|path| path.exists());
    found.next()
}

/// A cluster whose nodes' clocks can be moved.
struct Clocks {
    cluster: Cluster,
    library: PathBuf,
}

impl Clocks {
    async fn start(library: PathBuf) -> Self {
        let mut this = Self { cluster: Cluster::prepared(Setup::default()), library };
        for id in 1..=3 {
            this.set(id, 0);
        }
        this.start_all().await;
        this
    }

    async fn start_all(&mut self) {
        for id in 1..=3 {
            self.start_node(id);
        }
        self.cluster.serving().await;
    }

    fn start_node(&mut self, id: u64) {
        let mut command = self.cluster.command(id);
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", self.file(id))
            .env("FAKETIME_CACHE_DURATION", "1")
            .env("FAKETIME_DONT_RESET", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1");
        self.cluster.run(id, command);
    }

    fn file(&self, id: u64) -> PathBuf {
        self.cluster.dir.path().join(format!("clock-{id}"))
    }

    /// Sets a node's clock to this many seconds from the true time.
    fn set(&self, id: u64, seconds: i64) {
        // Replaced atomically, because the node may be reading the file.
        let new = self.cluster.dir.path().join("clock-new");
        std::fs::write(&new, format!("{seconds:+}\n")).unwrap();
        std::fs::rename(&new, self.file(id)).unwrap();
    }

    /// Returns the state of a node's clock, as the node reports it.
    async fn clock(&self, id: u64) -> Result<Clock, String> {
        clock_of(&self.cluster, id).await
    }

    /// Waits until a node's report of its clock meets a condition.
    async fn until(&self, what: &str, id: u64, is: impl Fn(&Clock) -> bool) -> Clock {
        eventually(what, async || {
            let clock = self.clock(id).await?;
            if is(&clock) { Ok(clock) } else { Err(format!("{clock:?}")) }
        })
        .await
    }
}

async fn clock_of(cluster: &Cluster, id: u64) -> Result<Clock, String> {
    let status = cluster.client_of(id).status().await.map_err(|error| error.to_string())?;
    let node = status.nodes.into_iter().find(|node| node.id == id);
    node.and_then(|node| node.clock).ok_or_else(|| "no clock".to_owned())
}

/// Returns whether a time is close to this many seconds.
fn near(ms: Option<i64>, seconds: i64) -> bool {
    ms.is_some_and(|ms| ms.abs_diff(seconds * 1000) < 3_000)
}

async fn put_for(client: &Client, key: &str, ttl: Duration) {
    let ttl_ms = ttl.as_millis().to_string();
    let request = json!({ "key": key, "text": "text", "ttlMs": ttl_ms });
    let options = CallOptions::write().retry_unknown(true);
    call(client, "kv.v1.KV/Put", request, options).await.unwrap();
}

async fn has(client: &Client, key: &str) -> bool {
    get(client, key).await.is_ok_and(|text| text == "text")
}

async fn gone(client: &Client, key: &str) {
    eventually("the key expires", async || {
        if has(client, key).await { Err("it is there".to_owned()) } else { Ok(()) }
    })
    .await;
}

/// A leader with a wrong clock gives up leadership, and is not elected while the clock is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn leader_with_a_wrong_clock_transfers_leadership() {
    let Some(library) = faketime() else {
        return skip("wrong clocks", "Debian's package libfaketime is not installed");
    };
    let mut clocks = Clocks::start(library).await;
    let wrong = clocks.cluster.leader().await;
    clocks.until("the clocks are compared", wrong, |clock| near(clock.offset_ms, 0)).await;
    clocks.set(wrong, HOUR_S);
    let leads = async |clocks: &Clocks, observer: u64, candidates: &[u64]| {
        eventually("another node leads", async || {
            let status = clocks.cluster.client_of(observer).status().await;
            let status = status.map_err(|error| error.to_string())?;
            let elected = candidates.contains(&status.leader);
            if elected { Ok(status.leader) } else { Err(format!("{status:?}")) }
        })
        .await
    };
    let others: Vec<u64> = (1..=3).filter(|id| *id != wrong).collect();
    let successor = leads(&clocks, wrong, &others).await;
    let transfers = clocks.cluster.metric(wrong, "conclave_raft_transfers_total");
    assert_eq!(transfers, Ok(1.0), "it has asked for that");
    // It is not elected either, although its log is as long.
    let third = (1..=3).find(|id| ![wrong, successor].contains(id)).unwrap();
    clocks.cluster.kill(successor);
    leads(&clocks, third, &[third]).await;
    put_for(&clocks.cluster.client_of(third), "key", Duration::from_secs(600)).await;
    clocks.start_node(successor);
    clocks.cluster.caught_up(&[1, 2, 3]).await;
    // With the right time it may lead again, and does so when the others cannot.
    clocks.set(wrong, 0);
    clocks.until("the clock is right", wrong, |clock| clock.alarm.is_empty()).await;
    eventually("it leads again", async || {
        let leader = clocks.cluster.leader().await;
        if leader == wrong {
            return Ok(());
        }
        clocks.cluster.stop(leader);
        clocks.cluster.serving().await;
        clocks.start_node(leader);
        clocks.cluster.caught_up(&[1, 2, 3]).await;
        Err(format!("node {leader} led"))
    })
    .await;
}

/// Reads with a lease at one node.
async fn lease_read(client: &Client) -> Result<String, String> {
    let options = CallOptions::read().consistency(Consistency::Lease);
    let options = options.deadline(Duration::from_secs(5));
    get_with_options(client, "key", options).await.map_err(|error| error.to_string())
}

/// A node that was paused for longer than its lease answers no lease read from its old state. The
/// log's time has advanced during the pause.
#[tokio::test(flavor = "multi_thread")]
async fn pause_ends_the_lease_and_counts_for_the_logs_time() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    let signal = |ids: &[u64], signal| {
        for id in ids {
            let pid = rustix::process::Pid::from_raw(cluster.pid(*id) as i32).unwrap();
            rustix::process::kill_process(pid, signal).unwrap();
        }
    };
    put(&client, "key", "0").await.unwrap();
    for round in 1..=5 {
        cluster.caught_up(&[1, 2, 3]).await;
        let leader = cluster.leader().await;
        let other = cluster.client_of(leader % 3 + 1);
        let paused = cluster.client_of(leader);
        lease_read(&paused).await.unwrap();
        signal(&[leader], Signal::STOP);
        // This write is acknowledged by another leader.
        put(&other, "key", &round.to_string()).await.unwrap();
        // The requests wait in the socket when the node continues.
        let reads: Vec<_> = (0..20)
            .map(|_| {
                let paused = paused.clone();
                tokio::spawn(async move { lease_read(&paused).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(20)).await;
        signal(&[leader], Signal::CONT);
        for read in reads {
            let read = read.await.unwrap();
            assert!(read.as_ref().is_ok_and(|text| *text == round.to_string()), "{read:?}");
        }
    }

    put_for(&client, "short", Duration::from_secs(3)).await;
    let before = clock_of(&cluster, 1).await.unwrap().log_time_ms;
    let began = Instant::now();
    signal(&[1, 2, 3], Signal::STOP);
    tokio::time::sleep(Duration::from_secs(4)).await;
    signal(&[1, 2, 3], Signal::CONT);
    let passed = || began.elapsed().as_millis() as u64;
    let clock = eventually("a node answers", async || clock_of(&cluster, 1).await).await;
    let (after, most) = (clock.log_time_ms - before, passed());
    assert!((4_000..=most + 100).contains(&after), "{after} ms of log time in {most} ms");
    eventually("the key expires", async || {
        if has(&client, "short").await { Err("it is there".to_owned()) } else { Ok(()) }
    })
    .await;
    assert!(passed() < 15_000, "{} ms", passed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_expires_no_keys_and_downtime_does() {
    let Some(library) = faketime() else {
        return skip("wrong clocks", "Debian's package libfaketime is not installed");
    };
    let mut clocks = Clocks::start(library).await;
    let client = clocks.cluster.client();
    let leader = clocks.cluster.leader().await;
    put_for(&client, "long", Duration::from_secs(600)).await;

    // The leader's clock is an hour ahead. If entries had its time, one write would delete all keys
    // with a TTL below an hour. Another node leads soon after this one detects it, so the test
    // writes until then.
    clocks.until("the clocks are compared", leader, |clock| near(clock.offset_ms, 0)).await;
    clocks.set(leader, HOUR_S);
    let at_leader = clocks.cluster.client_of(leader);
    let clock = eventually("the node notices", async || {
        put_for(&at_leader, "beat", Duration::from_secs(600)).await;
        let clock = clocks.clock(leader).await?;
        let noticed = near(clock.offset_ms, HOUR_S) && !clock.alarm.is_empty();
        if noticed { Ok(clock) } else { Err(format!("{clock:?}")) }
    })
    .await;
    assert!(clock.alarm.contains("ahead") && near(clock.log_offset_ms, 0), "{clock:?}");
    put_for(&client, "short", Duration::from_secs(2)).await;
    assert!(has(&client, "long").await);
    gone(&client, "short").await;
    assert!(has(&client, "long").await);
    // A TTL of two seconds does not last an hour either, after the clock is right again.
    clocks.set(leader, 0);
    clocks.until("the clock is right", leader, |clock| clock.alarm.is_empty()).await;
    put_for(&client, "short", Duration::from_secs(2)).await;
    gone(&client, "short").await;

    // A follower whose clock is behind takes part in `cluster verify` and reports its alarm.
    let follower = clocks.cluster.leader().await % 3 + 1;
    clocks.set(follower, -600);
    let clock =
        clocks.until("the follower notices", follower, |clock| near(clock.offset_ms, -600)).await;
    assert!(near(clock.log_offset_ms, 0), "{clock:?}");
    let found = client.verify().await.unwrap();
    assert!(found.equal, "{found:?}");
    clocks.set(follower, 0);

    // All nodes were down for ten minutes, and the clock of one is an hour ahead afterwards.
    for id in 1..=3 {
        clocks.cluster.stop(id);
        clocks.set(id, if id == leader { 700 + HOUR_S } else { 700 });
    }
    clocks.start_all().await;
    let follower = leader % 3 + 1;
    gone(&client, "long").await;
    clocks
        .until("the log's time is the majority's", follower, |clock| near(clock.log_offset_ms, 0))
        .await;
    clocks
        .until("the node whose clock is wrong knows", leader, |clock| {
            near(clock.offset_ms, HOUR_S) && near(clock.log_offset_ms, 0)
        })
        .await;

    // An operator sets the time forward, and the next leader continues from there.
    put_for(&client, "long", Duration::from_secs(900)).await;
    let before = clocks.clock(follower).await.unwrap().log_time_ms;
    let to_s = before / 1000 + 800;
    let set_time = |to: &str| {
        let endpoints: Vec<_> =
            clocks.cluster.nodes.iter().map(|node| node.client.clone()).collect();
        let mut command = conclave();
        command.args(["cluster", "set-time", to, "--endpoints", &endpoints.join(",")]);
        command.output().unwrap()
    };
    let set = set_time(&format!("@{to_s}"));
    assert!(set.status.success(), "{set:?}");
    assert!(has(&client, "long").await, "its ttl is longer");
    let back = set_time(&format!("@{}", before / 1000));
    let why = String::from_utf8_lossy(&back.stderr);
    assert!(!back.status.success() && why.contains("never goes back"), "{why}");
    let first = clocks.cluster.leader().await;
    clocks.cluster.kill(first);
    let rest: Vec<u64> = (1..=3).filter(|id| *id != first).collect();
    clocks.cluster.serving().await;
    put_for(&client, "short", Duration::from_secs(2)).await;
    gone(&client, "short").await;
    for id in rest {
        let clock = clocks.until("it follows", id, |clock| clock.log_time_ms >= to_s * 1000).await;
        assert!(clock.log_time_ms < (to_s + 60) * 1000, "{clock:?}");
        assert!(
            clock.alarm.contains("ahead of the majority's clocks") || id == leader,
            "{clock:?}"
        );
    }
    assert!(has(&client, "long").await, "and it lasts");
}
