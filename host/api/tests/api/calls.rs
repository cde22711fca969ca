//! Goal: the state machine's methods are gRPC methods, and invalid requests do not reach the log.

use std::time::Duration;

use bytes::Bytes;
use conclave_api::Options;
use conclave_proto as proto;
use conclave_types::status::Consistency;
use prost::Message;
use tonic::{Code, Request};

use crate::fake::{GET, Node, PUT, Script, call_with_timeout, counter, metadata};

#[tokio::test]
async fn a_command_and_a_query_pass_through_as_bytes() {
    let node = Node::start().await;
    let put = node.call("/kv.v1.KV/Put", PUT).await.unwrap();
    assert_eq!(metadata(put.metadata(), "conclave-index"), Some("1"));
    assert_eq!(metadata(put.metadata(), "conclave-leader"), Some("client:1"));
    assert_eq!(put.into_inner(), PUT);

    let get = node.call("/kv.v1.KV/Get", GET).await.unwrap();
    assert_eq!(metadata(get.metadata(), "conclave-index"), Some("2"));
    assert_eq!(get.into_inner(), GET);

    let seen = node.fake.seen.lock().unwrap();
    let (call, consistency) = &seen[0];
    assert_eq!((&*call.method, &call.request[..], &*call.principal), ("kv.v1.KV/Put", PUT, ""));
    assert_eq!(*consistency, None);
    let (call, consistency) = &seen[1];
    assert_eq!((&*call.method, *consistency), ("kv.v1.KV/Get", Some(Consistency::Linearizable)));
}

#[tokio::test]
async fn messages_of_all_sizes_come_back_whole() {
    let node = Node::start().await;
    for value_bytes in [0, 1, 200, 16 * 1024, 64 * 1024, 300 * 1024, 4 * 1024 * 1024 - 64] {
        // Field 2 of PutRequest.
        let mut request = vec![0x12];
        prost::encoding::encode_varint(value_bytes as u64, &mut request);
        request.resize(request.len() + value_bytes, b'x');
        let response = node.call("/kv.v1.KV/Put", &request).await.unwrap();
        assert!(response.into_inner() == request, "{value_bytes}");
    }
    // An empty message is a message.
    assert!(node.call("/kv.v1.KV/Put", b"").await.unwrap().into_inner().is_empty());
}

