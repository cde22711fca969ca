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

use conclave_proto::{
    convert::{Malformed, cluster_limits_from_wire, cluster_limits_to_wire},
    raft::SnapshotHeader,
};
use conclave_types::limits::{ClusterLimits, LimitsChange};

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
