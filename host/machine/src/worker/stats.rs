//! The statistics of a worker, for metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use conclave_types::{Outcome, TrapKind};

/// The counters, updated by the threads.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) entries: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) traps: [AtomicU64; TrapKind::ALL.len()],
    pub(super) traps_replayed: AtomicU64,
    pub(super) activations: AtomicU64,
    pub(super) activations_failed: AtomicU64,
    pub(super) fuel: AtomicU64,
    pub(super) queries: AtomicU64,
    pub(super) query_traps: AtomicU64,
    pub(super) standby_builds: AtomicU64,
    pub(super) rotations: AtomicU64,
    pub(super) promotions: AtomicU64,
    pub(super) snapshots: AtomicU64,
    pub(super) restores: AtomicU64,
    pub(super) primary_memory_bytes: AtomicU64,
    pub(super) standby_memory_bytes: AtomicU64,
    pub(super) standby_applied: AtomicU64,
    pub(super) standby_queue_bytes: AtomicU64,
}

/// The statistics of a worker: counters since its start, and current values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// The number of entries that the primary has applied, with any outcome.
    pub entries: u64,
    /// The number of these entries that the state machine answered with a failure.
    pub failures: u64,
    /// The number of these entries that trapped, in the order of [`TrapKind::ALL`].
    pub traps: [u64; TrapKind::ALL.len()],
    /// The number of traps that the entry source had recorded, and which were not run again.
    pub traps_replayed: u64,
    /// The number of these entries that activated a component.
    pub activations: u64,
    /// The number of entries whose component was not activated. Counted as failures too.
    pub activations_failed: u64,
    /// The fuel used by the primary's calls.
    pub fuel: u64,
    /// The number of queries answered, with any result.
    pub queries: u64,
    /// The number of these queries that trapped.
    pub query_traps: u64,
    /// The number of standbys built from the entry source.
    pub standby_builds: u64,
    /// The number of standbys replaced by an instance that was restored from a snapshot.
    pub rotations: u64,
    /// The number of standbys promoted to primary.
    pub promotions: u64,
    /// The number of snapshots begun.
    pub snapshots: u64,
    /// The number of states restored.
    pub restores: u64,
    /// The linear memory of the primary, in bytes.
    pub primary_memory_bytes: u64,
    /// The linear memory of the standby, in bytes.
    pub standby_memory_bytes: u64,
    /// The log index that the primary has applied.
    pub applied: u64,
    /// The log index that the standby has applied.
    pub standby_applied: u64,
    /// The size in bytes of the entries that wait for the standby.
    pub standby_queue_bytes: u64,
}

impl Counters {
    /// Counts an entry.
    pub(super) fn outcome(&self, outcome: &Outcome) {
        self.entries.fetch_add(1, Relaxed);
        match outcome {
            Outcome::Reply(_) => {}
            Outcome::Failure(_) => _ = self.failures.fetch_add(1, Relaxed),
            Outcome::Trap(trap) => {
                let kinds = TrapKind::ALL.iter().zip(&self.traps);
                kinds
                    .filter(|(kind, _)| **kind == trap.kind)
                    .for_each(|(_, count)| _ = count.fetch_add(1, Relaxed));
            }
        }
    }

    pub(super) fn read(&self, applied: u64) -> Stats {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        Stats {
            entries: get(&self.entries),
            failures: get(&self.failures),
            traps: std::array::from_fn(|kind| get(&self.traps[kind])),
            traps_replayed: get(&self.traps_replayed),
            activations: get(&self.activations),
            activations_failed: get(&self.activations_failed),
            fuel: get(&self.fuel),
            queries: get(&self.queries),
            query_traps: get(&self.query_traps),
            standby_builds: get(&self.standby_builds),
            rotations: get(&self.rotations),
            promotions: get(&self.promotions),
            snapshots: get(&self.snapshots),
            restores: get(&self.restores),
            primary_memory_bytes: get(&self.primary_memory_bytes),
            standby_memory_bytes: get(&self.standby_memory_bytes),
            applied,
            standby_applied: get(&self.standby_applied),
            standby_queue_bytes: get(&self.standby_queue_bytes),
        }
    }
}
