//! What the handle, the head and the reader of one worker share.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::watch;

use super::{clock::Clock, inbox::Inbox, stats::Counters};
use crate::{
    machine::{
        error::{Fault, SnapshotError},
        history::{History, SavedState},
        instance::Instance,
        limits::SNAPSHOT_CHUNK_BYTES_MAX,
        module::Module,
        trap::Broken,
    },
    types::Outcome,
};

/// See the module's page.
pub(super) struct Shared {
    pub(super) module: Module,
    pub(super) history: Arc<dyn History>,
    pub(super) inbox: Inbox,
    pub(super) counters: Counters,
    /// The index that the head has applied.
    pub(super) applied: AtomicU64,
    /// When the machine wants to be woken. A snapshot does not tell, so after one it is woken as soon
    /// as possible, and says.
    pub(super) wish: watch::Sender<Option<u64>>,
    key: [u8; 32],
    stop: Arc<AtomicBool>,
    fault: OnceLock<Fault>,
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
    pub(super) fn new(module: Module, key: [u8; 32], history: Arc<dyn History>) -> Self {
        Self {
            module,
            history,
            inbox: Inbox::default(),
            counters: Counters::default(),
            applied: AtomicU64::new(0),
            wish: watch::Sender::new(None),
            key,
            stop: Arc::new(AtomicBool::new(false)),
            fault: OnceLock::new(),
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
    }

    /// Each reply replaces the wish of the one before it; what is no reply leaves it.
    pub(super) fn note_wish(&self, outcome: &Outcome) {
        if let Outcome::Reply(reply) = outcome {
            self.wish.send_if_modified(|wish| {
                std::mem::replace(wish, reply.wake_at_ms) != reply.wake_at_ms
            });
        }
    }

    /// Makes a call that is under way ask whether it should end.
    pub(super) fn interrupt(&self) {
        self.module.engine().inner().increment_epoch();
    }

    pub(super) fn fault(&self) -> Option<&Fault> {
        self.fault.get()
    }

    /// The worker applies nothing any more. The first fault is the one that counts.
    pub(super) fn fail(&self, fault: Fault) {
        if self.fault.set(fault.clone()).is_ok() {
            tracing::error!(%fault, module = ?self.module, "the machine stops");
        }
        self.inbox.wake_all();
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

    /// An instance in the machine's initial state.
    pub(super) fn fresh(&self, role: &'static str) -> Result<Instance, Broken> {
        let stop = Arc::clone(&self.stop);
        let stopping = move || stop.load(Ordering::Relaxed);
        Instance::new(self.module.engine(), self.module.pre(), role, stopping)
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
        let description = self.module.description();
        if !description.restores.contains(&saved.state_version) {
            return Err(Restore::Fault(Fault::new(format!(
                "the state at index {} has version {}, and {} {} restores {:?} only: activate a module that does",
                saved.index,
                saved.state_version,
                description.name,
                description.version,
                description.restores
            ))));
        }
        let what = format!("the state at index {} cannot be restored", saved.index);
        let broken = |broken: Broken| match broken {
            Broken::Interrupted => Restore::Stopped,
            other => Restore::Fault(other.into_fault(&what)),
        };
        let refused = |failure: crate::types::Failure| {
            Restore::Fault(Fault::new(format!("{what}: the machine says: {}", failure.message)))
        };
        let mut restoring = Vec::with_capacity(COUNT);
        for role in roles {
            let mut instance = self.fresh(role).map_err(broken)?;
            let writer = instance.restore(saved.state_version).map_err(broken)?.map_err(refused)?;
            restoring.push((instance, writer));
        }
        for chunk in saved.chunks {
            if self.stopping() {
                return Err(Restore::Stopped);
            }
            let chunk = chunk.map_err(|error| Restore::History(error, what.clone()))?;
            for piece in chunk.chunks(SNAPSHOT_CHUNK_BYTES_MAX) {
                for (instance, writer) in &mut restoring {
                    instance.restore_write(*writer, piece).map_err(broken)?.map_err(refused)?;
                }
            }
        }
        let mut instances = Vec::with_capacity(COUNT);
        for (mut instance, writer) in restoring {
            instance.restore_finish(writer).map_err(broken)?.map_err(refused)?;
            instances.push(instance);
        }
        let clock = Clock::new(self.key, saved.index, saved.time_ms);
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
    History(crate::machine::error::HistoryError, String),
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

/// A short mark of an outcome, for the reader to compare its own with the head's. Within one process
/// only.
pub(super) fn mark(outcome: &Outcome) -> u64 {
    let mut hasher = DefaultHasher::new();
    match outcome {
        Outcome::Reply(reply) => {
            reply.response.hash(&mut hasher);
            reply.wake_at_ms.hash(&mut hasher);
            for event in &reply.events {
                event.topic.hash(&mut hasher);
                event.payload.hash(&mut hasher);
            }
        }
        Outcome::Failure(failure) => {
            (failure.code as i32, &failure.message).hash(&mut hasher);
        }
        Outcome::Trap(trap) => trap.message.hash(&mut hasher),
    }
    hasher.finish()
}
