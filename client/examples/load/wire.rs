//! The requests of both systems, and a connection that sends them.
//!
//! Requests are encoded here and answers are not decoded: only their size is looked at. The messages are
//! the few fields that the load uses, by the numbers of the public APIs.

use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::{Buf, BufMut as _, Bytes};
use http::uri::PathAndQuery;
use prost::Message;
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

/// The longest that one call may take before it counts as an error.
const CALL_TIME_MAX: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Target {
    Conclave,
    Etcd,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Work {
    /// A write, acknowledged once a majority has synced it.
    Put,
    /// A linearizable read.
    Get,
    /// A read of what the asked node has, without asking the others.
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

/// A call, ready to be sent.
pub(crate) struct Call {
    path: &'static str,
    message: Bytes,
    stale: bool,
    /// A get that finds nothing is answered in fewer bytes than the value has: an error.
    answer_bytes_min: usize,
}

impl Call {
    pub(crate) fn new(target: Target, work: Work, key: u64, value: &Bytes) -> Self {
        let key = format!("bench/{key:08}");
        let serializable = work == Work::StaleGet;
        let (path, message) = match (target, work) {
            (Target::Etcd, Work::Put) => (
                "/etcdserverpb.KV/Put",
                EtcdPut { key: key.into(), value: value.clone() }.encode_to_vec(),
            ),
            (Target::Etcd, _) => (
                "/etcdserverpb.KV/Range",
                EtcdRange { key: key.into(), serializable }.encode_to_vec(),
            ),
            (Target::Conclave, Work::Put) => {
                ("/kv.v1.KV/Put", ConclavePut { key, value: value.clone() }.encode_to_vec())
            }
            (Target::Conclave, _) => ("/kv.v1.KV/Get", ConclaveGet { key }.encode_to_vec()),
        };
        Self {
            path,
            message: message.into(),
            stale: target == Target::Conclave && work == Work::StaleGet,
            answer_bytes_min: if work == Work::Put { 0 } else { value.len() },
        }
    }
}

/// Calls over one connection. Clones share it.
#[derive(Clone)]
pub(crate) struct Connection(Grpc<Channel>);

impl Connection {
    /// Connects when it is first used.
    pub(crate) fn new(endpoint: &str) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{endpoint}"))
            .with_context(|| format!("{endpoint} is not host:port"))?
            .tcp_nodelay(true)
            .connect_timeout(Duration::from_secs(2));
        Ok(Self(Grpc::new(endpoint.connect_lazy())))
    }

    pub(crate) async fn send(&mut self, call: Call) -> Result<(), Status> {
        self.send_within(call, CALL_TIME_MAX).await
    }

    pub(crate) async fn send_within(&mut self, call: Call, time: Duration) -> Result<(), Status> {
        let mut request = Request::new(call.message);
        request.set_timeout(time);
        if call.stale {
            request
                .metadata_mut()
                .insert("conclave-consistency", MetadataValue::from_static("stale"));
        }
        let answer = async {
            self.0.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            self.0.unary(request, PathAndQuery::from_static(call.path), Raw).await
        };
        let answer = tokio::time::timeout(time, answer)
            .await
            .map_err(|_| Status::deadline_exceeded("no answer in time"))??;
        if answer.into_inner() < call.answer_bytes_min {
            return Err(Status::not_found("the answer holds no value"));
        }
        Ok(())
    }
}

/// Messages as bytes; of an answer, only the size.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = usize;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = usize;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<usize>, Status> {
        let size = buffer.remaining();
        buffer.advance(size);
        Ok(Some(size))
    }
}
