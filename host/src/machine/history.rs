//! Where an instance can be rebuilt from.

use bytes::Bytes;

use super::error::HistoryError;
use crate::types::{CommandKind, Trap};

/// One entry of the log that the machine sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its log index.
    pub index: u64,
    /// Milliseconds since the Unix epoch, as the proposing leader stamped them. The worker makes them
    /// monotone.
    pub time_ms: u64,
    /// What is to be done.
    pub command: CommandKind,
}

/// A machine's state, as its snapshot holds it.
pub struct SavedState {
    /// The log index after which it was taken.
    pub index: u64,
    /// The machine's time then, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The format of its bytes.
    pub state_version: u32,
    /// Its bytes, in pieces of any size.
    pub chunks: Box<dyn Iterator<Item = Result<Bytes, HistoryError>> + Send>,
}

impl std::fmt::Debug for SavedState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SavedState {{ index: {}, time_ms: {}, .. }}", self.index, self.time_ms)
    }
}

/// The newest snapshot and the log after it.
///
/// # Contract
/// 1. Every entry that was handed to [`Worker::apply`](super::Worker::apply) can be read back until a
///    snapshot at or above it can be.
/// 2. Called from the worker's threads; may block for as long as a disk takes.
/// 3. What `record_trap` was told, `trapped` gives back at once, and after a restart if it can. A
///    record that was lost costs time only: the entry traps again.
pub trait History: Send + Sync + 'static {
    /// The newest whole snapshot. `None`: the machine began empty, before index 1.
    ///
    /// # Errors
    /// The snapshot cannot be read.
    fn snapshot(&self) -> Result<Option<SavedState>, HistoryError>;

    /// The machine's entries with `from <= index <= to_inclusive`, in order: all of them, or a first
    /// part. Empty: there are none.
    ///
    /// # Errors
    /// [`HistoryError::Gap`] if entries of the range have been purged: start over with the newer
    /// snapshot.
    fn entries(&self, from: u64, to_inclusive: u64) -> Result<Vec<Entry>, HistoryError>;

    /// Remembers that an entry trapped, so that replays answer it without running it.
    fn record_trap(&self, index: u64, trap: &Trap);

    /// The trap of an entry, if it is known to have trapped. Asked once for every entry: keep it
    /// cheap.
    fn trapped(&self, index: u64) -> Option<Trap>;
}
