//! What the handle, the head and the reader of one worker share.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokio::sync::{mpsc, watch};

use super::{
    absence::Absence,
    events::Events,
    head::Job,
    inbox::{Inbox, Queue},
    stats::Counters,
};
use crate::{
    bench,
    carry_over::{NotCarried, carry_over},
    clock::Clock,
    component::Component,
    engine::Engine,
    error::{Fault, HistoryError, SnapshotError},
    history::{History, SavedState},
    instance::Instance,
    restoring::Restoring,
    trap::Broken,
};
use conclave_types::{Outcome, Trap};

/// See the page of this file.
pub(super) struct Shared {
    pub(super) engine: Engine,
    /// What the log begins with.
    pub(super) initial: Component,
    /// What the head runs.
    pub(super) active: watch::Sender<Component>,
    pub(super) history: Arc<dyn History>,
    pub(super) inbox: Inbox,
    pub(super) counters: Counters,
    pub(super) events: Events,
    /// Whether there is a standby, and why not.
    pub(super) absence: Absence,
    /// The primary's queue.
    pub(super) jobs: OnceLock<mpsc::WeakSender<Job>>,
    /// The index that the head has applied.
    pub(super) applied: AtomicU64,
    /// Whether the head keeps digests that other nodes could have.
    pub(super) keeps_digest: AtomicBool,
    /// When the machine wants to be woken. A snapshot does not tell, so after one it is woken as soon
    /// as possible, and says.
    pub(super) wish: watch::Sender<Option<u64>>,
    key: [u8; 32],
    stop: Arc<AtomicBool>,
    fault: OnceLock<Fault>,
    /// Set if one of the two threads panicked, with the panic's message.
    pub(super) panic: watch::Sender<Option<String>>,
}

/// Why a thread of the worker ends.
pub(super) enum End {
    Stopped,
    Fault(Fault),
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Shared {
    pub(super) fn new(initial: Component, key: [u8; 32], history: Arc<dyn History>) -> Self {
        Self {
            engine: initial.engine().clone(),
            active: watch::Sender::new(initial.clone()),
            initial,
            history,
            inbox: Inbox::default(),
            counters: Counters::default(),
            events: Events::default(),
            absence: Absence::default(),
            jobs: OnceLock::new(),
            applied: AtomicU64::new(0),
            keeps_digest: AtomicBool::new(true),
            wish: watch::Sender::new(None),
            key,
            stop: Arc::new(AtomicBool::new(false)),
            fault: OnceLock::new(),
            panic: watch::Sender::new(None),
        }
    }

    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Tells both threads to end, and ends the calls they are in.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.interrupt();
        self.inbox.wake_all();
        self.events.wake();
    }

    /// Each reply replaces the wish of the one before it; what is no reply leaves it.
    pub(super) fn note_wish(&self, outcome: &Outcome) {
        if let Outcome::Reply(reply) = outcome
            && !bench::bare()
        {
            self.wish.send_if_modified(|wish| {
                std::mem::replace(wish, reply.wake_at_ms) != reply.wake_at_ms
            });
        }
    }

    /// Makes a call that is under way ask whether it should end.
    pub(super) fn interrupt(&self) {
        self.engine.inner().increment_epoch();
    }

    pub(super) fn fault(&self) -> Option<&Fault> {
        self.fault.get()
    }

    /// The worker applies nothing any more. The first fault is the one that counts.
    pub(super) fn fail(&self, fault: Fault) {
        let is_first = self.fault.set(fault.clone()).is_ok();
        self.inbox.wake_all();
        self.events.wake();
        if is_first {
            tracing::error!(%fault, component = ?*self.active.borrow(), "the machine stops");
        }
    }

    /// Asks the primary to answer queries, if that is its turn and it has not been asked.
    pub(super) fn ask_primary(&self, queue: &mut Queue) {
        if !queue.primary_answers || queue.primary_asked || queue.ready.is_empty() {
            return;
        }
        if let Some(jobs) = self.jobs.get().and_then(mpsc::WeakSender::upgrade) {
            // If the queue is full, the primary answers after the next batch anyway.
            queue.primary_asked = jobs.try_send(Job::AnswerQueries).is_ok();
        }
    }

    /// Whether a thread has to end, and why.
    pub(super) fn check(&self) -> Result<(), End> {
        if self.stopping() {
            return Err(End::Stopped);
        }
        self.fault().map_or(Ok(()), |fault| Err(End::Fault(fault.clone())))
    }

    /// Why the worker takes nothing in any more.
    pub(super) fn end(&self) -> Fault {
        self.fault().cloned().unwrap_or_else(|| Fault::new("the machine is shutting down"))
    }

    pub(super) fn snapshot_end(&self) -> SnapshotError {
        self.fault().map_or(SnapshotError::Stopped, |fault| SnapshotError::Fault(fault.clone()))
    }

