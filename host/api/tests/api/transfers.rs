//! Goal: requests that do not arrive, and responses that are not read, hold few resources for a short time.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use conclave_api::Options;
use conclave_types::{Outcome, Reply};
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tonic::Code;

use crate::{
    fake::{GET, Node, PUT, Script, metadata},
    ports::metric,
};

/// A request whose body stops in the middle.
fn unfinished(bytes: &'static [u8]) -> http::Request<Stalled> {
    let begun = Ok::<_, Infallible>(hyper::body::Frame::data(Bytes::from_static(bytes)));
    let body = StreamBody::new(stream::once(async { begun }).chain(stream::pending()));
    http::Request::post("http://x/kv.v1.KV/Put")
        .header("content-type", "application/grpc")
        .body(BodyExt::boxed_unsync(body))
        .unwrap()
}

type Stalled = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

/// Regression: a request that stopped in the middle held a slot, and memory for its announced
/// length, for five minutes.
#[tokio::test]
async fn unfinished_requests_hold_no_slots_and_little_memory_and_end() {
    let options = Options {
        calls_in_flight_max: 2,
        large_requests_bytes_max: 2 << 20,
        transfer_time: Duration::from_millis(200),
        ..Options::default()
    };
    let node = Node::with(options).await;
    let io = TokioIo::new(TcpStream::connect(node.client).await.unwrap());
    let (client, connection) =
        hyper::client::conn::http2::handshake::<_, _, Stalled>(TokioExecutor::new(), io)
            .await
            .unwrap();
    tokio::spawn(connection);
    // Each request announces a megabyte.
    let stalled: Vec<_> = (0..8)
        .map(|_| tokio::spawn(client.clone().send_request(unfinished(b"\0\0\x10\0\0abc"))))
        .collect();
    // Other connections are served, also with large messages.
    let mut large = vec![0x12];
    prost::encoding::encode_varint(1 << 20, &mut large);
    large.resize(large.len() + (1 << 20), b'x');
    node.call("/kv.v1.KV/Put", &large).await.unwrap();
    node.call("/kv.v1.KV/Put", PUT).await.unwrap();
    // A request that does not even announce a length is rejected soon.
    let answer = client.clone().send_request(unfinished(b"\0\0")).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "4");
    assert!(!answer.headers().contains_key("conclave-trap"));
    stalled.into_iter().for_each(|stalled| stalled.abort());
}

