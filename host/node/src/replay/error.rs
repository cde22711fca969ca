//! Errors of a replay. Each message names a way to continue.

use std::io;

use tokio::task::JoinError;

use conclave_machine::{FatalError, LoadError, QueryError};

/// The error of a replay.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The index lies before the available log.
    #[error(
        "index {wanted} is gone: the log before it was purged when the snapshot at index {snapshot} was taken. \
         States from {snapshot} to {last} are available, and entries from {} on", snapshot + 1
    )]
    Purged {
        /// The requested index.
        wanted: u64,
        /// The newest snapshot's index.
        snapshot: u64,
        /// The last index that can be reached.
        last: u64,
    },
    /// The index lies after the end of the log.
    #[error("index {wanted} does not exist: the log ends at {last}")]
    Beyond {
        /// The requested index.
        wanted: u64,
        /// The last entry's index.
        last: u64,
    },
    /// The entry exists, but may not be committed.
    #[error(
        "entry {wanted} may not be committed: this node knew {committed} as committed and has entries up to {last}. A \
         new leader may have replaced the later entries. To continue anyway, use --uncommitted"
    )]
    Uncommitted {
        /// The requested index.
        wanted: u64,
        /// The last index that is known to be committed.
        committed: u64,
        /// The last entry's index.
        last: u64,
    },
    /// The other component cannot restore the state that the replay begins with.
    #[error(
        "the replay begins with the snapshot at index {index}, whose state has version {found}, but {name} restores \
         {restores:?} only"
    )]
    StateVersion {
        /// The snapshot's index.
        index: u64,
        /// The version of its state.
        found: u32,
        /// The component's name.
        name: String,
        /// The state versions that it restores.
        restores: Vec<u32>,
    },
    /// An entry is missing in the middle of the log.
    #[error("entry {0} is missing in the log")]
    Gap(u64),
    /// The store cannot be read.
    #[error("the data directory cannot be read")]
    Unreadable(#[from] io::Error),
    /// A component in the log cannot be loaded by this program.
    #[error("component {component}, which the log activates at index {index}, cannot be loaded")]
    Component {
        /// The index of the activation.
        index: u64,
        /// The component.
        component: String,
        /// The cause.
        source: LoadError,
    },
    /// The state machine stopped with a fatal error, as it would on a node.
    #[error("the state machine stopped after index {index}")]
    Fatal {
        /// The last applied index.
        index: u64,
        /// The cause.
        #[source]
        fatal_error: FatalError,
    },
    /// A query failed.
    #[error("the query failed")]
    Query(#[from] QueryError),
    /// A thread of the replay panicked, or the runtime shut down.
    #[error("the replay was interrupted")]
    Interrupted(#[from] JoinError),
}
