//! Goal: a server-streaming method sends the initial state, then the events; its end carries a
//! reason and an index.

use std::time::Duration;

use bytes::Bytes;
use conclave_api::Options;
use conclave_types as types;
use http::uri::PathAndQuery;
use tokio::time::timeout;
use tonic::{Code, Request, Status, Streaming};

use crate::fake::{GET, Node, Raw, Script, metadata};

const SECONDS: Duration = Duration::from_secs(20);

fn watch() -> Request<Bytes> {
    Request::new(Bytes::from_static(GET))
}

/// Returns the stream, and the index in its leading metadata.
async fn open(
    node: &Node,
    request: Request<Bytes>,
) -> Result<(Streaming<Bytes>, Option<String>), Status> {
    let mut client = tonic::client::Grpc::new(node.channel().await);
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static("/kv.v1.KV/Watch");
    let response = client.server_streaming(request, path, Raw).await?;
    let index = metadata(response.metadata(), "conclave-index").map(str::to_owned);
    assert_eq!(metadata(response.metadata(), "conclave-leader"), Some("client:1"));
    Ok((response.into_inner(), index))
}

async fn next(stream: &mut Streaming<Bytes>) -> Result<Option<Bytes>, Status> {
    timeout(SECONDS, stream.message()).await.expect("a message or an end")
}

