//! A state machine that misbehaves in every possible way. Each call gets a clear error within a
//! bounded time and has no effect, equally on every node, and all other calls continue.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{Duration, Instant},
};

use conclave_client::{CallOptions, Client, Consistency};
use serde_json::{Value, json};

use crate::harness::{self, Cluster, Setup};

/// Maximum time of a call: far above the time to reach a limit, far below a hang.
const BOUND: Duration = Duration::from_secs(30);

const TRAPS: [(&str, &str); 6] = [
    ("Panic", "panic"),
    ("Loop", "fuel-exhausted"),
    ("Allocate", "memory-exhausted"),
    ("Recurse", "stack-exhausted"),
    ("Huge", "bad-answer"),
    ("DivideByZero", "invalid"),
];

pub(crate) fn hostile() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let output = root.join("../../target/machines/hostile.wasm");
        let spec = conclave_build::MachineSpec {
            manifest_dir: root.join("../testing/machines/hostile"),
            target_dir: root.join("../../target/machines"),
            output,
        };
        conclave_build::build_machine(&spec).unwrap().path
    });
    built.clone()
}

pub(crate) async fn call(
    client: &Client,
    method: &str,
    request: Value,
) -> Result<Value, conclave_client::Error> {
    let options = CallOptions::write().deadline(BOUND);
    harness::call(client, &format!("hostile.v1.Hostile/{method}"), request, options).await
}

pub(crate) async fn add(client: &Client, n: i64) -> i64 {
    number(&call(client, "Add", json!({ "n": n })).await.unwrap())
}

/// Parses a number of protobuf's JSON, which writes 64-bit numbers as text and omits zero.
fn number(answer: &Value) -> i64 {
    let total = answer.as_object().and_then(|fields| fields.values().next());
    total.map_or(0, |value| value.as_str().unwrap_or("0").parse().unwrap())
}

async fn total(client: &Client, consistency: Consistency) -> i64 {
    let options = CallOptions::read().consistency(consistency);
    number(&harness::call(client, "hostile.v1.Hostile/Get", json!({}), options).await.unwrap())
}

async fn all_agree(cluster: &Cluster, expected: i64) {
    cluster.caught_up(&[1, 2, 3]).await;
    for id in 1..=3 {
        let client = cluster.client_of(id);
        assert_eq!(total(&client, Consistency::Linearizable).await, expected, "node {id}");
        assert_eq!(total(&client, Consistency::Stale).await, expected, "node {id}, stale");
    }
}

