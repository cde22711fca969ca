//! The peer port: HTTP/2 for the other members.
//!
//! It uses the accept loop of the client port. tonic's server accepts connections without a limit,
//! and when the process has no file descriptors left it retries without a pause.

use std::{convert::Infallible, pin::pin, time::Duration};

use http::{Request, Response};
use hyper::{
    body::{Body, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tower::Service;

use super::listeners::{self, ConnectionError};

/// Members have one connection for each of three connection classes, and there are at most 64
/// members. The rest covers connections that are being closed.
const CONNECTIONS_MAX: usize = 512;
/// Maximum number of streams of one connection: appends in flight, snapshots, forwarded calls.
const STREAMS_MAX: u32 = 4096;
/// HTTP/2 flow control window of a stream and of a connection. It fits a batch of the largest entries.
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;
const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of pings to a silent peer, and the time until it is disconnected. Members themselves
/// ping more often.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves the members' calls on the listener until `shutdown`, then lets calls in progress end.
pub async fn serve_peers<S, B>(
    listener: TcpListener,
    service: S,
    shutdown: impl Future<Output = ()>,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
    B: Body<Data: Send, Error: Into<ConnectionError>> + Send + 'static,
{
    let mut http2 = http2::Builder::new(TokioExecutor::new());
    http2
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    let (closing, closed) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let (stream, peer) = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = listeners::accept(&listener) => accepted,
        };
        if connections.len() >= CONNECTIONS_MAX {
            tracing::warn!(%peer, max = CONNECTIONS_MAX, "closing a connection to the peer port: there are too many");
            continue;
        }
        let (http2, service, closed) = (http2.clone(), service.clone(), closed.clone());
        connections.spawn(async move {
            if let Err(error) = connection(http2, stream, service, closed).await {
                tracing::debug!(%peer, %error, "connection to the peer port ended");
            }
        });
    }
    drop(listener);
    closing.send_replace(true);
    while connections.join_next().await.is_some() {}
}

async fn connection<S, B>(
    http2: http2::Builder<TokioExecutor>,
    stream: TcpStream,
    service: S,
    mut closed: watch::Receiver<bool>,
) -> Result<(), ConnectionError>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
    B: Body<Data: Send, Error: Into<ConnectionError>> + Send + 'static,
{
    let (reader, writer) = listeners::open(stream, PREFACE_TIMEOUT).await?;
    // The service is always ready, since a method's handler is created per call.
    let service = service_fn(move |request| service.clone().call(request));
    let io = TokioIo::new(tokio::io::join(reader, writer));
    let mut served = pin!(http2.serve_connection(io, service));
    tokio::select! {
        biased;
        ended = &mut served => return Ok(ended?),
        _ = closed.wait_for(|closed| *closed) => {}
    }
    served.as_mut().graceful_shutdown();
    Ok(served.await?)
}
