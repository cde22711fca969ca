//! Why a replay does not go on. Each message tells what would.

use std::io;

use conclave_machine::{FatalError, LoadError, QueryError};

/// See the page of this file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Before what the directory has.
    #[error(
        "index {wanted} is gone: the log before it was purged when the snapshot at index {snapshot} was taken. \
         What can be reached is {snapshot} to {last}, and entries can be shown from {} on", snapshot + 1
    )]
    Purged {
        /// What was asked for.
        wanted: u64,
        /// The newest snapshot's index.
        snapshot: u64,
        /// The last index that can be reached.
        last: u64,
    },
    /// Behind its end.
    #[error("index {wanted} is not there: the log ends at {last}")]
    Beyond {
        /// What was asked for.
        wanted: u64,
        /// The last entry's index.
        last: u64,
    },
    /// There, but perhaps never agreed on.
    #[error(
        "entry {wanted} may not be committed: this node knew of {committed} and has entries up to {last}. A new \
         leader may have replaced them; to go on all the same, give --uncommitted"
    )]
    Uncommitted {
        /// What was asked for.
        wanted: u64,
        /// What is known to be committed.
        committed: u64,
        /// The last entry's index.
        last: u64,
    },
    /// The other component cannot begin where the replay does.
    #[error(
        "the replay begins with the state of the snapshot at index {index}, which has version {found}, and \
         {name} restores {restores:?} only"
    )]
    StateVersion {
        /// The snapshot's index.
        index: u64,
        /// The version of its state.
        found: u32,
        /// The component's name.
        name: String,
        /// What it restores.
        restores: Vec<u32>,
    },
    /// Entries that must be there are not.
    #[error("entry {0} is missing in the log")]
    Gap(u64),
    /// The store cannot be read.
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    /// A component that the log has cannot be run by this program.
    #[error(
        "component {component}, which the log activates at index {index}, cannot be run here: {source}"
    )]
    Component {
        /// Where.
        index: u64,
        /// Which.
        component: String,
        /// Why.
        source: LoadError,
    },
    /// The machine stopped, as it would on a node.
    #[error("the machine stops after index {index}: {fatal_error}")]
    Fatal {
        /// How far it came.
        index: u64,
        /// Why.
        fatal_error: FatalError,
    },
    /// A query has no answer.
    #[error("{0}")]
    Query(#[from] QueryError),
}
