//! Goal: only safe calls are retried, and errors describe the attempts.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use conclave_client::{
    CallOptions, Client, Kv,
    proto::kv::{BatchRequest, PutRequest},
};
use tonic::{Code, Status, metadata::MetadataMap};

use crate::fake::{
    GO_AWAY, REFUSED_STREAM, answer, answers_with, error, frozen, hangs_up, node, slow_node,
    unused_address,
};

const SAY: &str = "test.v1.Echo/Say";

fn client(address: &str, deadline_ms: u64) -> Client {
    Client::builder()
        .endpoints([address])
        .deadline(Duration::from_millis(deadline_ms))
        .build()
        .unwrap()
}

fn repeatable() -> CallOptions {
    CallOptions::write().retry_unknown(true)
}

/// A node that has no leader for its first three calls.
fn electing(not_applied: bool) -> crate::fake::Node {
    node(move |call| match call.number {
        0..3 => Err(error(Code::Unavailable, None, not_applied)),
        _ => answer(b"done", ""),
    })
}

#[tokio::test]
async fn a_write_that_was_not_applied_is_retried() {
    let node = electing(true);
    client(&node.address, 3000).call_raw(SAY, "").await.unwrap();
    assert_eq!(node.calls(), 4);
}

#[tokio::test]
async fn a_write_that_may_have_been_applied_is_retried_only_if_the_caller_allows() {
    let node = electing(false);
    let client = client(&node.address, 3000);
    let error = client.call_raw(SAY, "").await.unwrap_err();
    assert!(error.is_unavailable() && error.outcome_unknown(), "{error}");
    assert_eq!(node.calls(), 1);
    client.call_raw_with(SAY, "", &repeatable()).await.unwrap();
    assert_eq!(node.calls(), 4);
}

/// A repeated put may undo an acknowledged write of another client.
#[tokio::test]
async fn the_key_value_stores_writes_are_retried_only_if_the_caller_allows() {
    let flaky = || {
        node(|call| match call.number {
            0 => Err(error(Code::Unavailable, None, false)),
            _ => answer(b"", ""),
        })
    };
    let (put, batch) = (PutRequest::default(), BatchRequest::default());
    for write in 0..3 {
        let node = flaky();
        let kv = client(&node.address, 3000).kv();
        let send = async |kv: &Kv| match write {
            0 => kv.put(&put).await.map(drop),
            1 => kv.delete("key").await.map(drop),
            _ => kv.batch(&batch).await.map(drop),
        };
        let error = send(&kv).await.unwrap_err();
        assert!(error.outcome_unknown(), "{error}");
        assert!(error.to_string().contains("read it back before you send it again"), "{error}");
        assert_eq!(node.calls(), 1);

        let node = flaky();
        send(&client(&node.address, 3000).kv().retry_unknown(true)).await.unwrap();
        assert_eq!(node.calls(), 2);
    }
}

#[tokio::test]
async fn a_read_is_retried_whatever_happened_to_it() {
    let node = electing(false);
    client(&node.address, 3000).call_raw_with(SAY, "", &CallOptions::read()).await.unwrap();
}

/// Goal: a connection that is lost during a write leaves its outcome unknown. A failed connection
/// attempt does not.
#[tokio::test]
async fn a_lost_connection_is_told_from_none() {
    let peer = hangs_up();
    let lost = client(&peer.address, 1000).call_raw(SAY, "x".repeat(500)).await.unwrap_err();
    assert!(lost.is_unavailable() && lost.outcome_unknown(), "{lost}");
    assert_eq!(peer.calls(), 1, "it was retried");

    let none = client(&unused_address(), 300).call_raw(SAY, "").await.unwrap_err();
    assert!(none.is_unavailable() && !none.outcome_unknown(), "{none}");
    assert!(none.to_string().contains("connection refused"), "{none}");
    assert!(none.to_string().contains("times"), "{none}");
}

#[tokio::test]
async fn a_machines_answer_is_final() {
    for code in [Code::NotFound, Code::Aborted, Code::InvalidArgument, Code::ResourceExhausted] {
        let node = node(move |_| Err(Status::new(code, "the machine says no")));
        let error =
            client(&node.address, 1000).call_raw_with(SAY, "", &repeatable()).await.unwrap_err();
        assert_eq!((error.code(), error.message()), (code, "the machine says no"));
        assert!(!error.outcome_unknown());
        assert_eq!(node.calls(), 1);
    }
}

#[tokio::test]
async fn a_trap_is_final_and_has_a_kind() {
    let node = node(move |_| {
        let mut metadata = MetadataMap::new();
        metadata.insert("conclave-trap", "panic".parse().unwrap());
        Err(Status::with_metadata(Code::Internal, "the state machine trapped", metadata))
    });
    let error =
        client(&node.address, 1000).call_raw_with(SAY, "", &repeatable()).await.unwrap_err();
    assert_eq!((error.code(), error.trap_kind()), (Code::Internal, Some("panic")));
    assert!(!error.outcome_unknown());
    assert_eq!(node.calls(), 1);
}

/// Goal: a write waits for room at a busy node.
#[tokio::test]
async fn a_write_is_retried_while_the_node_is_busy() {
    let refusals = AtomicUsize::new(3);
    let node = node(move |_| {
        let left =
            refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match left {
            Ok(_) => Err(error(Code::Unavailable, None, true)),
            Err(_) => answer(b"", ""),
        }
    });
    client(&node.address, 3000).call_raw(SAY, "").await.unwrap();
    assert_eq!(node.calls(), 4);
}

