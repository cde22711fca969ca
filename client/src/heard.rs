//! Connections that detect the first bytes of their peer.
//!
//! A kernel accepts connections even for a process that is frozen or permanently busy. A node
//! begins with its HTTP/2 settings, so a connection counts as made when its first bytes have
//! arrived. Until then nothing is sent on it, and another node can be called.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::watch,
};
use tonic::transport::{Channel, Endpoint};
use tower::{Service, service_fn};

use crate::retry::connect_cause;

/// The state of a connection's peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Silent,
    Speaks,
    Gone,
}

/// Connects, and waits for the first bytes of the peer.
pub(crate) async fn connect(endpoint: &Endpoint, timeout: Duration) -> Result<Channel, String> {
    let (report, mut peer) = watch::channel(Peer::Silent);
    let mut http = HttpConnector::new();
    http.set_nodelay(true);
    http.set_connect_timeout(Some(timeout));
    let connector = service_fn(move |uri: Uri| {
        let (connecting, report) = (http.call(uri), report.clone());
        async move {
            let stream = connecting.await?.into_inner();
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(TokioIo::new(Heard {
                stream,
                report,
            }))
        }
    });
    let channel = endpoint.connect_with_connector(connector).await;
    let channel = channel.map_err(|cause| connect_cause(&cause))?;
    match peer.wait_for(|peer| *peer != Peer::Silent).await.map(|peer| *peer) {
        Ok(Peer::Speaks) => Ok(channel),
        _ => Err("the node closed the connection immediately".to_owned()),
    }
}

/// A connection that reports its peer's first bytes, or their absence.
struct Heard {
    stream: TcpStream,
    report: watch::Sender<Peer>,
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if *self.report.borrow() == Peer::Silent {
            match &read {
                Poll::Ready(Ok(())) if buffer.filled().len() > before => {
                    self.report.send_replace(Peer::Speaks);
                }
                Poll::Ready(_) => drop(self.report.send_replace(Peer::Gone)),
                Poll::Pending => {}
            }
        }
        read
    }
}

impl AsyncWrite for Heard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
