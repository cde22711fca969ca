//! Restores a state into new instances beside the running ones.
//!
//! # Contract
//! 1. Restoring runs on a separate thread. Meanwhile the running instances apply entries and answer
//!    queries, however long it takes.
//! 2. A [`Restored`] exists only if the state machine has accepted the whole state, in two
//!    instances: one for the primary and one for the standby.
//! 3. Dropping the future of [`Worker::prepare`] or [`Worker::replace_standby`] ends the work
//!    within milliseconds, also inside of a guest's call.
//!
//! # Caveats
//! It needs the memory of one more state per instance that it creates.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::oneshot, task::spawn_blocking};

use super::{Worker, job::Job, requests::Prepared, restored::Restored, shared::Shared};
use crate::{
    clock::Clock,
    entry_source::SavedState,
    error::{Ended, FatalError},
    instance::Instance,
    thread,
};

/// The interval at which a restore checks whether it has been cancelled.
const CANCEL_INTERVAL: Duration = Duration::from_millis(10);

impl Worker {
    /// Restores a state into two new instances. See the module documentation.
    ///
    /// # Errors
    /// Fails if the state machine does not accept the state, or if the state cannot be read.
    pub async fn prepare(&self, saved: SavedState) -> Result<Restored, FatalError> {
        let (component, digest) = (saved.component.clone(), saved.digest);
        let ([primary, standby], clock) = self.restore_aside(["primary", "standby"], saved).await?;
        Ok(Restored { primary, standby, component, clock, digest })
    }

    /// Restores a snapshot of this node into a new instance, which becomes the standby. This checks
    /// that the snapshot can be restored, and it reveals within one snapshot a state machine that
    /// behaves differently after a restore. Returns the linear memory that restoring took, in bytes.
    ///
    /// # Errors
    /// See [`Worker::prepare`].
    pub async fn replace_standby(&self, saved: SavedState) -> Result<u64, FatalError> {
        let component = saved.component.clone();
        let ([instance], clock) = self.restore_aside(["standby"], saved).await?;
        // Linear memory never shrinks, so this is also the peak.
        let memory_bytes = instance.memory_bytes() as u64;
        let (index, successor) = (clock.index(), Prepared { instance, component, clock });
        // Releasing a large memory takes long, so the lock is not held meanwhile.
        drop(self.0.shared.inbox.with(|queue| queue.offer_successor(index, successor)));
        Ok(memory_bytes)
    }

    /// Continues from a prepared state in both instances, in order with [`Worker::apply`]. The
    /// state must not be older than the current one. `commit` runs just before.
    ///
    /// # Errors
    /// Fails if the state is too old or if `commit` fails; the worker then continues as before.
    /// Also fails if the worker has stopped.
    pub async fn adopt(
        &self,
        restored: Restored,
        commit: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<(), FatalError> {
        let (reply, done) = oneshot::channel();
        let job = Job::Adopt { restored: Box::new(restored), commit: Box::new(commit), reply };
        let sent = self.0.jobs.send(job).await;
        sent.map_err(|_| self.0.shared.status.end())?;
        done.await.unwrap_or_else(|_| Err(self.0.shared.status.end()))
    }

    /// Combines [`Worker::prepare`] and [`Worker::adopt`].
    ///
    /// # Errors
    /// Fails as they do.
    pub async fn restore(&self, saved: SavedState) -> Result<(), FatalError> {
        let restored = self.prepare(saved).await?;
        self.adopt(restored, || Ok(())).await
    }

    async fn restore_aside<const COUNT: usize>(
        &self,
        roles: [&'static str; COUNT],
        saved: SavedState,
    ) -> Result<([Instance; COUNT], Clock), FatalError> {
        let (shared, cancelled) = (Arc::clone(&self.0.shared), Arc::<AtomicBool>::default());
        let mut guard = CancelOnDrop { cancelled: Arc::clone(&cancelled), armed: true };
        let restoring = spawn_blocking(move || run(&shared, roles, saved, &cancelled));
        let restored = restoring.await;
        // The instances check this flag for their whole life, so a finished restore must not set it.
        guard.armed = false;
        let joined = restored.map_err(|error| FatalError::caused_by("restoring a state", error));
        joined??.map_err(FatalError::from)
    }
}

struct CancelOnDrop {
    cancelled: Arc<AtomicBool>,
    armed: bool,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if self.armed {
            self.cancelled.store(true, Ordering::Relaxed);
        }
    }
}

/// Restores on a thread with a guest's stack. Interrupts it repeatedly once it has been cancelled.
fn run<const COUNT: usize>(
    shared: &Shared,
    roles: [&'static str; COUNT],
    saved: SavedState,
    cancelled: &Arc<AtomicBool>,
) -> Result<Result<([Instance; COUNT], Clock), Ended>, FatalError> {
    std::thread::scope(|scope| {
        let stack_bytes = shared.engine.limits().thread_stack_bytes();
        let body = || shared.restored_unless(roles, saved, cancelled);
        let thread = thread::spawn_scoped(scope, "restore", stack_bytes, body)?;
        while !thread.is_finished() {
            if cancelled.load(Ordering::Relaxed) || shared.status.stopping() {
                // A call that began after the last interruption has missed it, so it is repeated.
                shared.interrupt();
            }
            std::thread::park_timeout(CANCEL_INTERVAL);
        }
        thread::joined("restore", thread)
    })
}
