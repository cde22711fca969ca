//! A diverged replica is detected within one consistency check, reported, quarantined and repaired.
//!
//! Two ways cause a divergence. A state machine that keeps a part of its state out of its snapshots gives
//! other outcomes after a restore. A query that changes the state corrupts one node's standby. A snapshot of
//! the standby and a trap, which promotes it, spread that to both instances.

use std::time::{Duration, Instant};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use conclave_client::{CallOptions, Client, Consistency, Error, proto::cluster::Node};
use conclave_testing::{
    cluster::{Options, PATIENCE, turn},
    proxy::{Fault, Part},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::{
    harness::{Cluster, Setup, call, conclave, eventually},
    recorded,
};
use conclave_testing::{counters::version, wat::Wat};

/// Interval between two consistency checks.
const INTERVAL: Duration = Duration::from_millis(300);

/// Counts. The state machine distinguishes requests by their length.
pub(crate) const COUNT: &[u8] = b"";
const TRAP: &[u8] = b"1";
/// Counts in memory that is not part of snapshots.
const HIDDEN: &[u8] = b"22";
/// As a query, adds a thousand to the state.
const CORRUPT: &[u8] = b"333";

pub(crate) fn machine() -> Wat {
    Wat {
        apply: "(if (i32.eq (local.get 8) (i32.const 1)) (then unreachable))
            (i32.store (i32.const 268) (i32.const 8))
            (if (i32.eq (local.get 8) (i32.const 2)) (then
              (i64.store (i32.const 24) (i64.add (i64.load (i32.const 24)) (i64.const 1)))
              (i32.store (i32.const 264) (i32.const 24)) (return (i32.const 256))))
            (i64.store (i32.const 8) (i64.add (i64.load (i32.const 8)) (i64.const 1)))
            (i32.store (i32.const 264) (i32.const 8)) (i32.const 256)",
        query: "(if (i32.eq (local.get 8) (i32.const 3)) (then
              (i64.store (i32.const 8) (i64.add (i64.load (i32.const 8)) (i64.const 1000)))))
            (i64.store (i32.const 704) (i64.load (i32.const 8)))
            (i32.store8 (i32.const 512) (i32.const 0)) (i32.store (i32.const 516) (i32.const 704))
            (i32.store (i32.const 520) (i32.const 8)) (i32.const 512)",
        ..version("drifting", 1, 1, &[1])
    }
}

async fn start() -> (Cluster, TempDir) {
    start_with(&[]).await
}

async fn start_with(flags: &[&str]) -> (Cluster, TempDir) {
    start_machine(&machine(), flags).await
}

pub(crate) async fn start_machine(machine: &Wat, flags: &[&str]) -> (Cluster, TempDir) {
    start_checked(&format!("{}ms", INTERVAL.as_millis()), machine, flags).await
}

async fn start_checked(interval: &str, machine: &Wat, flags: &[&str]) -> (Cluster, TempDir) {
    let more = flags.iter().map(|flag| (*flag).to_owned());
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("drifting.wasm");
    std::fs::write(&path, machine.component()).unwrap();
    let mut flags = vec![format!("--consistency-check-interval={interval}")];
    flags.extend(more);
    (Cluster::start_with(Setup { component: Some(path), flags }).await, dir)
}

fn number(answer: &Value) -> i64 {
    let bytes = BASE64.decode(answer["response"].as_str().unwrap()).unwrap();
    i64::from_le_bytes(bytes[..8].try_into().unwrap())
}

/// Applies a command and returns its result and its index.
pub(crate) async fn apply(client: &Client, request: &[u8]) -> Result<(i64, u64), Error> {
    let request = json!({"method": "any", "request": BASE64.encode(request)});
    let options = CallOptions::write();
    let answer = call(client, "conclave.machine.v1.Machine/Apply", request, options).await?;
    let index = &answer["index"];
    let index = index.as_u64().or_else(|| index.as_str()?.parse().ok());
    Ok((number(&answer), index.expect("an index")))
}

async fn query(client: &Client, request: &[u8]) -> Result<i64, Error> {
    let request = json!({"method": "any", "request": BASE64.encode(request)});
    let options =
        CallOptions::read().consistency(Consistency::Stale).deadline(Duration::from_millis(500));
    let answer = call(client, "conclave.machine.v1.Machine/Query", request, options).await?;
    Ok(number(&answer))
}

async fn node(cluster: &Cluster, id: u64) -> Result<Node, String> {
    let status = cluster.client().status().await.map_err(|error| error.to_string())?;
    status.nodes.into_iter().find(|node| node.id == id).ok_or_else(|| "no such node".to_owned())
}

