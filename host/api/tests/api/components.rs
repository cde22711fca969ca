//! Goal: every step of an upgrade on the client port passes the request to the replica and
//! returns its result.

use conclave_proto::cluster as wire;
use prost::Message;
use tonic::{Code, Status};

use crate::{
    fake::{Node, call_with_timeout, metadata},
    fake_components::COMPONENT,
};

const PUSH: &str = "/conclave.cluster.v1.Cluster/PushComponent";
const LIST: &str = "/conclave.cluster.v1.Cluster/ListComponents";
const REHEARSE: &str = "/conclave.cluster.v1.Cluster/RehearseComponent";
const DIFF: &str = "/conclave.cluster.v1.Cluster/DiffComponent";
const ACTIVATE: &str = "/conclave.cluster.v1.Cluster/ActivateComponent";
const ROLLBACK: &str = "/conclave.cluster.v1.Cluster/RollbackComponent";

async fn ask<R: Message + Default>(
    node: &Node,
    path: &'static str,
    request: &impl Message,
) -> Result<R, Status> {
    let answer = node.call(path, &request.encode_to_vec()).await?;
    Ok(R::decode(answer.into_inner()).unwrap())
}

#[tokio::test]
async fn a_push_is_told_where_to_go_on_until_the_component_is_there() {
    let node = Node::start().await;
    let piece = |at, bytes: &'static [u8]| wire::PushComponentRequest {
        component: COMPONENT.0.to_vec().into(),
        total_bytes: 6,
        at,
        bytes: bytes.into(),
    };
    let first: wire::PushComponentResponse = ask(&node, PUSH, &piece(0, b"abc")).await.unwrap();
    assert_eq!((first.next_at, first.component), (3, None));
    let last: wire::PushComponentResponse = ask(&node, PUSH, &piece(3, b"def")).await.unwrap();
    assert_eq!(last.component.unwrap().id, COMPONENT.to_string());
    let nameless =
        wire::PushComponentRequest { component: b"short"[..].into(), ..piece(0, b"abc") };
    let status = ask::<wire::PushComponentResponse>(&node, PUSH, &nameless).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("32 bytes, not 5"), "{status}");
    // A piece may exceed the request limit of state machines, but has a limit of its own.
    let large = wire::PushComponentRequest { bytes: vec![0; 1 << 20].into(), ..piece(0, b"") };
    assert!(ask::<wire::PushComponentResponse>(&node, PUSH, &large).await.is_ok());
    let huge = wire::PushComponentRequest { bytes: vec![0; 2 << 20].into(), ..piece(0, b"") };
    let status = ask::<wire::PushComponentResponse>(&node, PUSH, &huge).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
}

#[tokio::test]
async fn what_the_nodes_found_is_told() {
    let node = Node::start().await;
    let listed: wire::ListComponentsResponse =
        ask(&node, LIST, &wire::ListComponentsRequest {}).await.unwrap();
    let nodes = &listed.components[0].nodes;
    assert_eq!(
        (nodes[0].state.as_str(), nodes[0].migration_ms, nodes[0].entries),
        ("ready", 12, 34)
    );
    assert_eq!((nodes[1].state.as_str(), nodes[1].reason.as_str()), ("failed", "entry 7 traps"));
    let request = wire::RehearseComponentRequest { component: "0909".into() };
    let rehearsed: wire::RehearseComponentResponse = ask(&node, REHEARSE, &request).await.unwrap();
    assert!(!rehearsed.ready, "one is not");
    let request = wire::DiffComponentRequest { component: "0909".into() };
    let diff: wire::DiffComponentResponse = ask(&node, DIFF, &request).await.unwrap();
    assert!(diff.restores && diff.changes[0].breaking && diff.changes[0].subject == "kv.v1.KV/Put");
}

#[tokio::test]
async fn an_activation_that_ran_out_of_time_may_still_come() {
    let node = Node::start().await;
    let request = |allow_breaking| wire::ActivateComponentRequest {
        component: "0909".into(),
        allow_breaking,
        without: vec![],
    };
    let activated: wire::ActivateComponentResponse =
        ask(&node, ACTIVATE, &request(true)).await.unwrap();
    assert_eq!((activated.component, activated.index), (COMPONENT.to_string(), 44));
    let bytes = request(false).encode_to_vec();
    let status = call_with_timeout(node.client, ACTIVATE, "200m", &bytes).await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(metadata(status.metadata(), "conclave-outcome"), Some("unknown"));

    let rollback = wire::RollbackComponentRequest {
        from: "0909".into(),
        allow_breaking: false,
        without: vec![],
    };
    let status =
        ask::<wire::ActivateComponentResponse>(&node, ROLLBACK, &rollback).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::FailedPrecondition, "nothing to roll back to")
    );
    let unknown = wire::ActivateComponentRequest {
        component: "08".into(),
        allow_breaking: false,
        without: vec![],
    };
    let status =
        ask::<wire::ActivateComponentResponse>(&node, ACTIVATE, &unknown).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
}
