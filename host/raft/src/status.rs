//! The status of this node and of its cluster.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use openraft::{ServerState, async_runtime::WatchReceiver};
use tokio::time::timeout;

use super::{limits::LimitsInForce, node::Node, peer_status, state_machine::Building, time::Time};
use conclave_storage::raft_types::LogId;
use conclave_types::{
    limits::{ClusterLimits, LimitsChange},
    status::{ClusterStatus, LimitsSet, NodeStatus, Role},
};

/// The time after which a member that has not responded counts as unreachable.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

fn index(log_id: Option<&LogId>) -> u64 {
    log_id.map_or(0, |log_id| log_id.index)
}

/// The status of this node and of its cluster.
pub(super) struct Status {
    node: Arc<Node>,
    time: Arc<Time>,
    building: Arc<Building>,
    /// The limits in this node's configuration.
    configured: LimitsChange,
}

impl Status {
    pub(super) fn new(
        node: Arc<Node>,
        time: Arc<Time>,
        building: Arc<Building>,
        configured: LimitsChange,
    ) -> Self {
        Self { node, time, building, configured }
    }

    /// Returns the status of this node.
    pub(super) fn of_node(&self) -> NodeStatus {
        let node = &self.node;
        let (leads, fatal_error) = (node.leads(), node.fatal_error().unwrap_or_default());
        let metrics = node.raft.metrics();
        let metrics = metrics.borrow_watched();
        let member = metrics.membership_config.get_node(&node.id()).cloned();
        let member = member.unwrap_or_default();
        let (divergences, divergence) = node.divergence.past();
        // A leader without its majority or its disk leads no node, even if openraft has not noticed.
        let deposed = metrics.state.is_leader() && !leads;
        let leader = metrics.current_leader.filter(|_| !deposed);
        NodeStatus {
            id: node.id(),
            role: match metrics.state {
                ServerState::Leader if deposed => Role::Follower,
                ServerState::Leader => Role::Leader,
                ServerState::Candidate => Role::Candidate,
                ServerState::Follower => Role::Follower,
                ServerState::Learner | ServerState::Shutdown => Role::Learner,
            },
            term: metrics.current_term,
            leader,
            last_log: metrics.last_log_index.unwrap_or_default(),
            committed: index(metrics.local_committed.as_ref()),
            applied: node.worker.applied(),
            snapshot: index(metrics.snapshot.as_ref()),
            purged: index(metrics.purged.as_ref()),
            component: Some(node.worker.component().id()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            client_address: member.client_address,
            peer_address: member.peer_address,
            engine: node.local.engine.clone(),
            fatal_error,
            divergences,
            divergence,
            clock: Some(self.time.status()),
            links: node.peers.status(),
            alarms: self.alarms(),
        }
    }

    /// Returns the status of the cluster, and queries all members in parallel.
    pub(super) async fn of_cluster(&self) -> ClusterStatus {
        let own = self.of_node();
        let members = self.node.members();
        let others = members.iter().filter(|(node_id, _)| *node_id != own.id);
        let requests = others.map(|(node_id, member)| async move {
            match timeout(ASK_TIMEOUT, peer_status::ask(&self.node.peers, *node_id, member)).await {
                Ok(Ok(status)) => status,
                _ => NodeStatus::unreachable(
                    *node_id,
                    member.client_address.clone(),
                    member.peer_address.clone(),
                ),
            }
        });
        let mut nodes = join_all(requests).await;
        nodes.push(own.clone());
        nodes.sort_by_key(|node| node.id);
        // A node without a leader, for example because its disk hangs, relies on the others' status.
        let leading = nodes.iter().filter(|node| node.role == Role::Leader);
        let leading = leading.max_by_key(|node| node.term).map(|node| node.id);
        let LimitsInForce { limits, index } = self.node.applied().limits;
        ClusterStatus {
            cluster_id: self.node.local.identity.cluster_id.clone(),
            leader: own.leader.or(leading),
            term: own.term,
            answered_by: own.id,
            nodes,
            limits: LimitsSet { index, limits },
        }
    }

    /// Returns the problems that need an operator's attention although the node works.
    fn alarms(&self) -> Vec<String> {
        let standby = self.node.worker.standby_problem();
        let standby = standby.map(|why| format!("standby instance: {why}"));
        let snapshot = self.building.failure();
        let snapshot =
            snapshot.map(|why| format!("no snapshot can be taken, so the log grows: {why}"));
        let in_force = self.node.applied().limits;
        let limits = in_force.difference(&self.configured);
        let restore = restore_headroom(self.building.restored_bytes(), &in_force.limits);
        let primary_bytes = self.node.worker.metrics().primary_memory_bytes.get() as u64;
        let growth = growth_headroom(primary_bytes, &in_force.limits);
        let headroom = restore.into_iter().chain(growth);
        standby.into_iter().chain(snapshot).chain(limits).chain(headroom).collect()
    }
}

/// Warns in time: a state that needs more memory to restore than the limit cannot be saved as a snapshot.
fn restore_headroom(restored_bytes: u64, limits: &ClusterLimits) -> Option<String> {
    let bytes_max = limits.state_call_memory_bytes_max() as u64;
    (restored_bytes > bytes_max / 4 * 3).then(|| {
        format!(
            "restoring the last snapshot took {restored_bytes} of the {bytes_max} bytes of memory that it may take (twice \
             memory_bytes_max): raise memory_bytes_max with `conclave cluster set-limits` before the state grows further, \
             because a state that cannot be restored cannot be saved"
        )
    })
}

/// Warns in time: calls that need more memory than the limit trap.
fn growth_headroom(primary_bytes: u64, limits: &ClusterLimits) -> Option<String> {
    let bytes_max = limits.memory_bytes_max as u64;
    (primary_bytes > bytes_max / 8 * 7).then(|| {
        format!(
            "the primary instance has taken {primary_bytes} of {bytes_max} bytes of memory, and calls that need more trap: \
             delete data, or raise memory_bytes_max with `conclave cluster set-limits`"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::{growth_headroom, restore_headroom};
    use conclave_types::limits::ClusterLimits;

    #[test]
    fn operators_are_warned_while_memory_is_left() {
        let limits = ClusterLimits { memory_bytes_max: 1 << 29, ..ClusterLimits::DEFAULT };
        assert_eq!(restore_headroom(0, &limits), None);
        assert_eq!(restore_headroom(3 << 28, &limits), None);
        assert!(restore_headroom((3 << 28) + 1, &limits).is_some());
        assert_eq!(growth_headroom(7 << 26, &limits), None);
        assert!(growth_headroom((7 << 26) + 1, &limits).is_some());
    }
}
