//! The status of a worker: whether it has stopped, and the reason.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use crate::error::{Ended, FatalError, SnapshotError};

/// The status that the handle, the threads and the watchers of a worker share.
#[derive(Default)]
pub(super) struct Status {
    /// Set when the worker stops. It also ends running calls.
    pub(super) stop: Arc<AtomicBool>,
    fatal_error: OnceLock<FatalError>,
}

impl Status {
    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(super) fn fatal_error(&self) -> Option<&FatalError> {
        self.fatal_error.get()
    }

    /// Records a fatal error, and returns whether it is the first. Only the first is kept.
    pub(super) fn set_fatal_error(&self, fatal_error: FatalError) -> bool {
        self.fatal_error.set(fatal_error).is_ok()
    }

    /// Returns the reason why a thread has to end, if there is one.
    pub(super) fn check(&self) -> Result<(), Ended> {
        if self.stopping() {
            return Err(Ended::Stopped);
        }
        self.fatal_error().map_or(Ok(()), |fatal_error| Err(Ended::Fatal(fatal_error.clone())))
    }

    /// Returns the reason why the worker accepts nothing more.
    pub(super) fn end(&self) -> FatalError {
        self.fatal_error().cloned().unwrap_or_else(|| Ended::Stopped.into())
    }

    pub(super) fn snapshot_end(&self) -> SnapshotError {
        self.fatal_error()
            .map_or(SnapshotError::Stopped, |fatal_error| SnapshotError::Fatal(fatal_error.clone()))
    }
}
