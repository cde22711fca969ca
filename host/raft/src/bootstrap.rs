//! Initializes a new cluster, once.
//!
//! The initial member with the smallest id initializes the cluster, and only after every other
//! initial member has reported that it is new as well. So a member that lost its data cannot found
//! a second cluster beside the first: the other members are already initialized.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::sleep;

use super::{Replica, network::peer::ConnectionClass};
use crate::settings::Member as InitialMember;
use conclave_storage::raft_types::Member;
use conclave_types::NodeId;

const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// The number of attempts between two messages in the log.
const MENTION_EVERY: u32 = 50;

/// Returns once the cluster has been initialized, by this node or by another.
pub(super) async fn run(replica: Replica) {
    let members = initial_members(&replica.0.members);
    let first = members.keys().next().copied();
    let mut tries = 0_u32;
    // Raft logs an error if it is called after it has stopped.
    while !replica.0.is_stopping() && !replica.is_initialized().await {
        if first == Some(replica.0.node_id()) {
            match all_new(&replica, &members).await {
                Ok(()) => {
                    initialize(&replica, members).await;
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

pub(super) fn initial_members(members: &[InitialMember]) -> BTreeMap<NodeId, Member> {
    let members = members.iter().map(|member| {
        let (peer_address, client_address) =
            (member.peer_address.clone(), member.client_address.clone());
        (member.node_id, Member { peer_address, client_address })
    });
    members.collect()
}

async fn all_new(replica: &Replica, members: &BTreeMap<NodeId, Member>) -> Result<(), String> {
    for (node_id, member) in members {
        if *node_id == replica.0.node_id() {
            continue;
        }
        let peer = replica.0.peers.peer(*node_id, member);
        let answer =
            peer.handshake(ConnectionClass::Control).await.map_err(|error| error.to_string())?;
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

async fn initialize(replica: &Replica, members: BTreeMap<NodeId, Member>) {
    let count = members.len();
    match replica.raft().initialize(members).await {
        Ok(()) => tracing::info!(members = count, "initialized the cluster"),
        Err(error) => tracing::info!(%error, "the cluster was initialized meanwhile"),
    }
}
