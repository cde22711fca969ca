//! The ports of a node that is starting, before the replica runs.
//!
//! A start compiles the component, restores a snapshot and replays the log, which may take minutes.
//! Meanwhile the admin port responds to probes with the current startup step ([`super::Admin`]).
//! The client port rejects calls immediately, so that clients use another node.

use std::{
    convert::Infallible,
    fmt,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::status;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{Options, listeners};
use conclave_types::error::Error;

/// Time for connections to notice, once the node has started, that they must be reopened.
const DRAIN: Duration = Duration::from_millis(200);

/// The current startup step. Clones share it.
#[derive(Clone, Debug)]
pub struct Startup(Arc<Mutex<(&'static str, Instant)>>);

impl Startup {
    /// Creates the startup with its first step.
    pub fn new(step: &'static str) -> Self {
        Self(Arc::new(Mutex::new((step, Instant::now()))))
    }

    /// Begins the next step.
    pub fn step(&self, step: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (step, Instant::now());
    }
}

impl fmt::Display for Startup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (step, began) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        write!(f, "starting: {step}, {} s", began.elapsed().as_secs())
    }
}

/// Rejects all calls on the client port until `started`. The listener remains usable.
pub async fn refuse_calls(
    listener: &TcpListener,
    startup: &Startup,
    options: &Options,
    started: impl Future<Output = ()>,
) {
    let (closing, closed) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut started = pin!(started);
    loop {
        let (stream, peer) = tokio::select! {
            () = &mut started => break,
            Some(_) = connections.join_next() => continue,
            accepted = listeners::accept(listener) => accepted,
        };
        if connections.len() < options.connections_max {
            let (startup, options, closed) = (startup.clone(), *options, closed.clone());
            connections.spawn(async move {
                if let Err(error) = refuse(stream, startup, options, closed).await {
                    tracing::debug!(%peer, %error, "connection ended");
                }
            });
        }
    }
    closing.send_replace(true);
    // Connections that do not end in time are closed.
    let _ = timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
}

async fn refuse(
    stream: TcpStream,
    startup: Startup,
    options: Options,
    mut closed: watch::Receiver<bool>,
) -> Result<(), listeners::ConnectionError> {
    let (reader, writer) = listeners::open(stream, options.preface_timeout).await?;
    let service = service_fn(move |_: Request<Incoming>| {
        let refusal = refusal(&startup);
        async move { Ok::<_, Infallible>(refusal) }
    });
    let io = TokioIo::new(tokio::io::join(reader, writer));
    let mut served = pin!(listeners::http2(&options).serve_connection(io, service));
    tokio::select! {
        biased;
        ended = &mut served => return Ok(ended?),
        _ = closed.wait_for(|closed| *closed) => {}
    }
    served.as_mut().graceful_shutdown();
    Ok(served.await?)
}

fn refusal(startup: &Startup) -> Response<Empty<Bytes>> {
    let error = Error::busy(format!("this node is {startup}: send the call to another node"));
    status::to_status(&error).into_http()
}