/// Small responses count as calls until they are sent. They are discarded if they are not read.
#[tokio::test]
async fn small_answers_that_are_not_read_are_bounded() {
    let options = Options {
        calls_in_flight_max: 4,
        transfer_time: Duration::from_millis(500),
        ..Options::default()
    };
    let node = Node::with(options).await;
    let io = TokioIo::new(TcpStream::connect(node.client).await.unwrap());
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(0)
        .clone();
    let (client, connection) = builder.handshake(io).await.unwrap();
    tokio::spawn(connection);
    let put = || {
        let request = http::Request::post("http://x/kv.v1.KV/Put")
            .header("content-type", "application/grpc")
            .body(http_body_util::Full::new(Bytes::from_static(b"\0\0\0\0\0")))
            .unwrap();
        let mut client = client.clone();
        async move { client.send_request(request).await.unwrap() }
    };
    let mut unread = Vec::new();
    let refused = loop {
        let answer = put().await;
        if answer.headers().contains_key("grpc-status") {
            break answer;
        }
        unread.push(answer);
    };
    // Half of all calls. With one connection its share is not larger.
    assert_eq!(unread.len(), 2);
    assert_eq!(refused.headers()["grpc-status"], "14");
    assert_eq!(refused.headers()["conclave-outcome"], "not-applied");
    node.call("/kv.v1.KV/Put", PUT).await.unwrap();
    assert_eq!(metric(&node, "conclave_requests_in_flight").await, 2.0);
    // Operators' calls have slots of their own.
    for _ in 0..8 {
        node.call("/conclave.cluster.v1.Cluster/Status", b"").await.unwrap();
    }
    for _ in 0..200 {
        if metric(&node, "conclave_requests_in_flight").await == 0.0 {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("answers that are not read hold their slots");
}

/// A request that never ends is rejected at its deadline, before any proposal.
#[tokio::test]
async fn a_request_that_stalls_is_given_up() {
    let node = Node::start().await;
    let io = TokioIo::new(TcpStream::connect(node.client).await.unwrap());
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let mut request = unfinished(b"\0\0\0\0\x09a");
    request.headers_mut().insert("grpc-timeout", "100m".parse().unwrap());
    let answer = timeout(Duration::from_secs(5), client.send_request(request)).await;
    let answer = answer.expect("no answer in time").unwrap();
    assert_eq!(answer.headers()["grpc-status"], "4");
    assert_eq!(answer.headers()["conclave-outcome"], "not-applied");
    assert!(node.fake.seen.lock().unwrap().is_empty());
    assert_eq!(metric(&node, "conclave_requests_in_flight").await, 0.0);
}

/// Unread responses of a client are bounded. Small responses and the calls of others continue.
#[tokio::test]
async fn answers_that_nobody_reads_are_bounded() {
    let options = Options { large_answers_bytes_max: 1 << 20, ..Options::default() };
    let node = Node::with(options).await;
    let large = Bytes::from(vec![7; 700 << 10]);
    node.script(Script::Answer(Ok(large.clone())));
    let io = TokioIo::new(TcpStream::connect(node.client).await.unwrap());
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(65_535)
        .clone();
    let (mut client, connection) = builder.handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post("http://x/kv.v1.KV/Get")
        .header("content-type", "application/grpc")
        .body(http_body_util::Full::new(Bytes::from_static(b"\0\0\0\0\x03\x0a\x01k")))
        .unwrap();
    let unread = client.send_request(request).await.unwrap();
    assert_eq!(unread.status(), 200);

    let status = node.call("/kv.v1.KV/Get", GET).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert_eq!(metadata(status.metadata(), "conclave-outcome"), Some("not-applied"));
    assert!(status.message().contains("answers of more than 65536 bytes"), "{status}");
    // The command was applied, so its outcome is reported as unknown.
    let reply = Reply { response: large.clone(), ..Reply::default() };
    node.script(Script::Outcome(Outcome::Reply(reply)));
    let status = node.call("/kv.v1.KV/Put", PUT).await.unwrap_err();
    assert_eq!(status.code(), Code::Unknown, "{status}");
    assert_eq!(metadata(status.metadata(), "conclave-outcome"), Some("unknown"));
    node.script(Script::Echo);
    node.call("/kv.v1.KV/Put", PUT).await.unwrap();

    // A reader that disconnects frees memory. `unread_large_answers_are_given_up` tests one that stays.
    drop(unread);
    node.script(Script::Answer(Ok(large)));
    let mut made_room = false;
    for _ in 0..200 {
        made_room = node.call("/kv.v1.KV/Get", GET).await.is_ok();
        if made_room {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    assert!(made_room);
}

/// Regression: a response held memory while its connection answered pings.
#[tokio::test]
async fn unread_large_answers_are_given_up() {
    let options = Options {
        large_answers_bytes_max: 200 << 10,
        transfer_time: Duration::from_millis(100),
        ..Options::default()
    };
    let node = Node::with(options).await;
    // More than the two pieces that the connection takes.
    node.script(Script::Answer(Ok(Bytes::from(vec![7; 130 << 10]))));
    let cases = [("Get", 0), ("Get", 1), ("Watch", 0), ("Watch", 1)];
    for (method, window) in cases {
        let io = TokioIo::new(TcpStream::connect(node.client).await.unwrap());
        let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(window)
            .clone();
        let (mut client, connection) = builder.handshake(io).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = http::Request::post(format!("http://x/kv.v1.KV/{method}"))
            .header("content-type", "application/grpc")
            .body(http_body_util::Full::new(Bytes::from_static(b"\0\0\0\0\x03\x0a\x01k")))
            .unwrap();
        let unread = client.send_request(request).await.unwrap();
        let refused = node.call("/kv.v1.KV/Get", GET).await.map(drop);
        let refused = refused.expect_err(&format!("{method}, window {window}"));
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        let mut made_room = false;
        for _ in 0..500 {
            made_room = node.call("/kv.v1.KV/Get", GET).await.is_ok();
            if made_room {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        assert!(made_room, "{method}, window {window}");
        drop((unread, client));
        connection.abort();
    }
}
