//! The source from which an instance can be rebuilt: the newest snapshot and the entries after it.

use bytes::Bytes;

use super::{component::Component, error::EntrySourceError, trap::TrapReport};
use conclave_types::{Call, Digest, Trap, limits::ClusterLimits};

/// One entry of the log that the state machine sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The log index.
    pub index: u64,
    /// Milliseconds since the Unix epoch, as stamped by the proposing leader. The worker makes
    /// them monotonic.
    pub time_ms: u64,
    /// The operation that the entry requests.
    pub work: Work,
}

/// The operation that an entry requests of the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// A call of the state machine's `apply`.
    Call(Call),
    /// A call of the state machine's `tick`: the wake-up time that it requested has come.
    Tick,
    /// From the next entry on, another component continues with the state. The outcome is a reply
    /// without a response, or a failure with `FailedPrecondition` and the reason why the old
    /// component continues.
    Activate(Component),
    /// From the next entry on, other limits apply. The outcome is a reply with the limits.
    SetLimits(ClusterLimits),
}

impl Work {
    /// Returns the size of the operation in bytes. A component is not counted, because it is shared.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Call(call) => call.bytes(),
            Self::Tick | Self::Activate(_) | Self::SetLimits(_) => 0,
        }
    }
}

/// A state machine's state, as stored in a snapshot.
pub struct SavedState {
    /// The component to which the state belongs, and which restores it.
    pub component: Component,
    /// The log index after which the snapshot was taken.
    pub index: u64,
    /// The state machine's time at that index, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The cluster's limits at that index.
    pub limits: ClusterLimits,
    /// The version of the format of the state's bytes.
    pub state_version: u32,
    /// The digest at that index. `None` if the snapshot was saved by a version that kept no digest
    /// or used another algorithm.
    pub digest: Option<Digest>,
    /// The state's bytes, in chunks of any size.
    pub chunks: Box<dyn Iterator<Item = Result<Bytes, EntrySourceError>> + Send>,
}

impl std::fmt::Debug for SavedState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { component, index, time_ms, .. } = self;
        write!(
            f,
            "SavedState {{ component: {component:?}, index: {index}, time_ms: {time_ms}, .. }}"
        )
    }
}

/// Access to the newest snapshot and to the log after it.
///
/// # Contract
/// 1. Every entry that was passed to [`Worker::apply`](super::Worker::apply) can be read until a
///    snapshot at or above its index can be read.
/// 2. The methods are called from the worker's threads, and may block for the duration of disk accesses.
/// 3. A trap passed to `record_trap` is returned by `trapped` immediately, and after a restart if
///    possible. A lost record costs only time: the entry traps again, and an activation fails again.
/// 4. Every component comes from the worker's engine.
pub trait EntrySource: Send + Sync + 'static {
    /// Returns the newest complete snapshot. `None` means that the component with which the worker
    /// was started began with the initial state, before index 1.
    ///
    /// # Errors
    /// Fails if the snapshot cannot be read.
    fn snapshot(&self) -> Result<Option<SavedState>, EntrySourceError>;

    /// Returns the state machine's entries with `from <= index <= to_inclusive`, in order: all of
    /// them, or a first part. An empty list means that there are none.
    ///
    /// # Errors
    /// Returns [`EntrySourceError::Gap`] if entries of the range have been purged. The caller must
    /// start again from the newer snapshot.
    fn entries(&self, from: u64, to_inclusive: u64) -> Result<Vec<Entry>, EntrySourceError>;

    /// Records that an entry trapped, or that an activation failed. Replays then return the
    /// recorded trap without running the entry.
    fn record_trap(&self, index: u64, trap: &Trap);

    /// Returns the recorded trap of an entry that trapped, or of an activation that failed. Called
    /// once per entry, so it must be cheap.
    fn trapped(&self, index: u64) -> Option<Trap>;

    /// Receives the trap report of an entry, before the entry's outcome. A node ignores it.
    fn record_trap_report(&self, index: u64, trap_report: TrapReport) {
        let _ = (index, trap_report);
    }
}
