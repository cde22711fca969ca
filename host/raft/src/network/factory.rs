//! openraft's connections to the other members.

use std::sync::{Arc, OnceLock, Weak};

use openraft::RaftNetworkFactory;

use super::{client::PeerNetwork, peer::ConnectionClass, peers::Peers};
use crate::{divergence::Giving, lease::Lease, snapshot::Transfers};
use conclave_storage::raft_types::{Member, TypeConfig};
use conclave_types::NodeId;

/// The permission to send snapshots, set once it exists: openraft's connections are created before it.
pub(crate) type OwnGiving = Arc<OnceLock<Weak<Giving>>>;

/// Creates openraft's connections.
#[derive(Clone)]
pub(crate) struct NetworkFactory {
    pub(crate) peers: Arc<Peers>,
    pub(crate) lease: Arc<Lease>,
    pub(crate) transfers: Arc<Transfers>,
    pub(crate) giving: OwnGiving,
}

impl NetworkFactory {
    fn network(&self, target: NodeId, member: &Member, class: ConnectionClass) -> PeerNetwork {
        PeerNetwork::new(
            self.peers.peer(target, member),
            class,
            self.lease.clone(),
            self.transfers.clone(),
            self.giving.clone(),
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
