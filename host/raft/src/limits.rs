//! The limits that affect outcomes: set through the log, once from the configuration
//! and then by operators.
//!
//! # Contract
//! 1. Every node applies an entry under the limits in force at its index, both the first time and
//!    in every replay. The limits are part of the state that the log determines
//!    ([`LimitsInForce`]), and of every snapshot.
//! 2. The first leader that receives a command puts the limits of its configuration into the
//!    log before that command, if they differ from the defaults. After the first command,
//!    configurations no longer matter: a node whose configuration differs reports that in
//!    its log and in its status.
//! 3. An entry contains all limits, so a replay needs no earlier entry. Changes are made one at a
//!    time, based on the limits that the leader has applied.

use std::sync::atomic::Ordering;

use openraft::async_runtime::WatchReceiver;
use tokio::time::{Instant, timeout_at};

use super::Replica;
use conclave_proto::{
    convert::{Malformed, cluster_limits_from_wire, cluster_limits_to_wire},
    raft::SnapshotHeader,
};
use conclave_types::{
    CommandKind,
    error::Error,
    limits::{ClusterLimits, LimitsChange},
    status::LimitsSet,
};

/// The limits in force after an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LimitsInForce {
    pub(super) limits: ClusterLimits,
    /// The entry that set the limits, or the first call, which made the defaults final. 0:
    /// neither has been applied.
    pub(super) index: u64,
}

impl Default for LimitsInForce {
    fn default() -> Self {
        Self { limits: ClusterLimits::DEFAULT, index: 0 }
    }
}

impl LimitsInForce {
    /// Records a call. From the first call on, only an operator changes the limits.
    pub(super) fn note_call(&mut self, index: u64) {
        if self.index == 0 {
            self.index = index;
        }
    }

    /// Reads the limits from the header of a snapshot.
    ///
    /// # Errors
    /// Fails if the limits are malformed.
    pub(super) fn read(header: &SnapshotHeader) -> Result<Self, Malformed> {
        let limits = header.limits.as_ref().map(cluster_limits_from_wire).transpose()?;
        let covered = header.last_log_id.as_ref().map_or(0, |log_id| log_id.index);
        Ok(match limits {
            Some(limits) => Self { limits, index: header.limits_index },
            // The snapshot was written by a version that had limits in the configuration only.
            None => Self { limits: ClusterLimits::DEFAULT, index: covered },
        })
    }

    /// Writes the limits into the header of a snapshot.
    pub(super) fn write(&self, header: &mut SnapshotHeader) {
        header.limits = Some(cluster_limits_to_wire(&self.limits));
        header.limits_index = self.index;
    }

    /// Returns a message that lists the configured limits that are not in force. `None`: all are in
    /// force, or the limits are not final yet.
    pub(super) fn difference(&self, configured: &LimitsChange) -> Option<String> {
        let differences = configured.differences(&self.limits);
        if self.index == 0 || differences.is_empty() {
            return None;
        }
        let differences = differences.iter().map(|(name, configured, in_force)| {
            format!("{name} is {configured} there and {in_force} in the cluster")
        });
        let differences = differences.collect::<Vec<_>>().join("; ");
        Some(format!(
            "limits in this node's configuration differ from the cluster's, which are in force: {differences}. Correct \
             the configuration, or change the cluster's limits with `conclave cluster set-limits`"
        ))
    }
}

impl Replica {
    /// Returns the limits in force as far as this node has applied the log, and the entry that set them.
    pub(super) fn limits_in_force(&self) -> LimitsInForce {
        self.0.applied().limits
    }

    /// Changes limits as the leader. The change takes effect after the entry at the returned index.
    pub async fn set_limits(
        &self,
        change: LimitsChange,
        deadline: Instant,
    ) -> Result<LimitsSet, Error> {
        self.check_leader()?;
        let turn = timeout_at(deadline, self.0.limits_turn.clone().lock_owned());
        let turn = turn.await.map_err(|_| Error::deadline())?;
        self.applied_own_term(deadline).await?;
        let LimitsInForce { limits: before, index } = self.limits_in_force();
        let limits = before.changed(&change, self.0.limits.request_bytes_max);
        let limits = limits.map_err(|error| Error::invalid(error.to_string()))?;
        if limits == before {
            return Ok(LimitsSet { index, limits });
        }
        let stats = self.0.worker.stats();
        let held = stats.primary_memory_bytes.max(stats.standby_memory_bytes);
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
        let applied = self.propose_holding(kind, deadline, turn).await?;
        Ok(LimitsSet { index: applied.index, limits })
    }

    /// Puts the limits of this node's configuration into the log if the cluster has not
    /// applied a command yet. A leader calls this before each command; after the first call
    /// it costs one atomic load.
    pub(super) async fn settle_limits(&self, deadline: Instant) -> Result<(), Error> {
        if self.0.limits_settled.load(Ordering::Relaxed) {
            return Ok(());
        }
        let turn = timeout_at(deadline, self.0.limits_turn.clone().lock_owned());
        let turn = turn.await.map_err(|_| Error::deadline())?;
        let configured = self.0.limits.configured();
        if configured != ClusterLimits::DEFAULT {
            self.applied_own_term(deadline).await?;
            if self.limits_in_force().index == 0 {
                let kind = CommandKind::SetLimits(configured);
                self.propose_holding(kind, deadline, turn).await?;
            }
        }
        self.0.limits_settled.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Waits until this leader has applied an entry of its own term, and therefore all entries of
    /// earlier leaders (Raft thesis, section 6.4).
    async fn applied_own_term(&self, deadline: Instant) -> Result<(), Error> {
        let mut metrics = self.0.raft.metrics();
        loop {
            self.check_leader()?;
            let applied = {
                let metrics = metrics.borrow_watched();
                let last = self.0.applied().meta.last_log_id;
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;
    use conclave_proto::raft::LogId;

    #[test]
    fn a_snapshot_of_an_older_version_has_the_limits_of_the_beginning() {
        let mut header = SnapshotHeader {
            last_log_id: Some(LogId { term: 2, index: 70 }),
            ..SnapshotHeader::default()
        };
        let read = LimitsInForce::read(&header).unwrap();
        assert_eq!(read, LimitsInForce { limits: ClusterLimits::DEFAULT, index: 70 });
        let change = LimitsChange { fuel_per_call: Some(5_000_000), ..LimitsChange::default() };
        let limits = ClusterLimits::DEFAULT.changed(&change, 1024).unwrap();
        let written = LimitsInForce { limits, index: 3 };
        written.write(&mut header);
        assert_eq!(LimitsInForce::read(&header).unwrap(), written);
    }

    #[test]
    fn the_first_call_settles_the_limits() {
        let mut limits = LimitsInForce::default();
        let other = LimitsChange { fuel_per_call: Some(5_000_000), ..LimitsChange::default() };
        assert_eq!(limits.difference(&other), None, "nothing is decided yet");
        limits.note_call(4);
        limits.note_call(5);
        assert_eq!(limits.index, 4);
        let says = limits.difference(&other).unwrap();
        assert!(says.contains("fuel_per_call is 5000000 there and 2000000000"), "{says}");
        assert!(!says.contains("fuel_per_query"), "{says}");
        assert_eq!(limits.difference(&LimitsChange::default()), None);
    }
}
