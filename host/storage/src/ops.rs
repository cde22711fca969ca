//! The operations that the storage thread carries out, and the callers that wait for them.

use std::io;

use openraft::storage::IOFlushed;
use tokio::sync::oneshot;

use crate::raft_types::{Entry, LogId, TypeConfig, Vote};

/// An operation in the storage thread's queue.
pub(super) enum Op {
    /// Writes entries that are already in memory.
    Append { entries: Vec<Entry>, bytes: usize, epoch: u64, flushed: IOFlushed<TypeConfig> },
    /// Writes a vote.
    Vote(Vote, oneshot::Sender<io::Result<()>>),
    /// Removes the entries after this index, or all entries if there is none.
    Truncate(Option<u64>),
    /// Removes the entries up to and including this entry. No caller waits for it, but later
    /// entries may depend on it.
    Purge(LogId),
    /// Reports new lazy values to a waiting thread.
    Wake,
    /// Writes and syncs the lazy values.
    Sync,
    /// Writes the remaining data and ends the thread.
    Shutdown,
}

impl Op {
    /// The number of entries to append.
    pub(super) fn entries(&self) -> usize {
        if let Self::Append { entries, .. } = self { entries.len() } else { 0 }
    }
}

/// A caller that waits for a batch.
pub(super) enum Waiting {
    Append { bytes: usize, epoch: u64, to: Option<u64>, flushed: IOFlushed<TypeConfig> },
    Vote(Vote, oneshot::Sender<io::Result<()>>),
}

/// An operation without the callers that wait for it.
pub(super) enum Work {
    Append(Vec<Entry>),
    Vote(Vote),
    Truncate(Option<u64>),
    Purge(LogId),
}

impl Waiting {
    /// Returns the waiting caller of an operation that is not carried out, if any.
    pub(super) fn of(op: Op) -> Option<Self> {
        match op {
            Op::Append { bytes, epoch, flushed, .. } => {
                Some(Self::Append { bytes, epoch, to: None, flushed })
            }
            Op::Vote(vote, done) => Some(Self::Vote(vote, done)),
            Op::Truncate(_) | Op::Purge(_) | Op::Wake | Op::Sync | Op::Shutdown => None,
        }
    }
}
