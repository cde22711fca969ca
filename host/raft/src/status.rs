//! The status of this node and of its cluster.

use std::time::Duration;

use futures::future::join_all;
use openraft::{ServerState, async_runtime::WatchReceiver};
use tokio::time::timeout;

use super::{Replica, limits::LimitsInForce, network::peer::ConnectionClass};
use conclave_proto::{
    raft as wire,
    raft::{NodeStatusRequest, NodeStatusResponse},
};
use conclave_storage::raft_types::{LogId, Member};
use conclave_types::{
    ComponentId, NodeId,
    error::Error,
    limits::ClusterLimits,
    status::{ClockStatus, ClusterStatus, LimitsSet, NodeStatus, PeerLink, Role},
};

/// The time after which a member that has not responded counts as unreachable.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

fn index(log_id: Option<&LogId>) -> u64 {
    log_id.map_or(0, |log_id| log_id.index)
}

impl Replica {
    /// Returns the status of this node.
    pub fn node_status(&self) -> NodeStatus {
        let inner = &self.0;
        let (leads, fatal_error) = (inner.leads(), inner.fatal_error().unwrap_or_default());
        let metrics = inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let member = metrics.membership_config.get_node(&inner.node_id()).cloned();
        let member = member.unwrap_or_default();
        let (divergences, divergence) = inner.divergence.past();
        // A leader without its majority or its disk leads no node, even if openraft has not noticed.
        let deposed = metrics.state.is_leader() && !leads;
        let leader = metrics.current_leader.filter(|_| !deposed);
        NodeStatus {
            id: inner.node_id(),
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
            applied: inner.worker.applied(),
            snapshot: index(metrics.snapshot.as_ref()),
            purged: index(metrics.purged.as_ref()),
            component: Some(inner.worker.component().id()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            client_address: member.client_address,
            peer_address: member.peer_address,
            engine: inner.local.engine.clone(),
            fatal_error,
            divergences,
            divergence,
            clock: Some(inner.time.status()),
            links: inner.peers.status(),
            alarms: inner.alarms(),
        }
    }

    /// Returns the status of the cluster, and queries all members in parallel.
    pub async fn cluster_status(&self) -> ClusterStatus {
        let own = self.node_status();
        let members: Vec<(NodeId, Member)> = {
            let metrics = self.0.raft.metrics();
            let metrics = metrics.borrow_watched();
            let nodes = metrics.membership_config.nodes();
            nodes.map(|(node_id, member)| (*node_id, member.clone())).collect()
        };
        let others = members.iter().filter(|(node_id, _)| *node_id != own.id);
        let asked = others.map(|(node_id, member)| async move {
            match timeout(ASK_TIMEOUT, self.ask(*node_id, member)).await {
                Ok(Ok(status)) => status,
                _ => NodeStatus::unreachable(
                    *node_id,
                    member.client_address.clone(),
                    member.peer_address.clone(),
                ),
            }
        });
        let mut nodes = join_all(asked).await;
        nodes.push(own.clone());
        nodes.sort_by_key(|node| node.id);
        // A node without a leader, for example because its disk hangs, relies on the others' status.
        let leading = nodes.iter().filter(|node| node.role == Role::Leader);
        let leading = leading.max_by_key(|node| node.term).map(|node| node.id);
        let LimitsInForce { limits, index } = self.limits_in_force();
        ClusterStatus {
            cluster_id: self.0.local.identity.cluster_id.clone(),
            leader: own.leader.or(leading),
            term: own.term,
            answered_by: own.id,
            nodes,
            limits: LimitsSet { index, limits },
        }
    }

    pub(super) async fn ask(&self, node_id: NodeId, member: &Member) -> Result<NodeStatus, Error> {
        let peer = self.0.peers.peer(node_id, member);
        let client = peer.client(ConnectionClass::Control).await;
        let mut client = client.map_err(|error| Error::fatal(error.to_string()))?;
        let answer = client.node_status(NodeStatusRequest {}).await;
        let answer = answer.map_err(|status| {
            Error::fatal(peer.failed(ConnectionClass::Control, status).to_string())
        })?;
        Ok(from_wire(answer.into_inner(), member))
    }

    /// Returns the reason why the last snapshot failed, if it did.
    pub fn snapshot_failure(&self) -> Option<String> {
        self.0.building.failure()
    }

    /// Returns the linear memory used to restore the last snapshot, in bytes.
    pub fn snapshot_restored_bytes(&self) -> u64 {
        self.0.building.restored_bytes()
    }

    /// Takes a snapshot and waits until it is on disk. Returns the index that it covers.
    pub async fn snapshot_now(&self) -> Result<u64, Error> {
        const POLL_INTERVAL: Duration = Duration::from_millis(50);
        if let Some(why) = self.0.fatal_error() {
            return Err(Error::stopped(why));
        }
        if self.0.divergence.holds_snapshots() {
            return Err(Error::busy(
                "the replicas disagree and no majority decides, so no snapshot is taken: start the voters that are \
                 down, or see this node's log",
            ));
        }
        let mut metrics = self.0.raft.metrics();
        let target = index(metrics.borrow_watched().last_applied.as_ref());
        let snapshot = index(metrics.borrow_watched().snapshot.as_ref());
        if snapshot >= target {
            return Ok(snapshot);
        }
        loop {
            let ready = self.0.building.ready.notified();
            // Repeated, because a snapshot that was already running may be of an older state.
            if self.0.building.wants(target) {
                self.0.raft.trigger().snapshot().await.map_err(|fatal| self.0.stopped(fatal))?;
            }
            let snapshot = index(metrics.borrow_watched().snapshot.as_ref());
            if snapshot >= target {
                return Ok(snapshot);
            }
            tokio::select! {
                () = ready => if let Some(failure) = self.0.building.failure() {
                    return Err(Error::fatal(format!("no snapshot was taken: {failure}")));
                },
                _ = timeout(POLL_INTERVAL, metrics.changed()) => {}
            }
        }
    }
}

fn from_wire(status: NodeStatusResponse, member: &Member) -> NodeStatus {
    NodeStatus {
        id: status.node_id,
        role: Role::from_name(&status.role).unwrap_or(Role::Unreachable),
        term: status.term,
        leader: (status.leader_node_id != 0).then_some(status.leader_node_id),
        last_log: status.last_log_index,
        committed: status.committed_index,
        applied: status.applied_index,
        snapshot: status.snapshot_index,
        purged: status.purged_index,
        component: status.component_id.as_ref().try_into().ok().map(ComponentId),
        version: status.version,
        client_address: member.client_address.clone(),
        peer_address: member.peer_address.clone(),
        engine: status.engine_fingerprint,
        fatal_error: status.fatal_error,
        divergences: status.divergences,
        divergence: status.divergence,
        clock: status.clock.map(clock_from_wire),
        links: status.links.into_iter().map(link_from_wire).collect(),
        alarms: status.alarms,
    }
}

impl super::Inner {
    /// Returns the problems that need an operator's attention although the node works.
    fn alarms(&self) -> Vec<String> {
        let standby = self.worker.standby_problem();
        let standby = standby.map(|why| format!("standby instance: {why}"));
        let snapshot = self.building.failure();
        let snapshot =
            snapshot.map(|why| format!("no snapshot can be taken, so the log grows: {why}"));
        let in_force = self.applied().limits;
        let limits = in_force.difference(&self.limits.cluster);
        let restore = restore_headroom(self.building.restored_bytes(), &in_force.limits);
        let growth = growth_headroom(self.worker.stats().primary_memory_bytes, &in_force.limits);
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

fn clock_from_wire(clock: wire::ClockStatus) -> ClockStatus {
    let wire::ClockStatus { offset_ms, log_time_ms, log_offset_ms, alarm } = clock;
    ClockStatus { offset_ms, log_time_ms, log_offset_ms, alarm }
}

/// Converts a node's status to its wire form.
pub(super) fn to_wire(status: &NodeStatus) -> NodeStatusResponse {
    NodeStatusResponse {
        node_id: status.id,
        role: status.role.name().to_owned(),
        term: status.term,
        leader_node_id: status.leader.unwrap_or_default(),
        last_log_index: status.last_log,
        committed_index: status.committed,
        applied_index: status.applied,
        snapshot_index: status.snapshot,
        purged_index: status.purged,
        component_id: status
            .component
            .map(|component| component.0.to_vec())
            .unwrap_or_default()
            .into(),
        engine_fingerprint: status.engine.clone(),
        version: status.version.clone(),
        fatal_error: status.fatal_error.clone(),
        divergences: status.divergences,
        divergence: status.divergence.clone(),
        clock: status.clock.clone().map(|clock| wire::ClockStatus {
            offset_ms: clock.offset_ms,
            log_time_ms: clock.log_time_ms,
            log_offset_ms: clock.log_offset_ms,
            alarm: clock.alarm,
        }),
        links: status.links.iter().map(link_to_wire).collect(),
        alarms: status.alarms.clone(),
    }
}

fn link_from_wire(link: wire::PeerLink) -> PeerLink {
    PeerLink {
        node_id: link.node_id,
        connected: link.connected,
        round_trip: Duration::from_micros(link.round_trip_us),
        problem: link.problem,
    }
}

fn link_to_wire(link: &PeerLink) -> wire::PeerLink {
    wire::PeerLink {
        node_id: link.node_id,
        connected: link.connected,
        round_trip_us: link.round_trip.as_micros() as u64,
        problem: link.problem.clone(),
    }
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
