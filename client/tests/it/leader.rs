//! Goal: the client finds the leader and the running nodes.

use std::time::{Duration, Instant};

use conclave_client::{CallOptions, Client, Consistency};
use tonic::Code;

use crate::fake::{answer, error, node, slow_node, unused_address};

const SAY: &str = "test.v1.Echo/Say";

fn client(endpoints: &[&str]) -> Client {
    Client::builder()
        .endpoints(endpoints.iter().copied())
        .deadline(Duration::from_secs(3))
        .build()
        .unwrap()
}

/// Goal: a redirect is followed immediately, and later calls go directly to the leader, although it
/// is not an endpoint.
#[tokio::test]
async fn the_leader_that_an_error_names_is_asked_from_then_on() {
    let leader = node(|_| answer(b"done", ""));
    let address = leader.address.clone();
    let follower = node(move |_| Err(error(Code::Unavailable, Some(address.as_str()), true)));
    let client = client(&[&follower.address]);

    let began = Instant::now();
    for _ in 0..3 {
        let reply = client.call_raw(SAY, "hello").await.unwrap();
        assert_eq!(reply.message.as_ref(), b"done");
        assert_eq!(reply.index, Some(42));
    }
    assert!(began.elapsed() < Duration::from_millis(900), "it paused before it followed");
    assert_eq!((follower.calls(), leader.calls()), (1, 3));
}

/// Goal: the client also learns the leader from a successful response.
#[tokio::test]
async fn the_leader_that_an_answer_names_is_asked_from_then_on() {
    let leader = node(|_| answer(b"leader", ""));
    let address = leader.address.clone();
    let follower = node(move |_| answer(b"follower", &address));
    let client = client(&[&follower.address]);

    let first = client.call_raw(SAY, "").await.unwrap();
    assert_eq!(first.leader.as_deref(), Some(leader.address.as_str()));
    assert_eq!(client.call_raw(SAY, "").await.unwrap().message.as_ref(), b"leader");
}

/// Goal: a named leader that is unreachable from here (a container's own address) costs one attempt
/// in total, not one per call.
#[tokio::test]
async fn a_leader_out_of_reach_is_not_insisted_on() {
    let unreachable = unused_address();
    let follower = node(move |_| answer(b"forwarded", &unreachable));
    let client = client(&[&follower.address]);
    let began = Instant::now();
    for _ in 0..20 {
        client.call_raw(SAY, "").await.unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!(follower.calls(), 20);
}

/// Goal: dead endpoints are skipped, also for writes, since nothing was sent to them.
#[tokio::test]
async fn a_dead_node_is_skipped() {
    let alive = node(|_| answer(b"alive", ""));
    let (first, second) = (unused_address(), unused_address());
    let client = client(&[&first, &second, &alive.address]);
    assert_eq!(client.call_raw(SAY, "").await.unwrap().message.as_ref(), b"alive");
}

/// Goal: the client leaves a dead leader for the node that took over.
#[tokio::test]
async fn a_leader_that_dies_is_left() {
    let first = node(|_| answer(b"first", ""));
    let second = node(|_| answer(b"second", ""));
    let client = client(&[&first.address, &second.address]);
    // The first endpoint is chosen at random.
    let drawn = client.call_raw(SAY, "").await.unwrap().message;
    let (dies, _lives, expected) = match drawn.as_ref() {
        b"first" => (first, second, "second"),
        _ => (second, first, "first"),
    };
    drop(dies);
    let options = CallOptions::write().retry_unknown(true);
    let reply = client.call_raw_with(SAY, "", &options).await.unwrap();
    assert_eq!(reply.message.as_ref(), expected.as_bytes());
}

/// Goal: a node that accepts calls and never responds does not use up a read's deadline.
#[tokio::test]
async fn a_hung_node_is_left_in_time() {
    let hung = slow_node(|_| Box::pin(std::future::pending()));
    let alive = node(|_| answer(b"alive", ""));
    // The first endpoint is chosen at random.
    while hung.calls() == 0 {
        let client = client(&[&hung.address, &alive.address]);
        let reply = client.call_raw_with(SAY, "", &CallOptions::read()).await.unwrap();
        assert_eq!(reply.message.as_ref(), b"alive");
    }
}

/// Goal: stale reads are spread over the nodes and carry their consistency.
#[tokio::test]
async fn stale_reads_are_spread_over_the_nodes() {
    let serve = || {
        node(|call| {
            let asked = call.metadata.get("conclave-consistency").unwrap();
            assert_eq!(asked, "stale");
            answer(b"", "127.0.0.1:1")
        })
    };
    let nodes = [serve(), serve(), serve()];
    let endpoints: Vec<_> = nodes.iter().map(|node| node.address.as_str()).collect();
    let client = client(&endpoints);
    let options = CallOptions::read().consistency(Consistency::Stale);
    for _ in 0..9 {
        client.call_raw_with("test.v1.Echo/Ask", "", &options).await.unwrap();
    }
    assert_eq!(nodes.map(|node| node.calls()), [3, 3, 3]);
}

/// Goal: without following the leader, only the endpoints are called.
#[tokio::test]
async fn following_can_be_turned_off() {
    let leader = node(|_| answer(b"leader", ""));
    let address = leader.address.clone();
    let asked = node(move |_| answer(b"asked", &address));
    let client =
        Client::builder().endpoints([&asked.address]).follow_leader(false).build().unwrap();
    for _ in 0..2 {
        assert_eq!(client.call_raw(SAY, "").await.unwrap().message.as_ref(), b"asked");
    }
}

/// Goal: many callers and a pool of connections do not block each other.
#[tokio::test]
async fn calls_run_beside_each_other() {
    let node = slow_node(|_| {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            answer(b"", "")
        })
    });
    let client = Client::builder().endpoints([&node.address]).connections(4).build().unwrap();
    let began = Instant::now();
    let calls: Vec<_> = (0..64)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.call_raw(SAY, "").await.map(drop) })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(2));
}