/// Returns limits that are low enough for a test of seconds, and high enough for every normal call.
pub(crate) fn setup() -> Setup {
    Setup {
        component: Some(hostile()),
        flags: vec!["--fuel-per-call=1000000000".into(), "--memory-bytes-max=301989888".into()],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_trap_is_an_outcome_and_not_an_outage() {
    let mut cluster = Cluster::start_with(setup()).await;
    let client = cluster.client();
    let mut expected = add(&client, 1).await;
    for (method, name) in TRAPS {
        let begun = Instant::now();
        let error = call(&client, method, json!({})).await.unwrap_err();
        assert!(begun.elapsed() < BOUND, "{method} took {:?}", begun.elapsed());
        assert!(error.to_string().contains(name), "{method}: {error}");
        assert!(!error.is_unavailable(), "{method}: {error}");
        // The state is unchanged, and the next call is applied.
        expected += 1;
        assert_eq!(add(&client, 1).await, expected, "after {method}");
    }
    all_agree(&cluster, expected).await;

    // Several traps in a row, before an instance could be rebuilt, with normal calls in between.
    let storm = (0..6).map(|_| call(&client, "Panic", json!({})));
    let honest = (0..20).map(|_| add(&client, 1));
    let (panics, sums) =
        tokio::join!(futures::future::join_all(storm), futures::future::join_all(honest));
    assert!(panics.iter().all(Result::is_err));
    expected += 20;
    assert_eq!(sums.into_iter().max(), Some(expected));
    all_agree(&cluster, expected).await;

    // A failure is not a trap: changes before it are kept.
    let error = call(&client, "Fail", json!({})).await.unwrap_err();
    assert!(!error.to_string().contains("trap"), "{error}");
    let after_failure = total(&client, Consistency::Linearizable).await;
    assert_ne!(after_failure, expected, "a failure keeps its changes");
    expected = after_failure;
    all_agree(&cluster, expected).await;

    // A restart replays the log to the same state.
    for id in 1..=3 {
        cluster.kill(id);
    }
    for id in 1..=3 {
        cluster.start_node(id);
    }
    cluster.serving().await;
    all_agree(&cluster, expected).await;
    for id in 1..=3 {
        cluster.assert_running(id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_traps_hurts_nobody_else() {
    let mut cluster = Cluster::start_with(setup()).await;
    let client = cluster.client();
    let mut expected = 0;
    for method in ["QueryPanic", "QueryLoop", "QueryPanic"] {
        let name = format!("hostile.v1.Hostile/{method}");
        let options = CallOptions::read().deadline(BOUND);
        let request = harness::call(&client, &name, json!({}), options);
        let (error, sum) = tokio::join!(request, add(&client, 1));
        let error = error.unwrap_err();
        assert!(error.to_string().contains("trap"), "{method}: {error}");
        expected += 1;
        assert_eq!(sum, expected);
        all_agree(&cluster, expected).await;
    }
    for id in 1..=3 {
        cluster.assert_running(id);
    }
}

/// Traps, then a snapshot, then restarts, and a node that gets the whole state as a snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn traps_and_snapshots_go_together() {
    let mut setup = setup();
    setup.flags.extend(["--snapshot-entries=100".into(), "--keep-entries=0".into()]);
    let mut cluster = Cluster::start_with(setup).await;
    let client = cluster.client();
    let leader = cluster.leader().await;
    let away = leader % 3 + 1;
    cluster.kill(away);
    let mut expected = 0;
    for round in 0..250 {
        if round % 50 == 25 {
            call(&client, "Panic", json!({})).await.unwrap_err();
        }
        expected += 1;
        assert_eq!(add(&client, 1).await, expected);
    }
    cluster.start_node(away);
    all_agree(&cluster, expected).await;
    for id in 1..=3 {
        cluster.stop(id);
        cluster.start_node(id);
        cluster.serving().await;
    }
    all_agree(&cluster, expected).await;
}

/// A caller whose deadlines are too short to receive its traps is slowed down like any other. The
/// leader records the outcome even if the waiting call was cancelled.
#[tokio::test(flavor = "multi_thread")]
async fn traps_of_cancelled_calls_slow_their_caller_down() {
    // Fuel for a loop that takes longer than the deadline.
    const FUEL: &str = "--fuel-per-call=300000000";
    const DEADLINE: Duration = Duration::from_millis(20);
    let flags = vec![FUEL.into(), "--memory-bytes-max=301989888".into()];
    let cluster = Cluster::start_with(Setup { component: Some(hostile()), flags }).await;
    let client = cluster.client_of(cluster.leader().await);
    let mut errors = Vec::new();
    // The first call loads the descriptors.
    let mut expected = add(&client, 1).await;
    for _ in 0..12 {
        let options = CallOptions::write().deadline(DEADLINE);
        let cut = harness::call(&client, "hostile.v1.Hostile/Loop", json!({}), options).await;
        errors.push(cut.unwrap_err().to_string());
        // The call is applied after the loop.
        expected += 1;
        assert_eq!(add(&client, 1).await, expected);
    }
    assert!(!errors.iter().any(|error| error.contains("fuel")), "none hears of it: {errors:?}");
    assert!(errors.iter().any(|error| error.contains("keep trapping")), "{errors:?}");
}
