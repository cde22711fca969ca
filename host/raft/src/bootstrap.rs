//! Initializes a new cluster, once.
//!
//! The initial member with the smallest id initializes the cluster, and only after every other
//! initial member has reported that it is new as well. So a member that lost its data cannot found
//! a second cluster beside the first: the other members are already initialized.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use openraft::async_runtime::WatchReceiver;
use tokio::time::sleep;

use super::{fitness::Fitness, network::peer::ConnectionClass, node::Node};
use crate::settings::Member as InitialMember;
use conclave_storage::raft_types::Member;
use conclave_types::NodeId;

const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// The number of attempts between two messages in the log.
const MENTION_EVERY: u32 = 50;

/// The members that a new cluster starts with, and their first contact.
pub(super) struct Bootstrap {
    node: Arc<Node>,
    fitness: Arc<Fitness>,
    members: Vec<InitialMember>,
}

impl Bootstrap {
    pub(super) fn new(node: Arc<Node>, fitness: Arc<Fitness>, members: Vec<InitialMember>) -> Self {
        Self { node, fitness, members }
    }

    /// Starts connecting to every other member, so that each learns at once of this node's start.
    pub(super) fn connect_to_members(&self) {
        let mut members = initial_members(&self.members);
        members.extend(self.node.members());
        members.remove(&self.node.id());
        for (node_id, member) in &members {
            self.node.peers.peer(*node_id, member);
        }
    }

    /// Returns whether the node is a member, or is configured as an initial member.
    pub(super) fn is_member(&self, node_id: NodeId) -> bool {
        let metrics = self.node.raft.metrics();
        let known = metrics.borrow_watched().membership_config.get_node(&node_id).is_some();
        known || self.members.iter().any(|member| member.node_id == node_id)
    }

    /// Returns whether the cluster has been initialized.
    pub(super) async fn is_initialized(&self) -> bool {
        // In a separate task: openraft logs an error if the response of its core is not awaited.
        let raft = self.node.raft.clone();
        let asked = tokio::spawn(async move { raft.is_initialized().await.unwrap_or(true) });
        asked.await.unwrap_or(true)
    }

    /// Returns once the cluster has been initialized, by this node or by another.
    pub(super) async fn run(self: Arc<Self>) {
        let members = initial_members(&self.members);
        let first = members.keys().next().copied();
        let mut tries = 0_u32;
        // Raft logs an error if it is called after it has stopped.
        while !self.fitness.is_stopping() && !self.is_initialized().await {
            if first == Some(self.node.id()) {
                match self.all_new(&members).await {
                    Ok(()) => {
                        self.initialize(members).await;
                        return;
                    }
                    Err(why) if tries.is_multiple_of(MENTION_EVERY) => {
                        tracing::info!(why, "waiting to initialize the cluster");
                    }
                    Err(_) => {}
                }
            } else if tries.is_multiple_of(MENTION_EVERY) {
                tracing::info!(by = first, "waiting for the cluster to be initialized");
            }
            tries += 1;
            sleep(RETRY_INTERVAL).await;
        }
    }

    async fn all_new(&self, members: &BTreeMap<NodeId, Member>) -> Result<(), String> {
        for (node_id, member) in members {
            if *node_id == self.node.id() {
                continue;
            }
            let peer = self.node.peers.peer(*node_id, member);
            let answer = peer
                .handshake(ConnectionClass::Control)
                .await
                .map_err(|error| error.to_string())?;
            if answer.initialized {
                return Err(format!(
                    "node {node_id} already belongs to an initialized cluster: this node's data \
                     directory is new, so it waits for that cluster to contact it. If this node lost its data, put its newest \
                     data directory back; the cluster works without it while a majority of the members runs"
                ));
            }
        }
        Ok(())
    }

    async fn initialize(&self, members: BTreeMap<NodeId, Member>) {
        let count = members.len();
        match self.node.raft.initialize(members).await {
            Ok(()) => tracing::info!(members = count, "initialized the cluster"),
            Err(error) => tracing::info!(%error, "the cluster was initialized meanwhile"),
        }
    }
}

fn initial_members(members: &[InitialMember]) -> BTreeMap<NodeId, Member> {
    let members = members.iter().map(|member| {
        let (peer_address, client_address) =
            (member.peer_address.clone(), member.client_address.clone());
        (member.node_id, Member { peer_address, client_address })
    });
    members.collect()
}
