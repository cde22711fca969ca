//! The HTTP/2 connections to one peer: one per lane, each with its own client.

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

use super::{
    CLUSTER_HEADER, FROM_HEADER, MESSAGE_BYTES_MAX, TO_HEADER,
    local::Local,
    peer::{CLASSES, CONNECT_TIMEOUT},
};
use conclave_proto::raft::raft_client::RaftClient;
use conclave_types::NodeId;

/// A connection is probed this often while nothing else is on it …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// … and given up when a probe is not answered for so long.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// HTTP/2 flow control, a stream and a connection: enough for a batch of the largest entries.
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// Puts on every request who asks whom.
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

/// The client of one lane to one peer.
pub type Client = RaftClient<InterceptedService<Channel, Introduce>>;

#[derive(Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    /// Set by a handshake, cleared by a failure: the next process that answers may be another.
    pub(super) greeted: Arc<AtomicBool>,
}

/// Makes the connections of all lanes to one peer.
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

    /// One connection for each lane.
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
