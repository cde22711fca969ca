//! The HTTP/2 connections to one peer: one per connection class, each with its own client.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use tokio::sync::Mutex;
use tonic::transport::{Channel, Endpoint};

use super::MESSAGE_BYTES_MAX;
use conclave_proto::raft::raft_client::RaftClient;

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

/// The client of one connection class to one peer.
pub type Client = RaftClient<Channel>;

#[derive(Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    /// Set by a handshake, cleared by a failure: another process may respond next.
    pub(super) greeted: Arc<AtomicBool>,
    /// Held during a call's handshake: calls that begin together make one handshake.
    pub(super) greeting: Arc<Mutex<()>>,
}

/// Creates the connections of all classes to one peer.
pub(super) struct Connector {
    endpoint: Endpoint,
}

impl Connector {
    pub(super) fn new(address: &str) -> Result<Self, String> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| error.to_string())?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES);
        Ok(Self { endpoint })
    }

    /// Returns one connection per class.
    pub(super) fn all(&self) -> Vec<Connection> {
        let connect = |_| {
            let channel = self.endpoint.connect_lazy();
            let client = RaftClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX);
            Connection { client, greeted: Arc::default(), greeting: Arc::default() }
        };
        CLASSES.iter().map(connect).collect()
    }
}