/// Sends an event. The node must have a subscriber.
fn happens(node: &Node, index: u64, messages: &[&'static str]) {
    let messages = messages.iter().map(|message| Bytes::from_static(message.as_bytes())).collect();
    node.fake.events.send((index, Some(messages))).unwrap();
}

#[tokio::test]
async fn what_is_comes_first_then_what_happens_and_the_end_says_where() {
    let node = Node::start().await;
    node.fake.index.store(7, std::sync::atomic::Ordering::Relaxed);
    let (mut stream, index) = open(&node, watch()).await.unwrap();
    assert_eq!(index.as_deref(), Some("7"));
    assert_eq!(next(&mut stream).await.unwrap().unwrap(), GET);
    happens(&node, 8, &["a", "b"]);
    happens(&node, 11, &["c"]);
    for expected in ["a", "b", "c"] {
        assert_eq!(next(&mut stream).await.unwrap().unwrap(), expected);
    }
    node.fake.events.send((11, None)).unwrap();
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert_eq!(metadata(status.metadata(), "conclave-index"), Some("11"));
}

#[tokio::test]
async fn a_subscription_goes_on_from_an_index() {
    let node = Node::start().await;
    let mut request = watch();
    request.metadata_mut().insert("conclave-from-index", "41".parse().unwrap());
    let (mut stream, index) = open(&node, request).await.unwrap();
    assert_eq!((index.as_deref(), *node.fake.resumed.lock().unwrap()), (Some("41"), Some(41)));
    happens(&node, 42, &["a"]);
    assert_eq!(next(&mut stream).await.unwrap().unwrap(), "a", "nothing came first");

    let mut request = watch();
    request.metadata_mut().insert("conclave-from-index", "-1".parse().unwrap());
    let status = open(&node, request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("conclave-from-index"), "{status}");
}

#[tokio::test]
async fn a_refusal_is_an_answer() {
    let node = Node::start().await;
    let failure = || types::Failure { code: types::Code::NotFound, message: "no".to_owned() };
    node.script(Script::Answer(Err(failure())));
    assert_eq!(open(&node, watch()).await.unwrap_err().code(), Code::NotFound);
    node.script(Script::Refuse(conclave_types::error::Error::no_quorum));
    assert_eq!(open(&node, watch()).await.unwrap_err().code(), Code::Unavailable);
    // Not protobuf of the method's type.
    let status = open(&node, Request::new(Bytes::from_static(b"\x0a\xff"))).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_stream_ends_by_its_deadline_and_not_before() {
    let node = Node::start().await;
    let mut request = watch();
    request.metadata_mut().insert("grpc-timeout", "300m".parse().unwrap());
    let (mut stream, _) = open(&node, request).await.unwrap();
    next(&mut stream).await.unwrap().unwrap();
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_node_that_stops_ends_its_streams() {
    let mut node = Node::start().await;
    let (mut stream, _) = open(&node, watch()).await.unwrap();
    next(&mut stream).await.unwrap().unwrap();
    happens(&node, 5, &["a"]);
    assert_eq!(next(&mut stream).await.unwrap().unwrap(), "a");
    // Entries without events for this subscriber have been applied since.
    node.fake.position.store(900, std::sync::atomic::Ordering::Relaxed);
    drop(node.stop.take());
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(metadata(status.metadata(), "conclave-index"), Some("900"));
    let served = node.served.take().unwrap();
    timeout(Duration::from_secs(3), served).await.expect("no stream holds it up").unwrap();
}

/// Unread messages of a subscriber wait in its own stream, and the node continues.
#[tokio::test]
async fn a_subscriber_that_does_not_read_holds_nobody_up() {
    let node = Node::start().await;
    let (_slow, _) = open(&node, watch()).await.unwrap();
    let (mut quick, _) = open(&node, watch()).await.unwrap();
    next(&mut quick).await.unwrap().unwrap();
    for index in 1..=50 {
        let message = Bytes::from(vec![b'x'; 64 * 1024]);
        node.fake.events.send((index, Some(vec![message]))).unwrap();
        assert_eq!(next(&mut quick).await.unwrap().unwrap().len(), 64 * 1024);
    }
    node.call("/kv.v1.KV/Get", GET).await.unwrap();
}

/// A subscriber that requests progress receives its index, also without messages.
#[tokio::test]
async fn a_quiet_subscription_says_how_far_it_has_come() {
    let node = Node::start().await;
    let mut request = watch();
    request.metadata_mut().insert("conclave-progress-ms", "1000".parse().unwrap());
    let mut client = tonic::client::Grpc::new(node.channel().await);
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static("/kv.v1.KV/Watch");
    let response = client.server_streaming(request, path, Raw).await.unwrap();
    assert_eq!(metadata(response.metadata(), "conclave-progress-ms"), Some("1000"));
    let mut stream = response.into_inner();
    assert_eq!(next(&mut stream).await.unwrap().unwrap(), GET);
    happens(&node, 8, &["a"]);
    assert_eq!(next(&mut stream).await.unwrap().unwrap(), "a");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    happens(&node, 300, &[]);
    let progress = next(&mut stream).await.unwrap().unwrap();
    assert_eq!(progress[..], [0xf8, 0xff, 0xff, 0xff, 0x0f, 0xac, 0x02], "field 536870911 is 300");
    // It is too early for another progress message. The end of the stream still carries the index.
    happens(&node, 301, &[]);
    node.fake.events.send((301, None)).unwrap();
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(metadata(status.metadata(), "conclave-index"), Some("301"));

    for wrong in ["0", "-1", "x"] {
        let mut request = watch();
        request.metadata_mut().insert("conclave-progress-ms", wrong.parse().unwrap());
        let status = open(&node, request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("conclave-progress-ms"), "{status}");
    }
}

#[tokio::test]
async fn one_connection_has_so_many_subscriptions_and_room_for_calls() {
    let options = Options { subscriptions_per_connection_max: 2, ..Options::default() };
    let node = Node::with(options).await;
    let channel = node.channel().await;
    let begin = || {
        let mut client = tonic::client::Grpc::new(channel.clone());
        async move {
            client.ready().await.unwrap();
            client
                .server_streaming(watch(), PathAndQuery::from_static("/kv.v1.KV/Watch"), Raw)
                .await
        }
    };
    let first = begin().await.unwrap();
    let _second = begin().await.unwrap();
    let status = begin().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert_eq!(metadata(status.metadata(), "conclave-outcome"), Some("not-applied"));
    assert!(status.message().contains("2 subscriptions"), "{status}");
    let get =
        crate::fake::call(channel.clone(), "/kv.v1.KV/Get", Request::new(Bytes::from_static(GET)));
    get.await.unwrap();
    // Another connection has its own limit.
    open(&node, watch()).await.unwrap();
    drop(first);
    timeout(SECONDS, async { while begin().await.is_err() {} }).await.expect("there is room again");
}
