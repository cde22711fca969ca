//! The state that the parts of a replica share.
//!
//! [`Node`] is plain state: the handles of the layers below, and this node's view of the cluster.
//! Each part of the replica holds it, and it holds none of them.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use openraft::{Instant as _, async_runtime::WatchReceiver};
use tokio::{sync::watch, time::sleep};

use super::{
    Metrics,
    disk::DiskWatch,
    divergence::Divergence,
    host_state::HostState,
    network::{local::Local, peers::Peers},
    state_machine::Raft,
    supervise::Supervisor,
    timing::Timing,
};
use conclave_machine::Worker;
use conclave_storage::{
    LogStore,
    raft_types::{Member, TypeConfig},
};
use conclave_types::{
    NodeId,
    error::Error,
    status::{Health, Leader},
};

/// The interval at which the applied index is compared. The worker counts it without notifications,
/// because it changes with each entry, and only repairs and consistency checks wait for it.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// This node's handles of the layers below, and its view of the cluster.
pub(super) struct Node {
    pub(super) raft: Raft,
    pub(super) worker: Worker,
    pub(super) log: LogStore,
    pub(super) disk: DiskWatch,
    pub(super) local: Arc<Local>,
    pub(super) peers: Arc<Peers>,
    pub(super) divergence: Arc<Divergence>,
    /// The replicated state of the host. The state machine updates it.
    pub(super) applied: Arc<Mutex<HostState>>,
    pub(super) timing: Timing,
    /// Whether this node serves.
    pub(super) health: watch::Sender<Health>,
    pub(super) supervisor: Supervisor,
    pub(super) metrics: Arc<Metrics>,
}

impl Node {
    pub(super) fn id(&self) -> NodeId {
        self.local.identity.node_id
    }

    pub(super) fn applied(&self) -> MutexGuard<'_, HostState> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether this node leads and its disk is not hung.
    pub(super) fn is_leader(&self) -> bool {
        self.raft.is_leader() && !self.disk.is_hung()
    }

    /// Returns whether this node leads and other nodes can rely on it: its disk and a majority respond.
    pub(super) fn leads(&self) -> bool {
        if self.disk.is_hung() {
            return false;
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.state.is_leader() && self.has_quorum(&metrics)
    }

    /// Returns whether a majority has responded to this leader within an election timeout. After
    /// that time the others may have elected another leader.
    pub(super) fn has_quorum(&self, metrics: &openraft::RaftMetrics<TypeConfig>) -> bool {
        if metrics.membership_config.voter_ids().count() == 1 {
            return true;
        }
        let contact = metrics.last_quorum_acked.map(|at| at.elapsed());
        contact.is_some_and(|age| age <= self.timing.election_max)
    }

    /// Returns the leader that openraft knows.
    pub(super) fn leader(&self) -> Option<(NodeId, Member)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let node_id = metrics.current_leader?;
        let member = metrics.membership_config.get_node(&node_id)?;
        Some((node_id, member.clone()))
    }

    /// Returns the leader for clients; `None` on a leader without a majority or with a hung disk.
    pub(super) fn leader_for_clients(&self) -> Option<Leader> {
        let (node_id, member) = self.leader()?;
        if node_id == self.id() && !self.leads() {
            return None;
        }
        Some(Leader { node_id, client_address: Arc::from(member.client_address) })
    }

    /// Returns all members, with their addresses.
    pub(super) fn members(&self) -> Vec<(NodeId, Member)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let nodes = metrics.membership_config.nodes();
        nodes.map(|(node_id, member)| (*node_id, member.clone())).collect()
    }

    /// Returns the voters, with their addresses.
    pub(super) fn voters(&self) -> Vec<(NodeId, Member)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let voters = membership.voter_ids().filter_map(|node_id| {
            membership.get_node(&node_id).map(|member| (node_id, member.clone()))
        });
        voters.collect()
    }

    /// Returns the voters without this node.
    pub(super) fn other_voters(&self) -> Vec<(NodeId, Member)> {
        let mut voters = self.voters();
        voters.retain(|(node_id, _)| *node_id != self.id());
        voters
    }

    /// Returns the reason why this node rejects requests, if any: the state machine stopped,
    /// storage failed, or the replica has diverged.
    pub(super) fn fatal_error(&self) -> Option<String> {
        let stored = || self.log.poisoned().map(|why| format!("the store failed: {why}"));
        let fatal_error =
            self.worker.fatal_error().or_else(stored).or_else(|| self.disk.fatal_error());
        fatal_error.or_else(|| self.local.lost()).or_else(|| self.divergence.why())
    }

    /// Rejects a new command once Raft, the store or the state machine has stopped.
    pub(super) fn check_running(&self) -> Result<(), Error> {
        if let Some(why) = self.fatal_error() {
            return Err(Error::stopped(why));
        }
        let state = self.raft.metrics().borrow_watched().running_state.clone();
        state.map_err(|fatal| self.stopped(fatal))
    }

    /// Returns an error that names the leader unless this node is the leader.
    pub(super) fn check_leader(&self) -> Result<(), Error> {
        self.check_running()?;
        match self.leader_for_clients() {
            Some(leader) if leader.node_id != self.id() => Err(Error::not_leader(Some(leader))),
            Some(_) => Ok(()),
            None => Err(Error::no_quorum()),
        }
    }

    /// Returns the error of a call that had no effect because Raft has stopped.
    pub(super) fn stopped(&self, fatal: openraft::error::Fatal<TypeConfig>) -> Error {
        match fatal {
            openraft::error::Fatal::Stopped => Error::shutting_down(),
            fatal => Error::fatal(format!(
                "this node has stopped applying entries: {}; see its log",
                self.worker.fatal_error().unwrap_or_else(|| fatal.to_string())
            )),
        }
    }

    /// Waits until the primary has applied this index. Returns an error if the worker stops first.
    pub(super) async fn reaches(&self, index: u64) -> Result<(), String> {
        while self.worker.applied() < index {
            if let Some(fatal_error) = self.worker.fatal_error() {
                return Err(fatal_error);
            }
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }
}
