//! The client port: gRPC over HTTP/2 without TLS.
//!
//! The caller provides the listener, which it binds early so that a port in use is detected before
//! anything is opened. The caller also decides when to stop. Every connection is bounded: it must
//! send the HTTP/2 preface in time, respond to pings, and respect its limits of streams, windows
//! and headers. Invalid bytes cost one task for a few seconds. Requests are passed to
//! [`call::serve`] as hyper reads them, without layers between.
//!
//! hyper is used directly, without tonic's server. tonic's server boxes the service, the request
//! body and the response body of every call, and has no time limit for the preface.

use std::{
    future::{Future, pending},
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::Request;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, ToSocketAddrs, tcp::OwnedWriteHalf},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    Backend, Options, Shared, call, connection::Connection, gather::Gather, streams::Streams,
};
use conclave_types::{Caller, error::Error};

/// The bytes that begin every HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HTTP1_ANSWER: &str = "HTTP/1.1 505 HTTP Version Not Supported\r\n\
    content-type: text/plain\r\nconnection: close\r\n\r\n\
    This port speaks gRPC (HTTP/2 without TLS): try grpcurl -plaintext. \
    Metrics are on the admin port.\n";

/// Maximum frame size. A request of up to this size arrives in one frame and is not copied.
const FRAME_BYTES_MAX: u32 = 64 * 1024;
/// Flow control windows of a stream and of a connection: the unread bytes that each may send.
/// Together with the number of connections they bound the memory of received data.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// Maximum number of bytes of one call's response that are queued for sending.
const SEND_BUFFER_BYTES: usize = 256 * 1024;
/// Maximum size of a call's metadata.
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// Maximum number of calls in a row that a client cancels before they are processed. More are
/// an attack (CVE-2023-44487).
const PENDING_RESETS_MAX: usize = 128;
/// Maximum number of streams reset for protocol errors before the connection is closed.
const ERROR_RESETS_MAX: usize = 1024;
/// Interval of pings to a silent peer, and the time until it is disconnected.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause after a failed accept, mostly for lack of file descriptors, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time for a rejected HTTP/1 client to read the response.
const FAREWELL_TIME_MAX: Duration = Duration::from_secs(1);

/// Listens for the `client`, `peer` or `admin` port. An error names the address and the flag to change.
pub async fn bind(
    address: impl ToSocketAddrs + ToString,
    port: &str,
) -> Result<TcpListener, Error> {
    let text = address.to_string();
    TcpListener::bind(address).await.map_err(|error| Error::listen(port, &text, error))
}

pub(super) fn http2(options: &Options) -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(Streams);
    builder
        .timer(TokioTimer::new())
        // gRPC does not use the header, and it changes every second.
        .auto_date_header(false)
        .max_concurrent_streams(options.streams_per_connection_max)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(ERROR_RESETS_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// Serves the client port until `shutdown`, then lets calls end within [`Options::drain`].
pub(super) async fn serve_client<B: Backend>(
    shared: Arc<Shared<B>>,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) {
    let http2 = http2(&shared.options);
    let connections_max = shared.options.connections_max;
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let (stream, peer) = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener) => accepted,
        };
        if connections.len() >= connections_max {
            shared.metrics.connections_refused.inc();
            tracing::warn!(%peer, connections_max, "closing a connection: there are too many");
            continue;
        }
        let http2 = http2.clone();
        let shared = shared.clone();
        connections.spawn(async move {
            shared.metrics.connections.inc();
            let closing = shared.closing.subscribe();
            if let Err(error) = connection(http2, shared.clone(), stream, peer, closing).await {
                tracing::debug!(%peer, %error, "connection ended");
            }
            shared.metrics.connections.dec();
        });
    }
    drop(listener);
    shared.closing.send_replace(true);
    let drained =
        timeout(shared.options.drain, async { while connections.join_next().await.is_some() {} });
    if drained.await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "closing connections whose calls did not end"
        );
        shared.metrics.connections.set(0);
    }
}

/// Accepts the next connection. An error is logged and does not stop the port.
pub(super) async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted; retrying");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

pub(super) type ConnectionError = Box<dyn std::error::Error + Send + Sync>;

