//! The leader's proposals of limits. See [`super::limits`] for the contract.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use openraft::async_runtime::WatchReceiver;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use super::{limits::LimitsInForce, node::Node, propose::Proposer, settings::Limits};
use conclave_types::{
    CommandKind, Receipt,
    error::Error,
    limits::{ClusterLimits, LimitsChange},
    status::LimitsSet,
};

/// Puts limits into the log as the leader.
pub(super) struct LimitsProposer {
    node: Arc<Node>,
    proposer: Arc<Proposer>,
    configured: Limits,
    /// Set once the log has limits, or once this node has no limits to put there.
    settled: AtomicBool,
    /// Held while limits are changed: one change at a time.
    turn: Arc<Mutex<()>>,
}

impl LimitsProposer {
    pub(super) fn new(node: Arc<Node>, proposer: Arc<Proposer>, configured: Limits) -> Self {
        let (settled, turn) = (AtomicBool::new(false), Arc::default());
        Self { node, proposer, configured, settled, turn }
    }

    /// Changes limits as the leader. The change takes effect after the entry at the returned index.
    pub(super) async fn set(
        &self,
        change: LimitsChange,
        deadline: Instant,
    ) -> Result<LimitsSet, Error> {
        self.node.check_leader()?;
        let turn = timeout_at(deadline, self.turn.clone().lock_owned());
        let turn = turn.await.map_err(|_| Error::deadline())?;
        self.applied_own_term(deadline).await?;
        let LimitsInForce { limits: before, index } = self.node.applied().limits;
        let limits = before.changed(&change, self.configured.request_bytes_max);
        let limits = limits.map_err(|error| Error::caused_by(Error::invalid, error))?;
        if limits == before {
            return Ok(LimitsSet { index, limits });
        }
        let metrics = self.node.worker.metrics();
        let held =
            metrics.primary_memory_bytes.get().max(metrics.standby_memory_bytes.get()) as u64;
        if limits.memory_bytes_max < before.memory_bytes_max
            && limits.memory_bytes_max as u64 <= held
        {
            return Err(Error::refused(format!(
                "memory_bytes_max = {}: an instance on this node already holds {held} bytes, so commands would trap and \
                 no snapshot could be restored: choose a larger limit",
                limits.memory_bytes_max
            )));
        }
        let kind = CommandKind::SetLimits(limits);
        let applied = self.proposer.propose_holding(kind, deadline, turn).await?;
        Ok(LimitsSet { index: applied.index, limits })
    }

    /// Puts the limits of this node's configuration into the log if the cluster has not
    /// applied a command yet. A leader calls this before each command; after the first call
    /// it costs one atomic load.
    pub(super) async fn settle(&self, deadline: Instant) -> Result<(), Error> {
        if self.settled.load(Ordering::Relaxed) {
            return Ok(());
        }
        let turn = timeout_at(deadline, self.turn.clone().lock_owned());
        let turn = turn.await.map_err(|_| Error::deadline())?;
        let configured = self.configured.configured();
        if configured != ClusterLimits::DEFAULT {
            self.applied_own_term(deadline).await?;
            if self.node.applied().limits.index == 0 {
                let kind = CommandKind::SetLimits(configured);
                self.proposer.propose_holding(kind, deadline, turn).await?;
            }
        }
        self.settled.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Proposes a command, after the limits of this node's configuration if the cluster has none.
    pub(super) async fn propose_settled(
        &self,
        kind: CommandKind,
        deadline: Instant,
    ) -> Result<Receipt, Error> {
        self.settle(deadline).await?;
        self.proposer.propose(kind, deadline).await
    }

    /// Waits until this leader has applied an entry of its own term, and therefore all entries of
    /// earlier leaders (Raft thesis, section 6.4).
    async fn applied_own_term(&self, deadline: Instant) -> Result<(), Error> {
        let mut metrics = self.node.raft.metrics();
        loop {
            self.node.check_leader()?;
            let applied = {
                let metrics = metrics.borrow_watched();
                let last = self.node.applied().meta.last_log_id;
                last.is_some_and(|last| last.leader_id.term == metrics.current_term)
            };
            if applied {
                return Ok(());
            }
            let changed = timeout_at(deadline, metrics.changed());
            if changed.await.map_err(|_| Error::deadline())?.is_err() {
                return Err(Error::shutting_down());
            }
        }
    }
}
