//! The admin port: metrics and probes, over plain HTTP/1.1, for machines inside the fence.
//!
//! `/metrics` is Prometheus' text. `/livez` says that the process answers; it stays 200 while there is no
//! quorum, since a restart would not help. `/readyz` follows the replica's health and says why not.

use std::{convert::Infallible, future::Future, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, task::JoinSet, time::timeout};

use super::{Backend, Shared, listeners};
use crate::types::status::{Health, NotServing};

/// Scrapers and probes are few.
const CONNECTIONS_MAX: usize = 64;
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
const BUFFER_BYTES_MAX: usize = 16 * 1024;
/// Pages are made in memory; a peer that does not read them is not waited for.
const DRAIN: Duration = Duration::from_secs(1);

/// Serves the admin port until `shutdown`.
pub(super) async fn serve_admin<B: Backend>(
    shared: Arc<Shared<B>>,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) {
    let mut http1 = http1::Builder::new();
    http1
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .max_buf_size(BUFFER_BYTES_MAX);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let (stream, peer) = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = listeners::accept(&listener) => accepted,
        };
        if connections.len() >= CONNECTIONS_MAX {
            tracing::warn!(%peer, "closing a connection to the admin port: there are too many");
            continue;
        }
        let shared = shared.clone();
        let http1 = http1.clone();
        connections.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer(&shared, request.method(), request.uri().path());
                async move { Ok::<_, Infallible>(answer) }
            });
            if let Err(error) = http1.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%peer, %error, "connection to the admin port ended");
            }
        });
    }
    drop(listener);
    // Answers that are being written get a moment; connections that are kept alive do not.
    let drained = timeout(DRAIN, async { while connections.join_next().await.is_some() {} });
    if drained.await.is_err() {
        tracing::debug!(connections = connections.len(), "closing connections to the admin port");
    }
}

fn answer<B: Backend>(shared: &Shared<B>, method: &Method, path: &str) -> Response<Full<Bytes>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return page(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
    }
    let health = if *shared.closing.borrow() {
        Health::NotServing(NotServing::ShuttingDown)
    } else {
        shared.backend.health().borrow().clone()
    };
    match path {
        "/metrics" => {
            let ready = health == Health::Serving;
            let node = shared.backend.node_status();
            page(StatusCode::OK, shared.metrics.page(&node, ready, shared.backend.metrics()))
        }
        "/livez" => page(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match health {
            Health::Serving => page(StatusCode::OK, "ready\n".to_owned()),
            Health::NotServing(reason) => {
                page(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n"))
            }
        },
        _ => page(StatusCode::NOT_FOUND, "try /metrics, /livez or /readyz\n".to_owned()),
    }
}

fn page(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    // The version is that of Prometheus' text format; others read it as plain text.
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, text);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
