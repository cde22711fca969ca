//! Events of a diverged state machine: its subscriptions end, and none of its events outlives
//! the repair.

use std::time::Duration;

use conclave_client::{CallOptions, Subscription};
use prost::Message;
use prost_types::{
    DescriptorProto, FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto,
    ServiceDescriptorProto,
};
use tokio::time::timeout;

use crate::divergence::{COUNT, apply, corrupt, machine, repaired, start_machine};
use conclave_testing::wat::Wat;

/// Returns the descriptors of a service with one streaming method.
fn descriptors() -> Vec<u8> {
    let message = DescriptorProto { name: Some("M".into()), ..DescriptorProto::default() };
    let watch = MethodDescriptorProto {
        name: Some("Watch".into()),
        input_type: Some(".w.M".into()),
        output_type: Some(".w.M".into()),
        server_streaming: Some(true),
        ..MethodDescriptorProto::default()
    };
    let service = ServiceDescriptorProto {
        name: Some("W".into()),
        method: vec![watch],
        ..ServiceDescriptorProto::default()
    };
    let file = FileDescriptorProto {
        name: Some("w.proto".into()),
        package: Some("w".into()),
        message_type: vec![message],
        service: vec![service],
        syntax: Some("proto3".into()),
        ..FileDescriptorProto::default()
    };
    FileDescriptorSet { file: vec![file] }.encode_to_vec()
}

/// A state machine that counts like [`machine`], with an event for each count.
fn announcing() -> Wat {
    Wat {
        apply: "(if (i32.eq (local.get 8) (i32.const 1)) (then unreachable))
            (i64.store (i32.const 8) (i64.add (i64.load (i32.const 8)) (i64.const 1)))
            (i32.store (i32.const 800) (i32.const 8)) (i32.store (i32.const 804) (i32.const 0))
            (i32.store (i32.const 808) (i32.const 8)) (i32.store (i32.const 812) (i32.const 8))
            (i32.store (i32.const 272) (i32.const 800)) (i32.store (i32.const 276) (i32.const 1))
            (i32.store (i32.const 268) (i32.const 8))
            (i32.store (i32.const 264) (i32.const 8)) (i32.const 256)",
        subscribe: "(i32.store8 (i32.const 512) (i32.const 0))
            (i32.store (i32.const 516) (i32.const 0)) (i32.store (i32.const 520) (i32.const 0))
            (i32.store (i32.const 524) (i32.const 0)) (i32.store (i32.const 528) (i32.const 0))
            (i32.store (i32.const 532) (i32.const 900)) (i32.store (i32.const 536) (i32.const 0))
            (i32.const 512)",
        descriptor_set: descriptors(),
        ..machine()
    }
}

/// Returns the next count, or `None` if the subscription ends.
async fn next(events: &mut Subscription) -> Option<i64> {
    let next = timeout(Duration::from_secs(20), events.next()).await.expect("something happens");
    let bytes = next.ok()??;
    Some(i64::from_le_bytes(bytes[..].try_into().unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_diverged_state_machine_end_with_it() {
    let (cluster, _dir) = start_machine(&announcing(), &[]).await;
    let leader = cluster.leader().await;
    let victim = leader % 3 + 1;
    corrupt(&cluster, victim, 1).await;
    let target = cluster.client_of(victim);
    let options = CallOptions::read();
    let mut events = target.subscribe_raw("w.W/Watch", COUNT, None, &options).await.unwrap();
    let before = events.index().unwrap();
    // The cluster is idle afterwards, so the state sent to the node has the index at which the
    // node stands.
    assert_eq!(apply(&cluster.client_of(leader), COUNT).await.unwrap().0, 2);
    let mut seen = Vec::new();
    while let Some(count) = next(&mut events).await {
        seen.push(count);
    }
    // Until the check, the diverged state was served.
    assert!(seen.is_empty() || seen == [1002], "{seen:?}");
    repaired(&cluster, victim, 1).await;
    // A subscription that resumes from before gets the correct event, or is told to start from
    // the beginning.
    match target.subscribe_raw("w.W/Watch", COUNT, Some(before), &options).await {
        Ok(mut events) => {
            assert_eq!(apply(&cluster.client_of(leader), COUNT).await.unwrap().0, 3);
            let first = next(&mut events).await;
            assert!(first.is_none_or(|count| count == 2), "{first:?}");
        }
        Err(error) => assert!(error.code() == conclave_client::Code::OutOfRange, "{error}"),
    }
    let mut events = target.subscribe_raw("w.W/Watch", COUNT, None, &options).await.unwrap();
    let (count, _) = apply(&cluster.client_of(leader), COUNT).await.unwrap();
    assert_eq!(next(&mut events).await, Some(count));
}