#[tokio::test]
async fn a_request_over_the_limit_is_told_the_limit() {
    let node = Node::with(Options { request_bytes_max: 1000, ..Options::default() }).await;
    let channel = node.channel().await;
    for length in [1001, 100_000, 3_000_000, 40_000_000] {
        let request = Request::new(Bytes::from(vec![0; length]));
        let status =
            crate::fake::call(channel.clone(), "/kv.v1.KV/Put", request).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{length}: {status}");
        assert!(status.message().contains(&format!("{length} bytes")), "{status}");
        assert!(status.message().contains("at most 1000"), "{status}");
    }
    assert!(node.fake.seen.lock().unwrap().is_empty());
    // The connection still works.
    let put = crate::fake::call(channel, "/kv.v1.KV/Put", Request::new(Bytes::from_static(PUT)));
    put.await.unwrap();
    // The limit also applies to the request inside a generic call.
    let request = proto::machine::ApplyRequest {
        method: "kv.v1.KV/Put".to_owned(),
        request: vec![0; 1001].into(),
    };
    let path = "/conclave.machine.v1.Machine/Apply";
    let status = node.call(path, &request.encode_to_vec()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn more_calls_than_the_node_takes_at_once_are_told_so() {
    // One connection may have half of the calls, and its share of the rest.
    let node = Node::with(Options { calls_in_flight_max: 4, ..Options::default() }).await;
    node.script(Script::Hang);
    let channel = node.channel().await;
    let put = || {
        let request = Request::new(Bytes::from_static(PUT));
        tokio::spawn(crate::fake::call(channel.clone(), "/kv.v1.KV/Put", request))
    };
    let hanging = [put(), put()];
    while node.fake.seen.lock().unwrap().len() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let status = put().await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert_eq!(metadata(status.metadata(), "conclave-outcome"), Some("not-applied"));
    // Another connection is served.
    let script = std::mem::replace(&mut *node.fake.script.lock().unwrap(), Script::Echo);
    node.call("/kv.v1.KV/Put", PUT).await.unwrap();
    node.script(script);
    // Callers that disconnect free their slots.
    for call in hanging {
        call.abort();
    }
    node.script(Script::Echo);
    let mut made_room = false;
    for _ in 0..200 {
        made_room = put().await.unwrap().is_ok();
        if made_room {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(made_room);
}

#[tokio::test]
async fn malformed_protobuf_does_not_reach_the_log() {
    let node = Node::start().await;
    let cases: [(&[u8], &str); 3] = [
        (b"\x0a\xff", "field 1: "),
        (b"\x0a\x02\xff\xfe", "a string that is not UTF-8"),
        (b"\x08\x01", "another wire type"),
    ];
    for (request, reason) in cases {
        let status = node.call("/kv.v1.KV/Put", request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(reason), "{status}");
        assert!(status.message().contains("kv.v1.PutRequest"), "{status}");
    }
    // An unknown field of a newer client is accepted.
    node.call("/kv.v1.KV/Put", b"\xa0\x06\x01").await.unwrap();
    assert_eq!(node.fake.seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn consistency_is_asked_for_by_name() {
    let node = Node::start().await;
    let get = |consistency: &'static str| {
        let mut request = Request::new(Bytes::from_static(GET));
        request.metadata_mut().insert("conclave-consistency", consistency.parse().unwrap());
        node.send("/kv.v1.KV/Get", request)
    };
    for consistency in [Consistency::Linearizable, Consistency::Lease, Consistency::Stale] {
        get(consistency.name()).await.unwrap();
        let seen = node.fake.seen.lock().unwrap().pop().unwrap();
        assert_eq!(seen.1, Some(consistency));
    }
    let status = get("eventual").await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("linearizable, lease or stale"), "{status}");
}

#[tokio::test]
async fn a_deadline_that_passes_says_whether_the_outcome_is_known() {
    let node = Node::start().await;
    node.script(Script::Hang);
    let status = call_with_timeout(node.client, "/kv.v1.KV/Put", "100m", PUT).await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(status.message().contains("may or may not have been applied"), "{status}");
    assert_eq!(metadata(status.metadata(), "conclave-outcome"), Some("unknown"));

    let status = call_with_timeout(node.client, "/kv.v1.KV/Get", "100m", GET).await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert_eq!(metadata(status.metadata(), "conclave-outcome"), Some("not-applied"));

    let status = call_with_timeout(node.client, "/kv.v1.KV/Put", "soon", PUT).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
}

#[tokio::test]
async fn without_a_timeout_the_default_holds_and_a_long_one_is_cut() {
    let mut options = Options::default();
    options.deadlines.default = Duration::from_millis(50);
    options.deadlines.max = Duration::from_millis(100);
    let node = Node::with(options).await;
    node.script(Script::Hang);
    let status = node.call("/kv.v1.KV/Put", PUT).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    // A default that exceeds the maximum also applies.
    let mut options = Options::default();
    options.deadlines.default = Duration::from_millis(300);
    options.deadlines.max = Duration::from_millis(100);
    let patient = Node::with(options).await;
    patient.script(Script::Hang);
    let began = std::time::Instant::now();
    patient.call("/kv.v1.KV/Put", PUT).await.unwrap_err();
    assert!(began.elapsed() >= Duration::from_millis(300));
    // A deadline that passes before the call can be served ends the call before it is proposed.
    let before = node.fake.seen.lock().unwrap().len();
    let status = call_with_timeout(node.client, "/kv.v1.KV/Put", "1n", PUT).await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(metadata(status.metadata(), "conclave-outcome"), Some("not-applied"));
    assert_eq!(node.fake.seen.lock().unwrap().len(), before);
    let status = call_with_timeout(node.client, "/kv.v1.KV/Put", "1H", PUT).await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn what_nobody_serves_is_unimplemented_and_names_what_is() {
    let node = Node::start().await;
    for path in ["/kv.v1.KV/Nothing", "/other.v1.Other/Get", "/", "/grpc.health.v1.Health"] {
        let status = node.call(path, GET).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{path}");
        assert!(status.message().contains("kv.v1.KV"), "{status}");
        assert!(status.message().contains("conclave.machine.v1.Machine"), "{status}");
    }
}

#[tokio::test]
async fn the_generic_service_takes_names_and_bytes() {
    let node = Node::start().await;
    let mut client = proto::machine::machine_client::MachineClient::new(node.channel().await);
    let apply = |method: &str, request: &'static [u8]| proto::machine::ApplyRequest {
        method: method.to_owned(),
        request: Bytes::from_static(request),
    };
    let answer = client.apply(apply("kv.v1.KV/Put", PUT)).await.unwrap();
    assert_eq!(metadata(answer.metadata(), "conclave-index"), Some("1"));
    let answer = answer.into_inner();
    assert_eq!((&answer.response[..], answer.index), (PUT, 1));
    // A method without a descriptor is passed to the state machine unchecked.
    let answer = client.apply(apply("raw", b"\xff\xff")).await.unwrap().into_inner();
    assert_eq!(&answer.response[..], b"\xff\xff");
    for (method, request) in [("kv.v1.KV/Put", &b"\x0a\xff"[..]), ("kv.v1.KV/Get", GET), ("", GET)]
    {
        let status = client.apply(apply(method, request)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{method}");
    }
    // The maximum length of a method name is the one promised to state machines.
    client.apply(apply(&"m".repeat(256), b"")).await.unwrap();
    let status = client.apply(apply(&"m".repeat(257), b"")).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("257 bytes"), "{status}");
    let query = proto::machine::QueryRequest {
        method: "kv.v1.KV/Get".to_owned(),
        request: Bytes::from_static(GET),
    };
    let answer = client.query(query).await.unwrap().into_inner();
    assert_eq!((&answer.response[..], answer.index), (GET, 4));

    let machine = client.describe(proto::machine::DescribeRequest {}).await.unwrap().into_inner();
    assert_eq!((&*machine.version, machine.state_version), ("1.2.3", 4));
    assert_eq!(machine.component_id, "07".repeat(32));
    assert_eq!(machine.methods.len(), 3);
}

#[tokio::test]
async fn the_cluster_service_tells_what_the_replica_knows() {
    let node = Node::start().await;
    let mut client = proto::cluster::cluster_client::ClusterClient::new(node.channel().await);
    let status = client.status(proto::cluster::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((&*status.cluster_id, status.leader, status.term), ("test", 1, 3));
    let roles: Vec<_> = status.nodes.iter().map(|node| (node.id, &*node.role)).collect();
    assert_eq!(roles, [(1, "leader"), (2, "unreachable")]);
    assert_eq!(status.nodes[0].component, "07".repeat(32));
    let answer = client.snapshot(proto::cluster::SnapshotRequest {}).await.unwrap();
    assert_eq!(answer.into_inner().index, 10);
    // Two nodes agree and a third did not respond, which does not count as equal.
    let found = client.verify(proto::cluster::VerifyRequest {}).await.unwrap().into_inner();
    assert_eq!((found.index, found.equal, found.nodes.len()), (9, false, 3));
    assert_eq!((found.nodes[0].digest.clone(), found.nodes[0].bytes), ("01".repeat(32), 3));
    assert_eq!((&*found.nodes[2].reason, &*found.nodes[2].state), ("it is away", ""));
    let set = client.set_time(proto::cluster::SetTimeRequest { time_ms: 9 }).await.unwrap();
    let set = set.into_inner();
    assert_eq!((set.index, set.before_ms, set.time_ms), (7, 1, 9));
    let back = client.set_time(proto::cluster::SetTimeRequest { time_ms: 0 }).await.unwrap_err();
    assert_eq!(back.code(), Code::FailedPrecondition, "{back}");
}

#[tokio::test]
async fn limits_are_shown_and_changed() {
    use proto::cluster::{Limits, SetLimitsRequest};
    let node = Node::start().await;
    let mut client = proto::cluster::cluster_client::ClusterClient::new(node.channel().await);
    let status = client.status(proto::cluster::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.limits_index, status.limits.unwrap().memory_bytes_max()), (5, 1 << 30));
    let mut set = async |limits| {
        let request = SetLimitsRequest { limits: Some(limits) };
        client.set_limits(request).await.map(tonic::Response::into_inner)
    };
    let changed = set(Limits { fuel_per_call: Some(6_000_000), ..Limits::default() }).await;
    let changed = changed.unwrap();
    let limits = changed.limits.unwrap();
    assert_eq!(
        (changed.index, limits.fuel_per_call(), limits.fuel_per_query()),
        (8, 6_000_000, 3_000_000)
    );
    let refused = set(Limits { memory_bytes_max: Some(1), ..Limits::default() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("memory_bytes_max = 1"), "{refused}");
}

#[tokio::test]
async fn another_machine_takes_over_at_once() {
    let node = Node::start().await;
    let channel = node.channel().await;
    let call = |path, request: &'static [u8]| {
        crate::fake::call(channel.clone(), path, Request::new(Bytes::from_static(request)))
    };
    call("/kv.v1.KV/Put", PUT).await.unwrap();
    node.api.set_machine(std::sync::Arc::new(counter())).unwrap();
    call("/counter.v1.Counter/Add", b"\x08\x01").await.unwrap();
    assert_eq!(call("/kv.v1.KV/Put", PUT).await.unwrap_err().code(), Code::Unimplemented);

    // An inconsistent description is rejected, and the previous state machine stays active.
    let mut broken = counter();
    broken.methods[0].name = "counter.v1.Counter/Sub".into();
    let error = node.api.set_machine(std::sync::Arc::new(broken)).unwrap_err();
    assert!(error.to_string().contains("counter.v1.Counter/Sub"), "{error}");
    call("/counter.v1.Counter/Add", b"\x08\x01").await.unwrap();
}
