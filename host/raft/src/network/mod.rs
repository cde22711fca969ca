//! The protocol between nodes, over gRPC on the peer port.
//!
//! [`peers`] holds the connections: each [`peer`] has its [`connection`]s, and [`backoff`] paces
//! their retries. [`local`] is this node's identity, with its records about the peers, which it
//! compares with their [`standing`]. [`client`] sends openraft's requests, [`pacing`] times them
//! and [`heartbeats`] triggers heartbeats. [`service`] handles the peers' requests, and
//! [`message`] checks their messages.
//!
//! Contract: a node answers a request, and accepts a response, only after both sides have checked
//! that they belong to the same cluster, are the intended nodes, and still have the data
//! directory that they had at their first contact. Traffic is not encrypted: the peer port
//! belongs on a private network.

mod backoff;
pub mod client;
mod connection;
#[doc(hidden)]
pub mod fuzz;
pub(super) mod heartbeats;
pub mod local;
mod message;
mod pacing;
pub mod peer;
pub mod peers;
pub mod service;
pub(super) mod standing;

use std::sync::{Arc, OnceLock, Weak};

use openraft::RaftNetworkFactory;

use self::{client::PeerNetwork, peer::ConnectionClass, peers::Peers};
use super::{Inner, lease::Lease, snapshot::Transfers};
use conclave_storage::raft_types::{Member, TypeConfig};
use conclave_types::NodeId;

/// The version of the protocol between peers. Nodes of different versions do not
/// communicate. Version 2 added components to the log and to snapshots. Version 3 added the
/// confirmation of leaders.
pub const PROTOCOL_VERSION: u32 = 3;

/// The largest message between peers: one log entry of the largest request with room to spare, or a
/// batch of smaller ones.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The metadata of every request between peers: the cluster, the sender and the intended receiver.
pub const CLUSTER_HEADER: &str = "conclave-cluster";
/// See [`CLUSTER_HEADER`].
pub const FROM_HEADER: &str = "conclave-from";
/// See [`CLUSTER_HEADER`].
pub const TO_HEADER: &str = "conclave-to";

/// The metadata on errors of a node that is stopping: the request had no effect.
pub const REFUSED_HEADER: &str = "conclave-refused";

/// This node's replica, set once it exists: openraft's connections are created before it.
pub(super) type OwnReplica = Arc<OnceLock<Weak<Inner>>>;

/// Creates openraft's connections.
#[derive(Clone)]
pub struct NetworkFactory {
    pub(super) peers: Arc<Peers>,
    pub(super) lease: Arc<Lease>,
    pub(super) transfers: Arc<Transfers>,
    pub(super) replica: OwnReplica,
}

impl NetworkFactory {
    fn network(&self, target: NodeId, member: &Member, class: ConnectionClass) -> PeerNetwork {
        PeerNetwork::new(
            self.peers.peer(target, member),
            class,
            self.lease.clone(),
            self.transfers.clone(),
            self.replica.clone(),
        )
    }
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = PeerNetwork;

    async fn new_client(&mut self, target: NodeId, member: &Member) -> PeerNetwork {
        self.network(target, member, ConnectionClass::Log)
    }

    /// A separate connection, because a heartbeat that waits behind a large append starts an election.
    async fn new_heartbeat_client(&mut self, target: NodeId, member: &Member) -> PeerNetwork {
        self.network(target, member, ConnectionClass::Control)
    }

    /// A separate connection, because a snapshot takes long.
    async fn new_snapshot_client(&mut self, target: NodeId, member: &Member) -> PeerNetwork {
        self.network(target, member, ConnectionClass::Snapshot)
    }
}