    /// An instance in the initial state of the machine that the log begins with.
    pub(super) fn fresh(&self, role: &'static str) -> Result<Instance, Broken> {
        self.initial.instance(role, self.engine.limits().cluster, &self.stop)
    }

    /// Why this component does not take the place of `old` at this entry, as far as that is known without
    /// trying.
    pub(super) fn not_activated(
        &self,
        index: u64,
        old: &Component,
        component: &Component,
    ) -> Option<NotActivated> {
        let refused = || component.refuses(old.state_version()).map(NotActivated::Refused);
        refused().or_else(|| self.history.trapped(index).map(NotActivated::Recorded))
    }

    /// [`carry_over`](crate::carry_over::carry_over) within this worker.
    pub(super) fn carry_over(
        &self,
        old: &mut Instance,
        old_component: &Component,
        component: &Component,
        role: &'static str,
    ) -> Result<Instance, NotCarried> {
        self.check_engine(component).map_err(NotCarried::Fault)?;
        carry_over(old, old_component.state_version(), component, role, &self.stop)
    }

    /// Instances of other engines are not reached by an interruption, and have other limits.
    fn check_engine(&self, component: &Component) -> Result<(), Fault> {
        if component.engine().is(&self.engine) {
            return Ok(());
        }
        Err(Fault::new(format!("{component:?} was compiled by another engine than this worker's")))
    }

    /// A clock that stands at the beginning of the log.
    pub(super) fn clock(&self) -> Clock {
        Clock::new(self.key, 0, 0)
    }

    /// Fresh instances with a saved state, one for each role, and the clock they stand at. Nothing
    /// shows before all of them have all of it.
    pub(super) fn restored<const COUNT: usize>(
        &self,
        roles: [&'static str; COUNT],
        saved: SavedState,
    ) -> Result<([Instance; COUNT], Clock), Restore> {
        self.restored_unless(roles, saved, &Arc::default())
    }

    /// The same, until `cancelled` is set: from then on it ends with [`Restore::Stopped`].
    pub(super) fn restored_unless<const COUNT: usize>(
        &self,
        roles: [&'static str; COUNT],
        saved: SavedState,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<([Instance; COUNT], Clock), Restore> {
        let SavedState { component, index, time_ms, limits, state_version, chunks, .. } = saved;
        let what = format!("the state at index {index} cannot be restored");
        self.check_engine(&component).map_err(Restore::Fault)?;
        if let Some(why) = component.refuses(state_version) {
            return Err(Restore::Fault(Fault::new(format!(
                "{what}: {why}: start the node with the component that it was saved by"
            ))));
        }
        let broken = |broken: Broken| match broken {
            Broken::Interrupted => Restore::Stopped,
            other => Restore::Fault(other.into_fault(&what)),
        };
        let mut restoring = Vec::with_capacity(COUNT);
        for role in roles {
            let (stop, cancelled) = (Arc::clone(&self.stop), Arc::clone(cancelled));
            let interrupted =
                move || stop.load(Ordering::Relaxed) || cancelled.load(Ordering::Relaxed);
            let begun =
                Restoring::interruptible(&component, state_version, role, limits, interrupted);
            restoring.push(begun.map_err(broken)?);
        }
        let stopped = || self.stopping() || cancelled.load(Ordering::Relaxed);
        for chunk in chunks {
            if stopped() {
                return Err(Restore::Stopped);
            }
            let chunk = chunk.map_err(|error| Restore::History(error, what.clone()))?;
            for restoring in &mut restoring {
                restoring.write(&chunk).map_err(broken)?;
            }
        }
        let mut instances = Vec::with_capacity(COUNT);
        for restoring in restoring {
            if stopped() {
                return Err(Restore::Stopped);
            }
            instances.push(restoring.finish().map_err(broken)?);
        }
        let clock = Clock::new(self.key, index, time_ms);
        match instances.try_into() {
            Ok(instances) => Ok((instances, clock)),
            Err(_) => Err(Restore::Fault(Fault::new("as many instances as roles"))),
        }
    }
}

/// Why a state was not restored.
pub(super) enum Restore {
    Stopped,
    Fault(Fault),
    /// The saved bytes could not be read; and what for.
    History(HistoryError, String),
}

/// Why a component is not activated at an entry.
pub(super) enum NotActivated {
    /// It does not restore the state's version.
    Refused(String),
    /// It was tried before.
    Recorded(Trap),
}

impl Restore {
    pub(super) fn into_fault(self) -> Fault {
        match self {
            Self::Stopped => Fault::new("the machine is shutting down"),
            Self::Fault(fault) => fault,
            Self::History(error, what) => Fault::new(format!("{what}: {error}")),
        }
    }
}
