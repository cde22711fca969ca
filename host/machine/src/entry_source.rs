//! Where an instance can be rebuilt from.

use bytes::Bytes;

use super::{component::Component, error::EntrySourceError};
use conclave_types::{Call, Digest, Trap, limits::ClusterLimits};

/// One entry of the log that the machine sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its log index.
    pub index: u64,
    /// Milliseconds since the Unix epoch, as the proposing leader stamped them. The worker makes them
    /// monotone.
    pub time_ms: u64,
    /// What is to be done.
    pub work: Work,
}

/// What an entry of the log has for the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// A call of the machine's `apply`.
    Call(Call),
    /// A call of the machine's `tick`: the time that it asked to be woken at has come.
    Tick,
    /// From the next entry on another component goes on with the state. Its outcome is a reply without a
    /// response, or a failure with `FailedPrecondition` that says why the old component goes on.
    Activate(Component),
    /// From the next entry on other limits hold. Its outcome is a reply with the limits.
    SetLimits(ClusterLimits),
}

impl Work {
    /// What it brings along, in bytes. A component is not counted: it is shared with whoever resolved it.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Call(call) => call.bytes(),
            Self::Tick | Self::Activate(_) | Self::SetLimits(_) => 0,
        }
    }
}

/// A machine's state, as its snapshot holds it.
pub struct SavedState {
    /// The component whose state it is, which also restores it.
    pub component: Component,
    /// The log index after which it was taken.
    pub index: u64,
    /// The machine's time then, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The limits then.
    pub limits: ClusterLimits,
    /// The format of its bytes.
    pub state_version: u32,
    /// The digest then. `None`: it was saved by a version that kept none, or one of another algorithm.
    pub digest: Option<Digest>,
    /// Its bytes, in pieces of any size.
    pub chunks: Box<dyn Iterator<Item = Result<Bytes, EntrySourceError>> + Send>,
}

/// What an instance left behind that trapped. For people who look for the reason: no outcome holds any of it,
/// since it names addresses, and what the machine said may be secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrapReport {
    /// The guest's calls, the innermost first: a line a function, and one below it for its place in the source,
    /// as far as the component has names and debugging information. Empty for a trap outside of the guest.
    pub backtrace: Vec<String>,
    /// The last error that the machine wrote to its log in this call: what a machine of Rust panics with.
    pub last_words: Option<String>,
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

/// The newest snapshot and the log after it.
///
/// # Contract
/// 1. Every entry that was handed to [`Worker::apply`](super::Worker::apply) can be read back until a
///    snapshot at or above it can be.
/// 2. Called from the worker's threads; may block for as long as a disk takes.
/// 3. What `record_trap` was told, `trapped` gives back at once, and after a restart if it can. A
///    record that was lost costs time only: the entry traps again, and an activation fails again.
/// 4. Every component comes from the worker's engine.
pub trait EntrySource: Send + Sync + 'static {
    /// The newest whole snapshot. `None`: the machine that the worker was started with began empty,
    /// before index 1.
    ///
    /// # Errors
    /// The snapshot cannot be read.
    fn snapshot(&self) -> Result<Option<SavedState>, EntrySourceError>;

    /// The machine's entries with `from <= index <= to_inclusive`, in order: all of them, or a first
    /// part. Empty: there are none.
    ///
    /// # Errors
    /// [`EntrySourceError::Gap`] if entries of the range have been purged: start over with the newer
    /// snapshot.
    fn entries(&self, from: u64, to_inclusive: u64) -> Result<Vec<Entry>, EntrySourceError>;

    /// Remembers that an entry trapped, or that an activation failed, so that replays answer it
    /// without running it.
    fn record_trap(&self, index: u64, trap: &Trap);

    /// The trap of an entry, if it is known to have trapped, or to be an activation that failed. Asked
    /// once for every entry: keep it cheap.
    fn trapped(&self, index: u64) -> Option<Trap>;

    /// What the instance left behind that trapped at an entry, told before the entry's outcome. A node
    /// has no use for it.
    fn record_trap_report(&self, index: u64, trap_report: TrapReport) {
        let _ = (index, trap_report);
    }
}
