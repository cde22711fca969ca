//! All peers of this node, by node id.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::{local::Local, peer::Peer};
use crate::supervise::Supervisor;
use conclave_storage::raft_types::Member;
use conclave_types::{NodeId, status::PeerLink};

/// All peers that this node has contacted, or that have contacted it.
pub struct Peers {
    local: Arc<Local>,
    supervisor: Supervisor,
    known: Mutex<HashMap<NodeId, Arc<Peer>>>,
}

impl Peers {
    /// Creates an empty set. The peers' tasks run under the supervisor.
    pub fn new(local: Arc<Local>, supervisor: Supervisor) -> Self {
        Self { local, supervisor, known: Mutex::default() }
    }

    /// Returns the peer at its address in the membership.
    pub fn peer(&self, node_id: NodeId, member: &Member) -> Arc<Peer> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&node_id) {
            Some(peer) if peer.address == member.peer_address => peer.clone(),
            _ => {
                let peer = Peer::start(
                    node_id,
                    &member.peer_address,
                    self.local.clone(),
                    &self.supervisor,
                );
                known.insert(node_id, peer.clone());
                peer
            }
        }
    }

    /// Records that a process of a peer has introduced itself.
    pub(super) fn contacted(&self, node_id: NodeId, process: u64) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = known.get(&node_id) {
            peer.contacted(process);
        }
    }

    /// Records that a peer waits until it has applied the log up to this index.
    pub(super) fn want_commit(&self, node_id: NodeId, index: u64) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = known.get(&node_id) {
            peer.want_commit(index);
        }
    }

    /// Returns once the first attempt to connect to each peer known so far has ended.
    pub(crate) async fn settled(&self) {
        let known: Vec<_> = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.values().cloned().collect()
        };
        for peer in known {
            let _ = peer.settled().await;
        }
    }

    /// Returns the status of the connections to all peers, by node id.
    pub(crate) fn status(&self) -> Vec<PeerLink> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut links: Vec<_> = known.values().map(|peer| peer.status()).collect();
        links.sort_by_key(|link| link.node_id);
        links
    }

    /// Drops all connections.
    pub(crate) fn stop(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for peer in known.values() {
            peer.stop();
        }
        known.clear();
    }
}
