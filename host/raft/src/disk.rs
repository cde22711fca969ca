//! Watches whether this node's disk completes its writes.
//!
//! A disk that hangs (a detached volume, a frozen file system, a lost NFS server) returns no error:
//! the storage thread waits in a system call. The node then learns of entries that the other nodes'
//! disks commit, but can neither apply them nor vote. So it must not lead, and it rejects calls
//! until the disk responds.

use std::time::Duration;

use conclave_storage::LogStore;

/// Detects a hung disk: a step of the storage thread, such as a sync, has taken longer than `limit`.
#[derive(Clone)]
pub struct DiskWatch {
    log: LogStore,
    limit: Duration,
}

impl DiskWatch {
    /// Watches the storage thread of this log.
    pub fn new(log: LogStore, limit: Duration) -> Self {
        Self { log, limit }
    }

    /// Returns the duration of the current write, if the disk counts as hung.
    pub fn hung_for(&self) -> Option<Duration> {
        let busy = self.log.busy_for();
        (busy >= self.limit).then_some(busy)
    }

    /// Returns whether the disk counts as hung.
    pub fn is_hung(&self) -> bool {
        self.hung_for().is_some()
    }

    /// Returns the reason why this node rejects calls, if the disk counts as hung.
    pub(super) fn fatal_error(&self) -> Option<String> {
        self.hung_for().map(|busy| {
            format!(
                "the disk has not completed a write for {:.1} s: this node serves again when the disk responds",
                busy.as_secs_f64()
            )
        })
    }
}