/// Waits until a node has diverged this many times and serves again.
pub(crate) async fn repaired(cluster: &Cluster, id: u64, times: u64) {
    eventually("the node is repaired", async || {
        let node = node(cluster, id).await?;
        let done =
            node.divergences == times && node.fatal_error.is_empty() && node.role != "unreachable";
        if done { Ok(()) } else { Err(format!("{node:?}")) }
    })
    .await;
}

/// Waits until a node agrees with a new consistency check, for which there must be new entries.
async fn agreed(cluster: &Cluster, id: u64) {
    eventually("the node agrees with a consistency check", async || {
        let equal = cluster.metric(id, "conclave_consistency_checks_equal_total")?;
        if equal > 0.0 { Ok(()) } else { Err(format!("{equal:?}")) }
    })
    .await;
}

/// Waits until the leader has made this many more checks that no majority decided.
async fn undecided(cluster: &Cluster, leader: u64, more: f64) {
    const NAME: &str = "conclave_consistency_checks_undecided_total";
    let before = cluster.metric(leader, NAME).unwrap();
    eventually("checks stay undecided", async || {
        let now = cluster.metric(leader, NAME)?;
        if now >= before + more { Ok(()) } else { Err(format!("{before} to {now}")) }
    })
    .await;
}

/// Runs `conclave cluster verify --json` and returns its success and its output.
fn verify(cluster: &Cluster) -> (bool, Value) {
    let endpoints: Vec<_> = cluster.nodes.iter().map(|node| node.client.clone()).collect();
    let mut command = conclave();
    command.args(["cluster", "verify", "--json", "--timeout", "20s", "--endpoints"]);
    let output = command.arg(endpoints.join(",")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let first = serde_json::Deserializer::from_str(&text).into_iter::<Value>().next();
    let value = first.unwrap_or_else(|| panic!("{output:?}")).unwrap();
    (output.status.success(), value)
}

fn assert_equal(cluster: &Cluster) {
    let (success, found) = verify(cluster);
    assert!(success && found["equal"] == true, "{found}");
    let nodes = found["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 3);
    for node in nodes {
        assert_eq!((&node["digest"], &node["state"]), (&nodes[0]["digest"], &nodes[0]["state"]));
        assert_eq!(node["bytes"], 8, "{found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_that_is_no_function_of_the_log_is_found_named_silenced_and_healed() {
    let (mut cluster, dir) = start().await;
    let client = cluster.client();
    let leader = cluster.leader().await;
    let victim = leader % 3 + 1;
    for expected in 1..=3 {
        assert_eq!(apply(&client, HIDDEN).await.unwrap().0, expected);
    }
    cluster.caught_up(&[1, 2, 3]).await;
    assert_equal(&cluster);
    // A node that applied all entries agrees; a restored one lacks the hidden count.
    cluster.client_of(victim).snapshot().await.unwrap();
    cluster.stop(victim);
    cluster.start_node(victim);
    cluster.serving().await;
    apply(&client, COUNT).await.unwrap();
    agreed(&cluster, victim).await;

    let begun = Instant::now();
    let (answer, wrong) = apply(&client, HIDDEN).await.unwrap();
    assert!(answer >= 4 || cluster.leader().await == victim);
    repaired(&cluster, victim, 1).await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let named = node(&cluster, victim).await.unwrap().divergence;
    // The message names the last equal check and the first one after the wrong outcome.
    let numbers: Vec<u64> = named
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect();
    // The last check with which it agreed depends on the leader's timing.
    assert!(numbers[0] < wrong && wrong <= numbers[1], "{named}: {wrong}");
    for id in (1..=3).filter(|id| *id != victim) {
        assert_eq!(node(&cluster, id).await.unwrap().divergences, 0, "node {id}");
    }
    assert_equal(&cluster);
    for id in 1..=3 {
        assert_eq!(query(&cluster.client_of(id), COUNT).await.unwrap(), 1, "node {id}");
    }

    // Each repair loses the hidden count again and takes longer, so it can be observed.
    for times in 2..=4 {
        repaired(&cluster, victim, times - 1).await;
        let others = Client::builder()
            .endpoints(
                cluster
                    .nodes
                    .iter()
                    .filter(|node| node.id != victim)
                    .map(|node| node.client.clone()),
            )
            .build()
            .unwrap();
        apply(&others, HIDDEN).await.unwrap();
        eventually("the node is in quarantine", async || {
            let node = node(&cluster, victim).await?;
            if node.divergences == times { Ok(()) } else { Err(format!("{node:?}")) }
        })
        .await;
    }
    let silent = cluster.client_of(victim);
    let status = node(&cluster, victim).await.unwrap();
    assert!(
        status.fatal_error.contains("diverged") && status.fatal_error.contains("(4 times"),
        "{status:?}"
    );
    eventually("its health is not serving", async || match silent.is_serving().await {
        Ok(false) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let error = query(&silent, COUNT).await.unwrap_err();
    assert!(error.is_unavailable() && error.to_string().contains("diverged"), "{error}");
    // The others serve, and the node gets their writes. A restart does not end the quarantine.
    let (_, last) = apply(&client, COUNT).await.unwrap();
    for id in 1..=3 {
        cluster.kill(id);
    }
    cluster.start_node(victim);
    eventually("it remembers why it is silent", async || {
        let answer = query(&silent, COUNT).await;
        let Err(error) = answer else { panic!("it answers: {answer:?}") };
        let knows = error.is_unavailable() && error.to_string().contains("diverged");
        if knows { Ok(()) } else { Err(error.to_string()) }
    })
    .await;
    assert!(!silent.is_serving().await.unwrap());
    // The node has not detected it again from a consistency check that its log still has.
    let status = silent.status().await.unwrap();
    let own = status.nodes.iter().find(|node| node.id == victim).unwrap();
    assert!(own.fatal_error.contains("diverged") && own.divergences == 0, "{own:?}");
    for id in (1..=3).filter(|id| *id != victim) {
        cluster.start_node(id);
    }
    eventually("the node is back", async || {
        let node = node(&cluster, victim).await?;
        let back = node.fatal_error.is_empty() && node.applied >= last;
        if back { Ok(()) } else { Err(format!("{node:?}")) }
    })
    .await;
    assert_equal(&cluster);
    for id in 1..=3 {
        assert_eq!(query(&cluster.client_of(id), COUNT).await.unwrap(), 2, "node {id}");
        cluster.assert_running(id);
    }

    // `conclave check` shows the bug without a cluster, with the calls that caused it.
    let sound = (1..=3).find(|id| *id != victim).unwrap();
    cluster.stop(sound);
    let (key, component) =
        (cluster.dir.path().join("master.key"), dir.path().join("drifting.wasm"));
    let checked = recorded::check(&cluster, sound, &key, &[component.to_str().unwrap()]);
    let why = String::from_utf8_lossy(&checked.stderr);
    assert_eq!(checked.status.code(), Some(1), "{why}");
    assert!(
        why.contains("drifting does not keep the contract: ") && why.contains("restore"),
        "{why}"
    );
}

/// Adds a thousand to the state of both instances of one node.
pub(crate) async fn corrupt(cluster: &Cluster, victim: u64, expected: i64) {
    let client = cluster.client();
    assert_eq!(apply(&client, COUNT).await.unwrap().0, expected);
    cluster.caught_up(&[1, 2, 3]).await;
    let target = cluster.client_of(victim);
    assert_eq!(query(&target, CORRUPT).await.unwrap(), expected + 1000);
    // No outcome differs yet, only the states do.
    let (success, found) = verify(cluster);
    assert!(!success && found["equal"] == false, "{found}");
    for node in found["nodes"].as_array().unwrap() {
        let (first, other) = (&found["nodes"][0], &found["nodes"][(victim % 3) as usize]);
        assert_eq!(node["digest"], first["digest"], "{found}");
        assert_eq!(node["state"] == other["state"], node["id"] != victim, "{found}");
    }
    target.snapshot().await.unwrap();
    let error = apply(&client, TRAP).await.unwrap_err();
    assert!(error.to_string().contains("trap"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupted_node_is_found_and_healed_also_if_it_leads() {
    let (mut cluster, _dir) = start().await;
    let client = cluster.client();
    let leader = cluster.leader().await;

    let follower = leader % 3 + 1;
    corrupt(&cluster, follower, 1).await;
    assert_eq!(apply(&client, COUNT).await.unwrap().0, 2, "the leader is sound");
    repaired(&cluster, follower, 1).await;
    assert_equal(&cluster);
    assert_eq!(query(&cluster.client_of(follower), COUNT).await.unwrap(), 2);

    let leader = cluster.leader().await;
    let before = node(&cluster, leader).await.unwrap().divergences;
    corrupt(&cluster, leader, 3).await;
    // Until the consistency check no node detects it.
    assert_eq!(apply(&client, COUNT).await.unwrap().0, 1004, "the leader is not");
    repaired(&cluster, leader, before + 1).await;
    let successor = cluster.leader().await;
    assert_ne!(successor, leader, "it has handed leadership over");
    assert_eq!(apply(&client, COUNT).await.unwrap().0, 5, "the majority was right");
    cluster.caught_up(&[1, 2, 3]).await;
    assert_equal(&cluster);
    for id in 1..=3 {
        assert_eq!(query(&cluster.client_of(id), COUNT).await.unwrap(), 5, "node {id}");
        cluster.assert_running(id);
    }
}

/// A diverged leader without an electable successor continues to lead, is repaired, and serves. (openraft's
/// own leadership transfer cannot be undone: the leader proposed nothing for the rest of its term.)
#[tokio::test(flavor = "multi_thread")]
async fn diverged_leader_without_a_successor_is_healed_and_serves() {
    let _turn = turn();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("drifting.wasm");
    std::fs::write(&path, machine().component()).unwrap();
    let mut options = Options::new(conclave().get_program()).proxied();
    options.component = Some(path);
    let options = options.flag(format!("--consistency-check-interval={}ms", INTERVAL.as_millis()));
    let cluster = conclave_testing::cluster::Cluster::start(options).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let client = cluster.client_of(leader).unwrap();
    assert_eq!(apply(&client, COUNT).await.unwrap().0, 1);
    cluster.caught_up(&[1, 2, 3], PATIENCE).await.unwrap();
    assert_eq!(query(&client, CORRUPT).await.unwrap(), 1001);
    client.snapshot().await.unwrap();
    // The followers answer the leader, but their own requests reach no node: none is elected.
    let network = cluster.network().unwrap();
    for from in cluster.ids().filter(|id| *id != leader) {
        for to in cluster.ids().filter(|id| *id != from) {
            network.link(from, to).set_part(Part::Requests, |link| link.fault = Fault::Refuse);
        }
    }
    apply(&client, TRAP).await.unwrap_err();
    assert_eq!(apply(&client, COUNT).await.unwrap().0, 1002, "it has diverged");
    eventually("the leader is repaired and serves", async || {
        let answer = timeout(Duration::from_secs(5), apply(&client, COUNT)).await;
        let answer = answer.map_err(|_| "no answer".to_owned())?.map_err(|e| e.to_string())?;
        // The diverged state may have answered before it was detected.
        if answer.0 < 1000 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    let status = cluster.status_of(leader).await.unwrap();
    let own = status.nodes.iter().find(|node| node.id == leader).unwrap();
    assert_eq!((status.leader, own.divergences), (leader, 1), "{own:?}");
    cluster.network().unwrap().repair();
    cluster.caught_up(&[1, 2, 3], PATIENCE).await.unwrap();
}

/// Adds a thousand to the state of both instances of a node, and returns its count.
async fn make_wrong(cluster: &Cluster, id: u64) -> i64 {
    let target = cluster.client_of(id);
    let count = query(&target, CORRUPT).await.unwrap();
    target.snapshot().await.unwrap();
    let error = apply(&cluster.client(), TRAP).await.unwrap_err();
    assert!(error.to_string().contains("trap"), "{error}");
    count
}

/// Stops a node, counts up to `before`, and corrupts the leader. Returns leader, stopped and healthy node.
async fn diverged_leader(cluster: &mut Cluster, before: i64) -> (u64, u64, u64) {
    let client = cluster.client();
    let leader = cluster.leader().await;
    let (away, healthy) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    assert_eq!(apply(&client, COUNT).await.unwrap().0, 1);
    cluster.caught_up(&[1, 2, 3]).await;
    cluster.stop(away);
    for count in 2..=before {
        assert_eq!(apply(&client, COUNT).await.unwrap().0, count);
    }
    cluster.caught_up(&[leader, healthy]).await;
    assert_eq!(make_wrong(cluster, leader).await, before + 1000);
    assert_eq!(apply(&client, COUNT).await.unwrap().0, before + 1001, "the leader is not sound");
    undecided(cluster, leader, 1.0).await;
    (leader, away, healthy)
}

fn small_logs() -> [&'static str; 2] {
    ["--snapshot-entries=100", "--keep-entries=0"]
}

/// Regression: two replicas disagreed while the third was down. The diverged leader took snapshots and purged
/// its log. The third node got such a snapshot, whose digest made a majority with the leader's, and the
/// healthy node was overwritten. Now the leader takes no snapshot, so the third node applies the entries
/// itself and decides.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_returns_decides_which_replica_has_diverged() {
    let (mut cluster, _dir) = start_with(&small_logs()).await;
    let client = cluster.client();
    let (leader, away, healthy) = diverged_leader(&mut cluster, 2).await;
    for count in 1004..1600 {
        assert_eq!(apply(&client, COUNT).await.unwrap().0, count);
    }
    let error = cluster.client_of(leader).snapshot().await.unwrap_err();
    assert!(error.to_string().contains("disagree"), "{error}");
    cluster.start_node(away);
    repaired(&cluster, leader, 1).await;
    for id in [away, healthy] {
        assert_eq!(node(&cluster, id).await.unwrap().divergences, 0, "node {id}");
    }
    let (count, _) = apply(&client, COUNT).await.unwrap();
    assert_eq!(count, 600, "the majority was right");
    cluster.caught_up(&[1, 2, 3]).await;
    assert_equal(&cluster);
}

/// The same, but the third node needs a snapshot from after the damage and before any outcome differed, and
/// gets the wrong state. A copy is no second opinion: no majority decides, and no node is condemned.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_diverged_state_does_not_outvote_the_healthy_node() {
    // Checks are rare: a copy that agreed with one before the first wrong outcome would be independent.
    let (mut cluster, _dir) = start_checked("2s", &machine(), &small_logs()).await;
    let client = cluster.client();
    let (leader, away, healthy) = diverged_leader(&mut cluster, 600).await;
    eventually("the leader has purged the entries that the third node needs", async || {
        let purged = node(&cluster, leader).await?.purged;
        // The third node stopped before the tenth entry; logs are purged by some hundred.
        if purged > 100 { Ok(()) } else { Err(format!("{purged}")) }
    })
    .await;
    cluster.start_node(away);
    cluster.caught_up(&[away, healthy]).await;
    assert_eq!(query(&cluster.client_of(away), COUNT).await.unwrap(), 1601, "it has a copy");
    // Checks in which all three nodes take part.
    let (_, last) = apply(&client, COUNT).await.unwrap();
    eventually("the copy has applied it", async || {
        let applied = node(&cluster, away).await?.applied;
        if applied >= last { Ok(()) } else { Err(format!("{applied}")) }
    })
    .await;
    undecided(&cluster, leader, 3.0).await;
    let sound = node(&cluster, healthy).await.unwrap();
    assert!(sound.divergences == 0 && sound.fatal_error.is_empty(), "{sound:?}");
    assert_eq!(query(&cluster.client_of(healthy), COUNT).await.unwrap(), 602);
}

/// Before any consistency check, the leader takes a snapshot whose outcomes the healthy node contradicts. The
/// third node is refused it at each attempt: a disputed state is not spread.
#[tokio::test(flavor = "multi_thread")]
async fn snapshot_of_a_disputed_state_is_given_to_no_peer() {
    const WITHHELD: &str = "conclave_snapshots_withheld_total";
    // No consistency check runs during the test.
    let (mut cluster, _dir) = start_checked("10m", &machine(), &small_logs()).await;
    let client = cluster.client();
    let leader = cluster.leader().await;
    let (away, healthy) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    assert_eq!(apply(&client, COUNT).await.unwrap().0, 1);
    cluster.caught_up(&[1, 2, 3]).await;
    cluster.stop(away);
    assert_eq!(make_wrong(&cluster, leader).await, 1001);
    for count in 1002..1502 {
        assert_eq!(apply(&client, COUNT).await.unwrap().0, count, "the leader is not sound");
    }
    let snapshot = cluster.client_of(leader).snapshot().await.unwrap();
    eventually("the leader has purged the entries that the third node needs", async || {
        let purged = node(&cluster, leader).await?.purged;
        if purged > 100 { Ok(()) } else { Err(format!("{purged}")) }
    })
    .await;

    cluster.start_node(away);
    eventually("the third node is connected", async || {
        let connected = format!("conclave_peer_connected{{peer=\"{away}\"}}");
        let connected = cluster.metric(leader, &connected)?;
        if connected == 1.0 { Ok(()) } else { Err("it is not".to_owned()) }
    })
    .await;
    // The leader also tried while the node was down.
    let before = cluster.metric(leader, WITHHELD).unwrap();
    eventually("the third node is refused the snapshot, or has it", async || {
        let withheld = cluster.metric(leader, WITHHELD)?;
        let applied = node(&cluster, away).await?.applied;
        let tried = withheld >= before + 3.0 || applied >= snapshot;
        if tried { Ok(()) } else { Err(format!("{before} to {withheld}")) }
    })
    .await;
    let third = node(&cluster, away).await.unwrap();
    assert!(third.applied < snapshot, "it has a copy of the disputed state: {third:?}");
    assert_eq!(query(&cluster.client_of(healthy), COUNT).await.unwrap(), 501, "it is sound");
    assert_eq!(cluster.leader().await, leader);
}
