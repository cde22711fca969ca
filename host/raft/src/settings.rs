//! The replica's settings: initial members, limits and the snapshot policy.

use std::time::Duration;

use conclave_types::limits::{ClusterLimits, LimitsChange};

/// One initial member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The member's node id.
    pub node_id: u64,
    /// The `host:port` at which the other members reach it.
    pub peer_address: String,
    /// The `host:port` at which clients reach it.
    pub client_address: String,
}

/// The limits of requests and of the state machine. [`conclave_types::limits`] has the defaults and
/// the ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest request message.
    pub request_bytes_max: usize,
    /// The cluster limits in this configuration, if any. A new cluster starts with them. Later they
    /// change only through the log.
    pub cluster: LimitsChange,
    /// The maximum number of commands in flight on the leader.
    pub commands_in_flight_max: usize,
}

impl Limits {
    /// Returns the limits that a new cluster starts with.
    pub fn configured(&self) -> ClusterLimits {
        // Validation has rejected every other value.
        let changed = ClusterLimits::DEFAULT.changed(&self.cluster, self.request_bytes_max);
        changed.unwrap_or(ClusterLimits::DEFAULT)
    }
}

/// The conditions for a snapshot. The log before a snapshot is purged. [`conclave_types::limits`]
/// has the defaults and the ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotPolicy {
    /// The number of entries since the last snapshot.
    pub entries: u64,
    /// The number of bytes of entries since the last snapshot.
    pub bytes: u64,
    /// The time since the last snapshot, if there are `interval_entries` new entries; `None`
    /// disables it.
    pub interval: Option<Duration>,
    /// The number of new entries that a snapshot by time requires.
    pub interval_entries: u64,
    /// The number of entries that stay in the log although a snapshot covers them, so that a
    /// follower that was away for a short time needs no snapshot.
    pub keep_entries: u64,
    /// The maximum number of bytes of these entries.
    pub keep_bytes: u64,
    /// The maximum number of log bytes kept for a follower that is catching up, at least
    /// `keep_bytes`. When half of them are used, the leader slows writers down.
    pub catch_up_bytes: u64,
    /// The time without progress after which a snapshot transfer ends.
    pub stall: Duration,
}