/// Goal: the call ends at the deadline, and the error lists each endpoint with its failure.
#[tokio::test]
async fn the_deadline_holds_and_the_error_says_what_was_tried() {
    let electing = node(|_| Err(error(Code::Unavailable, None, true)));
    let dead = unused_address();
    let client = Client::builder()
        .endpoints([&electing.address, &dead])
        .deadline(Duration::from_millis(400))
        .build()
        .unwrap();
    let began = Instant::now();
    let error = client.call_raw(SAY, "").await.unwrap_err();
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(395) && took < Duration::from_millis(900), "{took:?}");
    let text = error.to_string();
    assert!(text.contains(&electing.address) && text.contains("scripted"), "{text}");
    assert!(text.contains(&dead) && text.contains("connection refused"), "{text}");
    assert!(!error.outcome_unknown());
}

/// Goal: a write may use its whole deadline at one node, since it cannot be repeated. After the
/// deadline its outcome is unknown.
#[tokio::test]
async fn a_write_waits_for_its_answer_until_the_deadline() {
    let hung = slow_node(|_| Box::pin(std::future::pending()));
    let error = client(&hung.address, 400).call_raw(SAY, "").await.unwrap_err();
    assert!(error.is_deadline() && error.outcome_unknown(), "{error:?}");
    assert_eq!(hung.calls(), 1);

    let slow = slow_node(|_| {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(600)).await;
            answer(b"late", "")
        })
    });
    client(&slow.address, 1000).call_raw(SAY, "").await.unwrap();
}

/// Goal: a request that the node has not processed is retried. Regression: writes failed during
/// a graceful restart.
#[tokio::test]
async fn a_stream_that_was_refused_was_not_applied() {
    for frame in [REFUSED_STREAM, GO_AWAY] {
        let (refusing, healthy) = (answers_with(frame), node(|_| answer(b"done", "")));
        // The first endpoint is chosen at random.
        while refusing.calls() < 3 {
            let client = Client::builder().endpoints([&refusing.address, &healthy.address]);
            client.build().unwrap().call_raw(SAY, "").await.unwrap();
        }
    }
}

/// Goal: nothing is sent to a frozen process, although its kernel accepts connections.
#[tokio::test]
async fn a_write_goes_round_a_node_that_is_frozen() {
    let (frozen, healthy) = (frozen(), node(|_| answer(b"done", "")));
    for _ in 0..8 {
        let client = Client::builder()
            .endpoints([&frozen.address, &healthy.address])
            .connect_timeout(Duration::from_millis(200));
        client.build().unwrap().call_raw(SAY, "").await.unwrap();
    }
    let error = client(&frozen.address, 1500).call_raw(SAY, "").await.unwrap_err();
    assert!(error.is_unreachable() && error.not_applied(), "{error:?}");
    assert!(error.to_string().contains("no connection within"), "{error}");
}

/// Goal: one attempt of a long operation may use the whole deadline set by the caller.
#[tokio::test]
async fn a_long_call_is_not_cut_into_attempts() {
    let slow = slow_node(|_| {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(600)).await;
            answer(b"late", "")
        })
    });
    let long = repeatable().long(Duration::from_secs(30));
    client(&slow.address, 400).call_raw_with(SAY, "", &long).await.unwrap();
    assert_eq!(slow.calls(), 1);

    let hung = slow_node(|_| Box::pin(std::future::pending()));
    let impatient = Client::builder().endpoints([&hung.address]);
    let impatient = impatient.long_deadline(Duration::from_millis(300)).build().unwrap();
    let began = Instant::now();
    let error = impatient.call_raw_with(SAY, "", &long).await.unwrap_err();
    assert!(error.is_deadline() && began.elapsed() < Duration::from_secs(20), "{error:?}");
}

#[tokio::test]
async fn an_error_says_whether_a_node_answered() {
    let electing = node(|_| Err(error(Code::Unavailable, None, true)));
    let error = client(&electing.address, 300).call_raw(SAY, "").await.unwrap_err();
    assert!(!error.is_unreachable() && error.message().contains("no success within"), "{error}");
    let error = client(&unused_address(), 300).call_raw(SAY, "").await.unwrap_err();
    assert!(error.is_unreachable() && error.message().contains("no answer within"), "{error}");
}

/// Goal: the node receives the caller's deadline.
#[tokio::test]
async fn the_node_learns_the_deadline() {
    let node = node(|call| {
        assert!(call.metadata.contains_key("grpc-timeout"));
        assert_eq!(call.path, "/test.v1.Echo/Say");
        assert_eq!(call.message.as_ref(), b"bytes");
        answer(b"", "")
    });
    client(&node.address, 1000).call_raw("test.v1.Echo.Say", "bytes").await.unwrap();
}

/// Each node keeps its own events. After a restart a node has fewer than the others.
#[tokio::test]
async fn subscription_resumes_at_the_node_that_keeps_the_events() {
    let gone = || node(|_| Err(error(Code::OutOfRange, None, false)));
    let (lacks, keeps) = (gone(), node(|_| answer(b"event", "")));
    let of = |nodes: [&crate::fake::Node; 2]| {
        Client::builder().endpoints(nodes.map(|node| node.address.clone())).build().unwrap()
    };
    let resume =
        async |client: &Client| client.subscribe_raw(SAY, "", Some(7), &CallOptions::read()).await;
    for nodes in [[&lacks, &keeps], [&keeps, &lacks]] {
        let mut stream = resume(&of(nodes)).await.map_err(|error| error.to_string()).unwrap();
        assert!(stream.next().await.unwrap().is_some());
    }
    let other = gone();
    let before = lacks.calls();
    let refused = resume(&of([&lacks, &other])).await.err().unwrap();
    assert_eq!(refused.code(), Code::OutOfRange);
    assert_eq!((lacks.calls() - before, other.calls()), (1, 1), "once each");
}
