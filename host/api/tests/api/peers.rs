//! Goal: connections to the peer port that are not a member's cost little, and keep no member out.
//! Method: a service that admits a connection when it is called at `/admit`.

use std::{
    convert::Infallible,
    future::pending,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use conclave_api::{bind, serve_peers};
use futures::future::join_all;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::{sleep, timeout},
};
use tower::service_fn;

/// The preface, and settings without content.
const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const PATIENCE: Duration = Duration::from_secs(10);

struct Port {
    address: SocketAddr,
    /// The number of calls that have reached the service.
    calls: Arc<AtomicUsize>,
}

async fn answer(
    member: Arc<watch::Sender<Option<u64>>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = match request.uri().path() {
        "/admit" => {
            member.send_replace(Some(1));
            Bytes::new()
        }
        "/length" => {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            body.len().to_string().into()
        }
        _ => pending().await,
    };
    Ok(Response::new(Full::new(body)))
}

impl Port {
    async fn start() -> Self {
        let listener = bind("127.0.0.1:0", "peer").await.unwrap();
        let address = listener.local_addr().unwrap();
        let calls = Arc::<AtomicUsize>::default();
        let counted = calls.clone();
        let connect = move |member: watch::Sender<Option<u64>>| {
            let (member, calls) = (Arc::new(member), counted.clone());
            service_fn(move |request| {
                calls.fetch_add(1, Ordering::Relaxed);
                answer(member.clone(), request)
            })
        };
        tokio::spawn(serve_peers(listener, connect, pending()));
        Self { address, calls }
    }

    async fn open(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn client(&self) -> SendRequest<Full<Bytes>> {
        let io = TokioIo::new(self.open().await);
        let (client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

fn request(path: &str, body: Bytes) -> Request<Full<Bytes>> {
    Request::post(format!("http://x{path}")).body(Full::new(body)).unwrap()
}

async fn call(client: &mut SendRequest<Full<Bytes>>, path: &str, body: Bytes) -> Bytes {
    let answer = timeout(PATIENCE, client.send_request(request(path, body))).await.unwrap();
    answer.unwrap().into_body().collect().await.unwrap().to_bytes()
}

/// Sends bytes, and reads until the port closes the connection.
async fn talk(port: &Port, bytes: &[u8]) {
    let mut stream = port.open().await;
    // The port may close the connection before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    let _ = read.expect("the connection was left open");
}

#[tokio::test]
async fn a_connection_that_never_introduces_itself_is_closed() {
    let port = Port::start().await;
    let mut member = port.client().await;
    call(&mut member, "/admit", Bytes::new()).await;
    let noise: Vec<u8> =
        (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let framed = [OPENING, &[0xff; 4096]].concat();
    let cases: [&[u8]; 6] = [b"", b"\0", &OPENING[..23], OPENING, &framed, &noise];
    join_all(cases.map(|bytes| talk(&port, bytes))).await;
    // A call that is not answered is no introduction.
    let mut stranger = port.client().await;
    let hung = timeout(PATIENCE, stranger.send_request(request("/hang", Bytes::new()))).await;
    assert!(hung.expect("the connection was left open").is_err());
    // The member's connection is older than all of these.
    assert_eq!(call(&mut member, "/length", Bytes::from_static(b"four")).await, "4");
}

#[tokio::test]
async fn a_stranger_that_sends_much_is_disconnected_at_once() {
    let port = Port::start().await;
    let mut stream = port.open().await;
    stream.write_all(OPENING).await.unwrap();
    let ping = [&[0_u8, 0, 8, 6, 0, 0, 0, 0, 0][..], &[7; 8]].concat().repeat(1000);
    let (mut reader, mut writer) = stream.into_split();
    let reading =
        tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
    let sending = async { while writer.write_all(&ping).await.is_ok() {} };
    timeout(Duration::from_secs(3), sending).await.expect("it may send without an end");
    let _ = reading.await;
}

#[tokio::test]
async fn a_stranger_opens_few_streams() {
    let port = Port::start().await;
    let mut stranger = port.client().await;
    let mut running = Vec::new();
    let ended = async {
        while let Ok(()) = stranger.ready().await {
            running.push(tokio::spawn(stranger.send_request(request("/hang", Bytes::new()))));
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(3), ended).await.expect("the connection was left open");
    let calls = port.calls.load(Ordering::Relaxed);
    assert!(calls < 3000, "{calls} streams");
}

#[tokio::test]
async fn strangers_keep_no_member_out() {
    let port = Port::start().await;
    let mut first = port.client().await;
    call(&mut first, "/admit", Bytes::new()).await;
    let mut strangers = Vec::new();
    for _ in 0..100 {
        let mut stranger = port.open().await;
        stranger.write_all(OPENING).await.unwrap();
        strangers.push(stranger);
    }
    let mut second = port.client().await;
    call(&mut second, "/admit", Bytes::new()).await;
    // The oldest strangers made room, and not the member before them.
    let closed = |mut stranger: TcpStream| async move {
        let mut answer = Vec::new();
        timeout(Duration::from_millis(200), stranger.read_to_end(&mut answer)).await.is_ok()
    };
    let closed = join_all(strangers.into_iter().map(closed)).await;
    let oldest = closed.iter().take_while(|closed| **closed).count();
    assert!((36..=40).contains(&oldest), "{oldest} closed");
    assert!(!closed[oldest..].contains(&true), "{closed:?}");
    for client in [&mut first, &mut second] {
        assert_eq!(call(client, "/length", Bytes::new()).await, "0");
    }
}

#[tokio::test]
async fn a_member_has_no_limit_of_bytes_and_no_deadline() {
    let port = Port::start().await;
    let mut member = port.client().await;
    call(&mut member, "/admit", Bytes::new()).await;
    let body = Bytes::from(vec![7; 20 << 20]);
    assert_eq!(call(&mut member, "/length", body).await, (20 << 20).to_string());
    sleep(Duration::from_secs(6)).await;
    assert_eq!(call(&mut member, "/length", Bytes::new()).await, "0");
}