async fn connection<B: Backend>(
    http2: http2::Builder<Streams>,
    shared: Arc<Shared<B>>,
    stream: TcpStream,
    peer: SocketAddr,
    mut closing: watch::Receiver<bool>,
) -> Result<(), ConnectionError> {
    let (reader, writer) =
        open(stream, shared.options.preface_timeout).await.inspect_err(|_| {
            shared.metrics.connections_refused.inc();
        })?;
    let io = tokio::io::join(reader, Gather::new(writer));
    let is_used = Arc::new(AtomicBool::new(true));
    let life = life(is_used.clone(), shared.options);
    let subscriptions_max = shared.options.subscriptions_per_connection_max;
    let connection = Connection::new(Caller(peer.to_string().into()), subscriptions_max);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(connection.clone());
        is_used.store(true, Ordering::Relaxed);
        call::serve(shared.clone(), request)
    });
    let mut served = pin!(http2.serve_connection(TokioIo::new(io), service));
    tokio::select! {
        biased;
        ended = &mut served => return Ok(ended?),
        // An error means that the node is gone, which is a reason to stop too.
        _ = closing.wait_for(|closing| *closing) => {}
        () = life => {}
    }
    served.as_mut().graceful_shutdown();
    Ok(served.await?)
}

/// Completes when a connection has to be closed: at its age limit, or when it has begun no call for
/// the idle limit. No clock is read per call, so a connection may be idle for up to twice the limit.
async fn life(is_used: Arc<AtomicBool>, options: Options) {
    let age = async {
        match options.connection_age {
            // Varied, so that clients that connected together after a restart do not disconnect together.
            Some(age) => sleep(age.mul_f64(1.1 - 0.2 * rand::random::<f64>())).await,
            None => pending().await,
        }
    };
    let idle = async {
        match options.connection_idle {
            Some(idle) => {
                while is_used.swap(false, Ordering::Relaxed) {
                    sleep(idle).await;
                }
            }
            None => pending().await,
        }
    };
    tokio::select! {
        () = age => {}
        () = idle => {}
    }
}

/// Prepares a connection for HTTP/2. Its client has sent the preface, which the reader yields
/// again for hyper.
pub(super) async fn open(
    mut stream: TcpStream,
    preface_timeout: Duration,
) -> Result<(impl AsyncRead, OwnedWriteHalf), ConnectionError> {
    // Responses are small, and delayed if the kernel waits for more data.
    stream.set_nodelay(true)?;
    match timeout(preface_timeout, read_preface(&mut stream)).await {
        Ok(read) => read?,
        Err(_) => return Err("no HTTP/2 preface arrived in time".into()),
    }
    let (reader, writer) = stream.into_split();
    Ok((PREFACE.chain(reader), writer))
}

/// Reads the preface from the stream. An error gives the reason why the connection is rejected.
async fn read_preface(stream: &mut TcpStream) -> io::Result<()> {
    let mut read = [0; PREFACE.len()];
    let mut length = 0;
    while length < read.len() {
        let received = stream.read(&mut read[length..]).await?;
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        length += received;
        let read = &read[..length];
        if PREFACE.starts_with(read) {
            continue;
        }
        const HTTP1: [&[u8]; 6] = [b"GET ", b"POST", b"PUT ", b"HEAD", b"DELE", b"OPTI"];
        if HTTP1.iter().any(|method| read.starts_with(method)) {
            send_away(stream).await;
            return Err(io::Error::other("the client used HTTP/1 on the gRPC port"));
        }
        let tls = read.starts_with(&[0x16, 3]);
        return Err(io::Error::other(if tls {
            "the client used TLS, but this port is without TLS"
        } else {
            "the client did not use HTTP/2"
        }));
    }
    Ok(())
}

/// Responds to an HTTP/1 client. Its remaining bytes are read, since closing a connection with
/// unread bytes resets it, and the response may be lost.
async fn send_away(stream: &mut TcpStream) {
    let farewell = async {
        stream.write_all(HTTP1_ANSWER.as_bytes()).await?;
        stream.shutdown().await?;
        let mut rest = stream.take(64 * 1024);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    // The client may be gone. It was rejected either way.
    let _ = timeout(FAREWELL_TIME_MAX, farewell).await;
}
