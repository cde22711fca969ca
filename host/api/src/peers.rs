//! The peer port: HTTP/2 for the other members.
//!
//! It uses the accept loop of the client port. tonic's server accepts connections without a limit,
//! and when the process has no file descriptors left it retries without a pause.
//!
//! Contract: a connection is a stranger until its service has admitted it as a member's. Strangers
//! can send few bytes, and have little time. When there are too many strangers, the oldest is
//! disconnected, so they cannot keep a member out.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::pending,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use hyper::{
    body::{Body, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{Instant, timeout_at},
};
use tower::Service;

use super::listeners::{self, ConnectionError};
use conclave_types::NodeId;

/// Members have one connection for each of three connection classes, and there are at most 64
/// members. The rest covers strangers, and connections that are being closed.
const CONNECTIONS_MAX: usize = 512;
/// Maximum number of strangers. A member is one for a round trip.
const STRANGERS_MAX: usize = 64;
/// Maximum number of bytes of a stranger. A handshake has less than 1 KiB. The rest is for calls
/// that a member sent on a connection that has just replaced another, and that are rejected.
const STRANGER_BYTES_MAX: usize = 32 * 1024;
/// Time for a connection to be admitted, from its acceptance.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of streams of one connection: appends in flight, snapshots, forwarded calls.
const STREAMS_MAX: u32 = 4096;
/// HTTP/2 flow control window of a stream and of a connection. It fits a batch of the largest entries.
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// Maximum size of a call's metadata. A member sends less than 1 KiB.
const HEADER_LIST_BYTES_MAX: u32 = 8 * 1024;
/// Interval of pings to a silent peer, and the time until it is disconnected. Members themselves
/// ping more often.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// The member that a connection belongs to. `None` until its service has admitted it.
type Member = watch::Receiver<Option<NodeId>>;

/// Serves the members' calls on the listener until `shutdown`, then lets calls in progress end.
/// `connect` creates the service for a new connection. The service publishes the member that the
/// connection belongs to.
pub async fn serve_peers<S, B>(
    listener: TcpListener,
    connect: impl Fn(watch::Sender<Option<NodeId>>) -> S,
    shutdown: impl Future<Output = ()>,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
    B: Body<Data: Send, Error: Into<ConnectionError>> + Send + 'static,
{
    let http2 = http2();
    let (closing, closed) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut strangers = Strangers::default();
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
        strangers.make_room();
        let (sender, member) = watch::channel(None);
        let (http2, service, closed) = (http2.clone(), connect(sender), closed.clone());
        let known = member.clone();
        let task = connections.spawn(async move {
            if let Err(error) = connection(http2, stream, service, member, closed).await {
                tracing::debug!(%peer, %error, "connection to the peer port ended");
            }
        });
        strangers.0.push_back((task, known));
    }
    drop(listener);
    closing.send_replace(true);
    while connections.join_next().await.is_some() {}
}

fn http2() -> http2::Builder<TokioExecutor> {
    let mut http2 = http2::Builder::new(TokioExecutor::new());
    http2
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    http2
}

/// The connections that are not admitted, in the order of acceptance.
#[derive(Default)]
struct Strangers(VecDeque<(AbortHandle, Member)>);

impl Strangers {
    /// Disconnects the oldest stranger if there are too many.
    fn make_room(&mut self) {
        self.0.retain(|(task, member)| !task.is_finished() && member.borrow().is_none());
        if self.0.len() >= STRANGERS_MAX
            && let Some((oldest, _)) = self.0.pop_front()
        {
            oldest.abort();
        }
    }
}

async fn connection<S, B>(
    http2: http2::Builder<TokioExecutor>,
    stream: TcpStream,
    service: S,
    mut member: Member,
    mut closed: watch::Receiver<bool>,
) -> Result<(), ConnectionError>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
    B: Body<Data: Send, Error: Into<ConnectionError>> + Send + 'static,
{
    let deadline = Instant::now() + ADMISSION_TIMEOUT;
    let (reader, writer) = listeners::open(stream, ADMISSION_TIMEOUT).await?;
    let reader = Gate { reader, member: member.clone(), received: 0 };
    // The service is always ready, since a method's handler is created per call.
    let service = service_fn(move |request| service.clone().call(request));
    let io = TokioIo::new(tokio::io::join(reader, writer));
    let mut served = pin!(http2.serve_connection(io, service));
    let late = async {
        if timeout_at(deadline, member.wait_for(Option::is_some)).await.is_ok() {
            pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        ended = &mut served => return Ok(ended?),
        _ = closed.wait_for(|closed| *closed) => {}
        () = late => return Err("no member introduced itself in time".into()),
    }
    served.as_mut().graceful_shutdown();
    Ok(served.await?)
}

/// Reads from a connection. Fails when a stranger has sent too much.
struct Gate<R> {
    reader: R,
    member: Member,
    /// The number of bytes received as a stranger.
    received: usize,
}

impl<R: AsyncRead + Unpin> AsyncRead for Gate<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.reader).poll_read(cx, buf))?;
        if self.member.borrow().is_none() {
            self.received += buf.filled().len() - before;
            if self.received > STRANGER_BYTES_MAX {
                return Poll::Ready(Err(io::Error::other("a stranger sent too much")));
            }
        }
        Poll::Ready(Ok(()))
    }
}
