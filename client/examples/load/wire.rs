//! The requests of both systems, and a connection that sends them.
//!
//! Requests are encoded here. Responses are not decoded; only their size is checked. The messages
//! contain only the fields that the load uses, with the numbers of the public APIs. The generator
//! implements gRPC directly over HTTP/2 frames. It shares the CPU with the measured servers, and
//! the layers of a client library took as much CPU time as a node did.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{RecvStream, client::SendRequest};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, uri::PathAndQuery};
use prost::Message;
use tokio::net::TcpStream;
use tonic::{Code, Status};

/// Maximum time of one call. A longer one counts as an error.
const CALL_TIME_MAX: Duration = Duration::from_secs(10);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Target {
    Conclave,
    Etcd,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Work {
    /// A write, acknowledged once a majority has synced it
    Put,
    /// A linearizable read
    Get,
    /// A read of the called node's state, without contacting the others
    StaleGet,
}

#[derive(Message)]
struct EtcdPut {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Message)]
struct EtcdRange {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bool, tag = "7")]
    serializable: bool,
}

#[derive(Message)]
struct ConclavePut {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Message)]
struct ConclaveGet {
    #[prost(string, tag = "1")]
    key: String,
}

#[derive(Message)]
struct ConclaveBatch {
    #[prost(message, repeated, tag = "1")]
    operations: Vec<ConclaveOperation>,
}

#[derive(Message)]
struct ConclaveOperation {
    #[prost(message, optional, tag = "1")]
    put: Option<ConclavePut>,
}

/// An encoded call.
pub(crate) struct Call {
    path: &'static str,
    /// gRPC's prefix and the message.
    frame: Bytes,
    stale: bool,
    /// Minimum size of the response. A get without a value has a smaller response, which is an error.
    answer_bytes_min: usize,
}

impl Call {
    pub(crate) fn new(target: Target, work: Work, key: u64, value: &Bytes) -> Self {
        let key = format!("bench/{key:08}");
        let serializable = work == Work::StaleGet;
        let (path, frame) = match (target, work) {
            (Target::Etcd, Work::Put) => {
                ("/etcdserverpb.KV/Put", framed(&EtcdPut { key: key.into(), value: value.clone() }))
            }
            (Target::Etcd, _) => {
                ("/etcdserverpb.KV/Range", framed(&EtcdRange { key: key.into(), serializable }))
            }
            (Target::Conclave, Work::Put) => {
                ("/kv.v1.KV/Put", framed(&ConclavePut { key, value: value.clone() }))
            }
            (Target::Conclave, _) => ("/kv.v1.KV/Get", framed(&ConclaveGet { key })),
        };
        Self {
            path,
            frame,
            stale: target == Target::Conclave && work == Work::StaleGet,
            answer_bytes_min: if work == Work::Put { 0 } else { value.len() },
        }
    }

    /// Returns a batch of `operations` puts, for Conclave.
    pub(crate) fn batch(operations: usize, value: &Bytes) -> Self {
        let put = |key| ConclavePut { key: format!("batch/{key}"), value: value.clone() };
        let operations = (0..operations).map(|key| ConclaveOperation { put: Some(put(key)) });
        let frame = framed(&ConclaveBatch { operations: operations.collect() });
        Self { path: "/kv.v1.KV/Batch", frame, stale: false, answer_bytes_min: 0 }
    }
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0); // not compressed
    frame.put_u32(length as u32);
    frame.put_slice(&message.encode_to_vec());
    frame.freeze()
}

/// Calls over one connection. Clones share the connection until it breaks; then each opens its own.
#[derive(Clone)]
pub(crate) struct Connection {
    address: Arc<str>,
    headers: HeaderMap,
    sender: Option<SendRequest<Bytes>>,
}

impl Connection {
    /// Creates a connection that is opened on first use.
    pub(crate) fn new(address: &str) -> Self {
        let fixed = |(name, value)| (name, HeaderValue::from_static(value));
        let headers =
            [(http::header::CONTENT_TYPE, "application/grpc"), (http::header::TE, "trailers")];
        Self {
            address: address.into(),
            headers: headers.into_iter().map(fixed).collect(),
            sender: None,
        }
    }

    /// Opens a connection.
    pub(crate) async fn open(address: &str) -> Result<Self> {
        let mut connection = Self::new(address);
        connection.sender = Some(connection.connect().await?);
        Ok(connection)
    }

    async fn connect(&self) -> Result<SendRequest<Bytes>> {
        let connected = async {
            let stream = TcpStream::connect(&*self.address).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = h2::client::handshake(stream).await?;
            // An error appears in the calls.
            tokio::spawn(connection);
            anyhow::Ok(sender)
        };
        let connected = tokio::time::timeout(CONNECT_TIME_MAX, connected).await;
        connected
            .context("no connection in time")?
            .with_context(|| format!("cannot connect to {}", self.address))
    }

    pub(crate) async fn send(&mut self, call: Call) -> Result<(), Status> {
        self.send_within(call, CALL_TIME_MAX).await
    }

    pub(crate) async fn send_within(&mut self, call: Call, time: Duration) -> Result<(), Status> {
        let answer = tokio::time::timeout(time, self.unary(call)).await;
        answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")))
    }

    async fn unary(&mut self, call: Call) -> Result<(), Status> {
        let sender = match self.sender.take() {
            Some(sender) => sender,
            None => {
                self.connect().await.map_err(|error| Status::unavailable(format!("{error:#}")))?
            }
        };
        // The sender is taken out for the call, so that a failed or abandoned one is not used again.
        let mut sender = sender.ready().await.map_err(broken)?;
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri(call.path)?;
        *request.headers_mut() = self.headers.clone();
        if call.stale {
            request.headers_mut().insert("conclave-consistency", HeaderValue::from_static("stale"));
        }
        let (answer, mut body) = sender.send_request(request, false).map_err(broken)?;
        self.sender = Some(sender);
        body.send_data(call.frame, true).map_err(broken)?;
        let answer = answer.await.map_err(broken)?;
        let (head, body) = answer.into_parts();
        let bytes = read(&head.headers, body).await?;
        if bytes < call.answer_bytes_min {
            return Err(Status::not_found("the answer holds no value"));
        }
        Ok(())
    }

    fn uri(&self, path: &'static str) -> Result<Uri, Status> {
        let uri = Uri::builder()
            .scheme("http")
            .authority(&*self.address)
            .path_and_query(PathAndQuery::from_static(path));
        uri.build().map_err(|error| Status::invalid_argument(error.to_string()))
    }
}

/// Returns the size of the response, or its error: from the trailers, or from the headers if there
/// are only headers.
async fn read(headers: &HeaderMap, mut body: RecvStream) -> Result<usize, Status> {
    let mut bytes = 0;
    while let Some(data) = body.data().await {
        let data = data.map_err(broken)?;
        bytes += data.len();
        body.flow_control().release_capacity(data.len()).map_err(broken)?;
    }
    let trailers = body.trailers().await.map_err(broken)?;
    let status = trailers.as_ref().and_then(Status::from_header_map);
    match status.or_else(|| Status::from_header_map(headers)) {
        Some(status) if status.code() == Code::Ok => Ok(bytes),
        Some(status) => Err(status),
        None => Err(Status::internal("the answer has no status")),
    }
}

fn broken(error: h2::Error) -> Status {
    Status::unavailable(error.to_string())
}
