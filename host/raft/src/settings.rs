//! The replica's settings: initial members, limits and the snapshot policy.

use std::time::Duration;

use conclave_types::limits::{ClusterLimits, LimitsChange};

/// One initial member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The member's node id.
    pub node_id: u64,
    /// `host:port` where the other members reach it.
    pub peer_address: String,
    /// `host:port` where clients reach it.
    pub client_address: String,
}

/// The limits of requests and of the state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest request message. Default 4 MiB, at most 16 MiB.
    pub request_bytes_max: usize,
    /// The limits of the cluster that are given here, if any. A new cluster begins with them; afterwards they change
    /// through the log only.
    pub cluster: LimitsChange,
    /// Commands that a leader holds at once between proposal and answer. Default 8192.
    pub commands_in_flight_max: usize,
}

impl Limits {
    /// The limits that a new cluster begins with.
    pub fn configured(&self) -> ClusterLimits {
        // Validation has refused everything else.
        let changed = ClusterLimits::DEFAULT.changed(&self.cluster, self.request_bytes_max);
        changed.unwrap_or(ClusterLimits::DEFAULT)
    }
}

/// When a snapshot is taken, after which the log before it is purged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotPolicy {
    /// After so many entries since the last. Default 50,000, at least 100.
    pub entries: u64,
    /// Or after so many bytes of entries. Default 64 MiB, at least 1 MiB.
    pub bytes: u64,
    /// Or after this time, if there are `interval_entries` new entries; absent: never. Default 1 h, at least 1 s.
    pub interval: Option<Duration>,
    /// New entries that a snapshot by time needs. Default 1,000.
    pub interval_entries: u64,
    /// Entries that stay in the log although a snapshot covers them, so that a follower which was
    /// away for a moment needs no snapshot. Default 5,000.
    pub keep_entries: u64,
    /// The most bytes of such entries. Default 64 MiB.
    pub keep_bytes: u64,
    /// The most bytes of log kept for a follower that is catching up, at least `keep_bytes`. When half of them
    /// are used the leader slows writers down. Default 1 GiB.
    pub catch_up_bytes: u64,
    /// A transfer of a snapshot ends when it makes no progress for so long. Default 30 s.
    pub stall: Duration,
}
