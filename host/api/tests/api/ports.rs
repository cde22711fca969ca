//! Goal: no input on a port stops it, stopping is bounded in time, and the admin port reports
//! the real state.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use conclave_api::{Admin, Options, Startup, bind};
use conclave_metrics::Registry;
use conclave_types::status::Health;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Request};

use crate::fake::{Fake, Node, PUT, Script, call, call_with_timeout, post};

/// Sends bytes and reads until the peer closes the connection.
async fn talk(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The peer may close the connection in the middle, which is a valid response.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
    let _ = read.expect("the connection was left open");
    answer
}

pub async fn metric(node: &Node, name: &str) -> f64 {
    let page = String::from_utf8(get(node, "/metrics").await).unwrap();
    let line = page.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or(f64::NAN)
}

async fn get(node: &Node, path: &str) -> Vec<u8> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    talk(node.admin, request.as_bytes()).await
}

#[tokio::test]
async fn garbage_is_closed_and_the_port_goes_on() {
    let node =
        Node::with(Options { preface_timeout: Duration::from_millis(300), ..Options::default() })
            .await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut framed = preface.to_vec();
    framed.extend([0xff; 4096]);
    let noise: Vec<u8> =
        (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let cases: [&[u8]; 8] = [
        b"",
        b"\0",
        b"PRI * HTTP/1.1\r\n\r\n",
        &preface[..23],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        &framed,
        &noise,
        b"PRI",
    ];
    for bytes in cases {
        talk(node.client, bytes).await;
    }
    let answer = talk(node.client, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 505") && answer.contains("gRPC"), "{answer}");

    node.call("/kv.v1.KV/Put", PUT).await.unwrap();
    for _ in 0..100 {
        if metric(&node, "conclave_client_connections ").await == 0.0 {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("connections are left");
}

#[tokio::test]
async fn frames_that_grpc_does_not_know_are_answered() {
    let node = Node::start().await;
    let address = node.client;
    let send = |content_type: &'static str, body: &'static [u8]| async move {
        let headers = [("content-type", content_type)];
        post(address, "/kv.v1.KV/Put", &headers, Bytes::from_static(body)).await
    };
    for other in [
        "application/json",
        "application/grpc-web",
        "application/grpc-web+proto",
        "application/grpc+json",
        "application/grpcfoo",
        "",
    ] {
        assert_eq!(send(other, b"\0\0\0\0\0").await.status(), 415, "{other}");
    }
    let code = |response: http::Response<_>| response.headers()["grpc-status"].clone();
    // No message, a truncated one, a compressed one, an unknown flag, two messages.
    let grpc = "application/grpc";
    assert_eq!(code(send(grpc, b"").await), "12");
    assert_eq!(code(send(grpc, b"\0\0").await), "3");
    assert_eq!(code(send(grpc, b"\0\0\0\0\x09abc").await), "3");
    assert_eq!(code(send(grpc, b"\x01\0\0\0\0").await), "13");
    assert_eq!(code(send(grpc, b"\x07\0\0\0\0").await), "3");
    assert_eq!(code(send(grpc, b"\0\0\0\0\0\0\0\0\0\0").await), "12");
    assert_eq!(send("application/grpc+proto", b"\0\0\0\0\0").await.status(), 200);
    assert_eq!(send("application/grpc; charset=utf-8", b"\0\0\0\0\0").await.status(), 200);
    assert_eq!(node.fake.seen.lock().unwrap().len(), 2);
}

/// gRPC's compression.md: the response lists the accepted encodings, so that the client can send
/// the request again.
#[tokio::test]
async fn a_compressed_request_is_told_what_is_accepted() {
    let node = Node::start().await;
    let headers = [("content-type", "application/grpc"), ("grpc-encoding", "gzip")];
    let compressed = Bytes::from_static(b"\x01\0\0\0\x02xx");
    for path in ["/kv.v1.KV/Put", "/kv.v1.KV/Watch", "/conclave.machine.v1.Machine/Apply"] {
        let answer = post(node.client, path, &headers, compressed.clone()).await;
        assert_eq!(answer.headers()["grpc-status"], "12", "{path}");
        assert_eq!(answer.headers()["grpc-accept-encoding"], "identity", "{path}");
    }
    // An uncompressed message may be sent with the `grpc-encoding` header.
    let plain = Bytes::from_static(b"\0\0\0\0\0");
    let answer = post(node.client, "/kv.v1.KV/Put", &headers, plain).await;
    assert!(!answer.headers().contains_key("grpc-status"), "{answer:?}");
}

#[tokio::test]
async fn other_verbs_of_http_are_refused_as_such() {
    let node = Node::start().await;
    let io = TokioIo::new(TcpStream::connect(node.client).await.unwrap());
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    for path in ["/kv.v1.KV/Put", "/kv.v1.KV/Watch", "/grpc.health.v1.Health/Check", "/no/Such"] {
        for method in ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"] {
            let request = http::Request::builder()
                .method(method)
                .uri(format!("http://x{path}"))
                .header("content-type", "application/grpc")
                .body(http_body_util::Full::new(Bytes::from_static(b"\0\0\0\0\0")))
                .unwrap();
            let answer = client.send_request(request).await.unwrap();
            assert_eq!(answer.status(), 405, "{method} {path}");
            assert_eq!(answer.headers()["allow"], "POST", "{method} {path}");
        }
    }
}

#[tokio::test]
async fn too_many_connections_are_closed() {
    let node = Node::with(Options { connections_max: 2, ..Options::default() }).await;
    let held = [node.channel().await, node.channel().await];
    for channel in &held {
        call(channel.clone(), "/kv.v1.KV/Put", Request::new(Bytes::from_static(PUT)))
            .await
            .unwrap();
    }
    assert!(talk(node.client, b"").await.is_empty());
    assert_eq!(metric(&node, "conclave_client_connections_refused_total").await, 1.0);
}

#[tokio::test]
async fn calls_that_run_may_end_when_the_node_stops() {
    let mut node = Node::start().await;
    node.script(Script::Hang);
    let running = tokio::spawn(call_with_timeout(node.client, "/kv.v1.KV/Put", "300m", PUT));
    while node.fake.seen.lock().unwrap().is_empty() {
        sleep(Duration::from_millis(5)).await;
    }
    node.stop.take();
    let status = running.await.unwrap();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    timeout(Duration::from_secs(2), node.served.take().unwrap()).await.unwrap().unwrap();
    assert!(TcpStream::connect(node.client).await.is_err());
}

#[tokio::test]
async fn stopping_is_bounded() {
    let drain = Duration::from_millis(300);
    let mut node = Node::with(Options { drain, ..Options::default() }).await;
    node.script(Script::Hang);
    let running = tokio::spawn(call(
        node.channel().await,
        "/kv.v1.KV/Put",
        Request::new(Bytes::from_static(PUT)),
    ));
    while node.fake.seen.lock().unwrap().is_empty() {
        sleep(Duration::from_millis(5)).await;
    }
    let began = Instant::now();
    node.stop.take();
    node.served.take().unwrap().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(2));
    assert!(running.await.unwrap().is_err());
}

#[tokio::test]
async fn a_port_in_use_is_named_with_its_flag() {
    let taken = bind("127.0.0.1:0", "client").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let error = bind(address.as_str(), "client").await.unwrap_err().to_string();
    assert!(error.contains(&address) && error.contains("--listen-client"), "{error}");
    let error = bind("no such host:1", "peer").await.unwrap_err().to_string();
    assert!(error.contains("--listen-peer"), "{error}");
}

#[tokio::test]
async fn the_admin_port_tells_the_truth() {
    let node = Node::start().await;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    assert!(text(get(&node, "/livez").await).starts_with("HTTP/1.1 200"));
    assert!(text(get(&node, "/readyz").await).starts_with("HTTP/1.1 200"));
    assert!(text(get(&node, "/").await).starts_with("HTTP/1.1 404"));
    assert!(text(talk(node.admin, b"POST /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await).starts_with("HTTP/1.1 405"));
    assert!(talk(node.admin, b"\0\0\0 garbage\r\n\r\n").await.starts_with(b"HTTP/1.1 400"));

    node.call("/kv.v1.KV/Put", PUT).await.unwrap();
    node.call("/kv.v1.KV/Put", b"\xff").await.unwrap_err();
    node.call("/who/knows", b"").await.unwrap_err();
    let page = text(get(&node, "/metrics").await);
    for line in [
        "conclave_request_seconds_count{code=\"OK\",method=\"kv.v1.KV/Put\"} 1",
        "conclave_request_seconds_count{code=\"INVALID_ARGUMENT\",method=\"kv.v1.KV/Put\"} 1",
        "conclave_unknown_methods_total 1",
        "conclave_requests_in_flight 0",
        "conclave_ready 1",
    ] {
        assert!(page.contains(&format!("\n{line}\n")), "{line} is not in:\n{page}");
    }
    assert!(metric(&node, "process_resident_memory_bytes").await > 1e6);
    assert!(metric(&node, "process_open_fds").await > 3.0);
    assert!(!page.contains("who/knows"), "a label made of what a client sent");

    node.fake.health.send_replace(Health::NotServing(conclave_types::status::NotServing::NoLeader));
    let answer = text(get(&node, "/readyz").await);
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("no leader is known"),
        "{answer}"
    );
    assert!(text(get(&node, "/livez").await).starts_with("HTTP/1.1 200"));
    assert_eq!(metric(&node, "conclave_ready ").await, 0.0);
}

/// Goal: probes are answered whatever other connections do on the admin port. Method: opens more
/// connections than the port serves, which send nothing, send half a request, or do not read.
#[tokio::test]
async fn probes_are_answered_beside_connections_that_do_nothing() {
    let node = Node::start().await;
    let mut held = Vec::new();
    for sends in [
        &b""[..],
        b"GET /livez HTTP/1.1\r\nhost: x\r\n",
        b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n",
    ] {
        for _ in 0..100 {
            let mut stream = TcpStream::connect(node.admin).await.unwrap();
            stream.write_all(sends).await.unwrap();
            held.push(stream);
        }
        for _ in 0..3 {
            let answer = get(&node, "/livez").await;
            assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        }
    }
    drop(held);
}

#[tokio::test]
async fn a_node_that_starts_says_so_on_its_admin_port() {
    let startup = Startup::new("first step");
    let admin = Admin::<Fake>::new(startup.clone(), Registry::default());
    let listener = bind("127.0.0.1:0", "admin").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { admin.serve(listener, std::future::pending()).await });
    let page = async |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        String::from_utf8(talk(address, request.as_bytes()).await).unwrap()
    };
    assert!(page("/livez").await.starts_with("HTTP/1.1 200"));
    let ready = page("/readyz").await;
    assert!(
        ready.starts_with("HTTP/1.1 503") && ready.contains("starting: first step, 0 s"),
        "{ready}"
    );
    startup.step("second step");
    assert!(page("/readyz").await.contains("starting: second step"));
    assert!(page("/metrics").await.contains("\nconclave_ready 0\n"));
}

/// Goal: an idle or old connection is closed without harm to a call in progress.
#[tokio::test]
async fn idle_and_old_connections_are_closed() {
    let limit = Some(Duration::from_millis(200));
    let idle = Options { connection_idle: limit, ..Options::default() };
    let old = Options { connection_age: limit, ..Options::default() };
    for options in [idle, old] {
        let node = Node::with(options).await;
        let io = TokioIo::new(TcpStream::connect(node.client).await.unwrap());
        let (mut client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        let closed = tokio::spawn(connection);
        node.script(Script::Hang);
        let request = |timeout: &str| {
            http::Request::post("http://x/kv.v1.KV/Put")
                .header("content-type", "application/grpc")
                .header("grpc-timeout", timeout)
                .body(http_body_util::Full::new(Bytes::from_static(
                    b"\0\0\0\0\x06\x0a\x01k\x12\x01v",
                )))
                .unwrap()
        };
        // The call lasts longer than the limit, and still gets its response.
        let answer = client.send_request(request("1S")).await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "4");
        let closed = timeout(Duration::from_secs(10), closed).await;
        closed.expect("the connection is closed").unwrap().unwrap();
        assert!(client.send_request(request("1S")).await.is_err());
    }
    // Without limits the connection stays open.
    let options = Options { connection_idle: None, ..Options::default() };
    let node = Node::with(options).await;
    let channel = node.channel().await;
    for _ in 0..2 {
        call(channel.clone(), "/kv.v1.KV/Put", Request::new(Bytes::from_static(PUT)))
            .await
            .unwrap();
        sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(metric(&node, "conclave_client_connections ").await, 1.0);
}
