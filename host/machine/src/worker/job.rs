//! The requests to the primary, which it handles in the order of the log.

use std::io;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{BatchItem, restored::Restored};
use crate::error::FatalError;
use conclave_types::Digest;

/// A request to the primary.
pub(super) enum Job {
    /// Applies entries. The permit is the room that they take in the queue.
    Apply { batch: Vec<BatchItem>, _room: OwnedSemaphorePermit },
    /// Continues from another state, which two new instances have accepted.
    Adopt {
        restored: Box<Restored>,
        commit: Commit,
        reply: oneshot::Sender<Result<(), FatalError>>,
    },
    /// Reports the digest at an index, once the primary has applied it.
    Digest { index: u64, reply: oneshot::Sender<Option<Digest>> },
    /// Starts the digest with another value.
    BeginDigest { index: u64, digest: Digest },
    /// Answers queries, because there is no standby.
    AnswerQueries,
    /// Checks whether the worker has stopped.
    Stop,
}

/// Makes a state the newest one from which an instance can be rebuilt. Called on the primary's thread.
pub(super) type Commit = Box<dyn FnOnce() -> io::Result<()> + Send>;
