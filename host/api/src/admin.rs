//! The admin port: metrics and probes over plain HTTP/1.1, for programs inside the trusted network.
//!
//! `/metrics` is in Prometheus' text format. `/livez` returns 200 while the process responds, also
//! without a quorum, since a restart would not help. `/readyz` follows the replica's health and
//! gives the reason if the node is not ready. The port responds as soon as the node starts: until
//! the replica runs, `/readyz` names the current startup step.
//!
//! Contract: a new connection is always served. When there are too many, the oldest one is closed.
//! So connections that send nothing, or do not read their responses, cannot block probes.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Future,
    pin::pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use conclave_metrics::Registry;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

use super::{Api, Backend, Shared, Startup, listeners, process};
use conclave_types::status::{Health, NotServing};

/// Sufficient, since there are few scrapers and probes.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// Time for a request's headers to arrive, and for the next request on a connection that is kept alive.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum age of a connection. It bounds how long an unread response is kept; the client then reconnects.
const AGE_MAX: Duration = Duration::from_secs(60);
const BUFFER_BYTES_MAX: usize = 16 * 1024;
/// Pages are made in memory, so the drain does not wait for a peer that does not read.
const DRAIN: Duration = Duration::from_millis(500);

/// The admin port of one node. A clone is another handle to the same port.
pub struct Admin<B>(Arc<State<B>>);

impl<B> Clone for Admin<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct State<B> {
    startup: Startup,
    registry: Registry,
    /// Set once the replica runs.
    api: OnceLock<Arc<Shared<B>>>,
}

impl<B: Backend> Admin<B> {
    /// Creates the port of a node that is starting. It serves the metrics of the registry, and registers those of the
    /// process and of the node's readiness there.
    pub fn new(startup: Startup, registry: Registry) -> Self {
        process::register(&registry);
        let ready =
            registry.gauge("conclave_ready", "1 if this node serves commands and queries, else 0.");
        let state = Arc::new(State { startup, registry, api: OnceLock::new() });
        // The registry belongs to the state, so its closure must not.
        let weak = Arc::downgrade(&state);
        state.registry.on_scrape(move || {
            if let Some(state) = weak.upgrade() {
                ready.set(state.not_ready().is_none().into());
            }
        });
        Self(state)
    }

    /// Serves the pages of the running node from now on.
    pub fn started(&self, api: &Api<B>) {
        // A second start of one node is a bug, but harmless here.
        let _ = self.0.api.set(api.0.clone());
    }

    /// Serves metrics and probes on the listener until `shutdown`. Stop this port last.
    pub async fn serve(&self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS_TIMEOUT)
            .max_buf_size(BUFFER_BYTES_MAX);
        let (closing, closed) = watch::channel(false);
        let mut connections = JoinSet::new();
        // In the order of acceptance.
        let mut by_age = VecDeque::<AbortHandle>::new();
        let mut shutdown = pin!(shutdown);
        loop {
            let (stream, peer) = tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => continue,
                accepted = listeners::accept(&listener) => accepted,
            };
            by_age.retain(|connection| !connection.is_finished());
            if by_age.len() >= CONNECTIONS_MAX
                && let Some(oldest) = by_age.pop_front()
            {
                tracing::debug!(%peer, "closing the oldest connection to the admin port for a new one");
                oldest.abort();
            }
            let (state, http1, closed) = (self.0.clone(), http1.clone(), closed.clone());
            by_age.push_back(connections.spawn(async move {
                if let Err(error) = connection(state, &http1, stream, closed).await {
                    tracing::debug!(%peer, %error, "connection to the admin port ended");
                }
            }));
        }
        drop(listener);
        closing.send_replace(true);
        // Responses that are being written get a short time. Idle kept-alive connections get none.
        let drained = timeout(DRAIN, async { while connections.join_next().await.is_some() {} });
        if drained.await.is_err() {
            let connections = connections.len();
            tracing::debug!(connections, "closing connections to the admin port");
        }
    }
}

async fn connection<B: Backend>(
    state: Arc<State<B>>,
    http1: &http1::Builder,
    stream: TcpStream,
    mut closed: watch::Receiver<bool>,
) -> hyper::Result<()> {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = state.answer(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut served = pin!(http1.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        biased;
        ended = &mut served => return ended,
        _ = closed.wait_for(|closed| *closed) => {}
        () = sleep(AGE_MAX) => {}
    }
    served.as_mut().graceful_shutdown();
    // Bounds the wait for a peer that does not read.
    timeout(HEADERS_TIMEOUT, served).await.unwrap_or(Ok(()))
}

impl<B: Backend> State<B> {
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return page(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
        }
        match path {
            "/metrics" => page(StatusCode::OK, self.registry.page()),
            "/livez" => page(StatusCode::OK, "ok\n".to_owned()),
            "/readyz" => match self.not_ready() {
                None => page(StatusCode::OK, "ready\n".to_owned()),
                Some(why) => page(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
            },
            _ => page(StatusCode::NOT_FOUND, "try /metrics, /livez or /readyz\n".to_owned()),
        }
    }

    /// The reason why the node is not ready, or `None` if it is ready.
    fn not_ready(&self) -> Option<String> {
        let Some(api) = self.api.get() else { return Some(self.startup.to_string()) };
        let health = if *api.closing.borrow() {
            Health::NotServing(NotServing::ShuttingDown)
        } else {
            api.backend.health().borrow().clone()
        };
        match health {
            Health::Serving => None,
            Health::NotServing(why) => Some(why.to_string()),
        }
    }
}

fn page(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    // The version is that of Prometheus' text format. Other clients read it as plain text.
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, text);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
