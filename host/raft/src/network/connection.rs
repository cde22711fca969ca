//! The HTTP/2 connections to one peer: one per connection class, each with its own client.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use tonic::{
    Request, Status,
    metadata::MetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::{CLUSTER_HEADER, FROM_HEADER, MESSAGE_BYTES_MAX, TO_HEADER, local::Local};
use conclave_proto::raft::raft_client::RaftClient;
use conclave_types::NodeId;

/// The time limit of a connection attempt, a handshake and a ping.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The interval at which an idle connection is probed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// The time after which a connection without a response to a probe is closed.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// HTTP/2 flow control, per stream and per connection: enough for a batch of the largest entries.
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// The purpose of a connection. Each class has its own connection, so that none waits behind another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionClass {
    /// Log entries.
    Log,
    /// Heartbeats, votes, forwarded calls and queries.
    Control,
    /// Snapshots.
    Snapshot,
}

/// All classes, in the order of their discriminants.
const CLASSES: [ConnectionClass; 3] =
    [ConnectionClass::Log, ConnectionClass::Control, ConnectionClass::Snapshot];

/// Adds the cluster, the sender and the receiver to every request.
#[derive(Clone)]
pub struct Introduce {
    cluster: MetadataValue<tonic::metadata::Ascii>,
    from: MetadataValue<tonic::metadata::Ascii>,
    to: MetadataValue<tonic::metadata::Ascii>,
}

impl Interceptor for Introduce {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert(CLUSTER_HEADER, self.cluster.clone());
        metadata.insert(FROM_HEADER, self.from.clone());
        metadata.insert(TO_HEADER, self.to.clone());
        Ok(request)
    }
}

/// The client of one connection class to one peer.
pub type Client = RaftClient<InterceptedService<Channel, Introduce>>;

#[derive(Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    /// Set by a handshake, cleared by a failure: another process may respond next.
    pub(super) greeted: Arc<AtomicBool>,
}

/// Creates the connections of all classes to one peer.
pub(super) struct Connector {
    endpoint: Endpoint,
    introduce: Introduce,
}

impl Connector {
    pub(super) fn new(node_id: NodeId, address: &str, local: &Local) -> Result<Self, String> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| error.to_string())?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES);
        let ascii = |text: String| MetadataValue::try_from(text).map_err(|error| error.to_string());
        let introduce = Introduce {
            cluster: ascii(local.identity.cluster_id.clone())?,
            from: ascii(local.identity.node_id.to_string())?,
            to: ascii(node_id.to_string())?,
        };
        Ok(Self { endpoint, introduce })
    }

    /// Returns one connection per class.
    pub(super) fn all(&self) -> Vec<Connection> {
        let connect = |_| {
            let channel = self.endpoint.connect_lazy();
            let client = RaftClient::with_interceptor(channel, self.introduce.clone())
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX);
            Connection { client, greeted: Arc::default() }
        };
        CLASSES.iter().map(connect).collect()
    }
}
