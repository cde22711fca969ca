//! The state that a worker's handle, its primary and its standby share.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokio::sync::watch;

use super::{absence::Absence, events::Events, inbox::Inbox, status::Status};
use crate::{
    clock::Clock,
    component::Component,
    engine::Engine,
    entry_source::{EntrySource, SavedState},
    error::{Broken, Ended, FatalError},
    instance::Instance,
    metrics::Metrics,
    migration::{NotMigrated, migration},
    restoring::Restoring,
};
use conclave_types::Outcome;

/// The shared state. See the module documentation.
pub(super) struct Shared {
    pub(super) engine: Engine,
    /// The initial component of the log.
    pub(super) initial: Component,
    /// The component that the primary runs.
    pub(super) active: watch::Sender<Component>,
    pub(super) entry_source: Arc<dyn EntrySource>,
    pub(super) inbox: Inbox,
    pub(super) metrics: Arc<Metrics>,
    pub(super) events: Arc<Events>,
    /// Whether there is a standby, and the reason if not.
    pub(super) absence: Arc<Absence>,
    /// The index that the primary has applied.
    pub(super) applied: AtomicU64,
    /// Whether the primary keeps digests that are comparable with those of other nodes.
    pub(super) keeps_digest: AtomicBool,
    /// The wake-up time of the state machine. It is not part of a snapshot, so after a restore it
    /// is as soon as possible, and the state machine's next reply sets it.
    pub(super) wake_at: watch::Sender<Option<u64>>,
    pub(super) status: Arc<Status>,
    key: [u8; 32],
    /// The message of a panic in one of the two threads.
    pub(super) panic: watch::Sender<Option<String>>,
}

impl Shared {
    pub(super) fn new(
        initial: Component,
        key: [u8; 32],
        entry_source: Arc<dyn EntrySource>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let absence = Arc::<Absence>::default();
        Self {
            engine: initial.engine().clone(),
            active: watch::Sender::new(initial.clone()),
            initial,
            entry_source,
            inbox: Inbox::new(Arc::clone(&absence)),
            metrics,
            events: Arc::default(),
            absence,
            applied: AtomicU64::new(0),
            keeps_digest: AtomicBool::new(true),
            wake_at: watch::Sender::new(None),
            status: Arc::default(),
            key,
            panic: watch::Sender::new(None),
        }
    }

    /// Stops both threads and their running calls.
    pub(super) fn stop(&self) {
        self.status.stop.store(true, Ordering::Relaxed);
        self.interrupt();
        self.inbox.wake_all();
        self.events.wake();
    }

    /// Records the wake-up time.
    pub(super) fn note_wake_up(&self, outcome: &Outcome) {
        note_wake_up(&self.wake_at, outcome);
    }

    /// Makes running calls check whether they should end.
    pub(super) fn interrupt(&self) {
        self.engine.inner().increment_epoch();
    }

    /// Stops the worker with a fatal error. Only the first fatal error is kept.
    pub(super) fn fail(&self, fatal_error: FatalError) {
        let is_first = self.status.set_fatal_error(fatal_error.clone());
        self.inbox.wake_all();
        self.events.wake();
        if is_first {
            tracing::error!(%fatal_error, component = ?*self.active.borrow(), "the state machine stops");
        }
    }

    /// Creates an instance in the initial state of the log's initial component.
    pub(super) fn fresh(&self, role: &'static str) -> Result<Instance, Broken> {
        self.initial.instance(role, self.engine.limits().cluster, &self.status.stop)
    }

    /// Runs [`migration`](crate::migration::migration) within this worker.
    pub(super) fn migration(
        &self,
        old: &mut Instance,
        old_component: &Component,
        component: &Component,
        role: &'static str,
    ) -> Result<Instance, NotMigrated> {
        self.check_engine(component)?;
        migration(old, old_component.state_version(), component, role, &self.status.stop)
    }

    /// Checks that the component comes from this worker's engine. An interruption does not reach
    /// instances of other engines, and their limits differ.
    fn check_engine(&self, component: &Component) -> Result<(), FatalError> {
        if component.engine().is(&self.engine) {
            return Ok(());
        }
        Err(FatalError::new(format!(
            "{component:?} was compiled by another engine than this worker's"
        )))
    }

    /// Creates a clock at the beginning of the log.
    pub(super) fn clock(&self) -> Clock {
        Clock::new(self.key, 0, 0)
    }

    /// Creates instances with a saved state, one per role, and their clock. Returns them only when
    /// all have accepted the whole state.
    pub(super) fn restored<const COUNT: usize>(
        &self,
        roles: [&'static str; COUNT],
        saved: SavedState,
    ) -> Result<([Instance; COUNT], Clock), Ended> {
        self.restored_unless(roles, saved, &Arc::default())
    }

    /// Does the same until `cancelled` is set; then it returns [`Ended::Stopped`].
    pub(super) fn restored_unless<const COUNT: usize>(
        &self,
        roles: [&'static str; COUNT],
        saved: SavedState,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<([Instance; COUNT], Clock), Ended> {
        let SavedState { component, index, time_ms, limits, state_version, chunks, .. } = saved;
        let what = format!("the state at index {index} cannot be restored");
        self.check_engine(&component)?;
        if let Some(why) = component.refuses(state_version) {
            return Err(FatalError::new(format!(
                "{what}: {why}: start the node with the component that saved it"
            ))
            .into());
        }
        let broken = |broken: Broken| broken.ended(&what);
        let mut restoring = Vec::with_capacity(COUNT);
        for role in roles {
            let (stop, cancelled) = (Arc::clone(&self.status.stop), Arc::clone(cancelled));
            let interrupted =
                move || stop.load(Ordering::Relaxed) || cancelled.load(Ordering::Relaxed);
            let begun =
                Restoring::interruptible(&component, state_version, role, limits, interrupted);
            restoring.push(begun.map_err(broken)?);
        }
        let stopped = || self.status.stopping() || cancelled.load(Ordering::Relaxed);
        for chunk in chunks {
            if stopped() {
                return Err(Ended::Stopped);
            }
            let chunk = chunk.map_err(|error| FatalError::caused_by(&what, error))?;
            for restoring in &mut restoring {
                restoring.write(&chunk).map_err(broken)?;
            }
        }
        let mut instances = Vec::with_capacity(COUNT);
        for restoring in restoring {
            if stopped() {
                return Err(Ended::Stopped);
            }
            instances.push(restoring.finish().map_err(broken)?);
        }
        let clock = Clock::new(self.key, index, time_ms);
        match instances.try_into() {
            Ok(instances) => Ok((instances, clock)),
            Err(_) => Err(FatalError::new(
                "the number of restored instances differs from the number of roles",
            )
            .into()),
        }
    }
}

/// Records the wake-up time. Each reply replaces the pending wake-up time; failures and traps leave it
/// unchanged.
pub(super) fn note_wake_up(wake_at: &watch::Sender<Option<u64>>, outcome: &Outcome) {
    if let Outcome::Reply(reply) = outcome {
        wake_at.send_if_modified(|wake_at| {
            std::mem::replace(wake_at, reply.wake_at_ms) != reply.wake_at_ms
        });
    }
}
