//! Tries each module on this node's state, before it is needed.
//!
//! A rehearsal compiles the module, carries the present state over into an instance of it, as the activation
//! will, and then does the same with the newest snapshot on disk and applies to it the entries of the log
//! since: what clients really sent. A node that has no snapshot yet, or none of the active module, does without
//! the second part; after each activation a snapshot is taken, so that is soon over.
//!
//! Each module that the cluster has is rehearsed once in the background, and again whenever another module has
//! become active: also the one before, so that a rollback need not wait.

use std::{
    iter,
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};

use super::lock;
use crate::{Inner, LocalHistory, Replica, registry::Registry, snapshot::unreadable};
use conclave_machine::{
    Entry, History, HistoryError, Module, NotReady, Rehearsal, SavedState, Work, rehearse,
};
use conclave_types::{
    ModuleId,
    modules::{Readiness, Rehearsed},
};

/// Entries that are applied at most. A snapshot is taken about this often.
const ENTRIES_MAX: usize = 20_000;
/// The reader that gives its state may die under a query, or a snapshot be replaced: the next attempt finds
/// another.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);
/// A follower is not this far behind.
const ARRIVAL_TIME_MAX: Duration = Duration::from_secs(5);
/// The registry is looked at again at least this often.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What a rehearsal found.
#[derive(Clone, Debug)]
pub(super) struct Tried {
    /// The active module then, whose state it was.
    from: ModuleId,
    result: Result<Rehearsed, String>,
}

/// Rehearses what has yet to be, and takes a snapshot after each activation, until the replica is gone.
pub(crate) async fn run(replica: Weak<Inner>) {
    let (mut asked_at, mut cleaned_for) = (0, None);
    // Until this is applied, the log may hold modules that the registry has yet to learn of.
    let replayed_to = replica.upgrade().and_then(|inner| inner.log.extent().last);
    loop {
        let Some(inner) = replica.upgrade() else { return };
        if inner.modules.is_stopping() {
            return;
        }
        let modules = inner.modules.clone();
        let mut changed = pin!(modules.changed.notified());
        // Enlisted before looking, so that no notice is missed.
        changed.as_mut().enable();
        let replica = Replica(inner);
        let registry = replica.registry();
        let active = registry.get(&registry.active());
        let activated_at = active.map_or(0, |active| active.activated_index);
        if activated_at > asked_at && replica.0.building.wants(activated_at) {
            asked_at = activated_at;
            if replica.raft().trigger().snapshot().await.is_err() {
                return;
            }
        }
        if let Some(module) = next(&replica, &registry) {
            replica.rehearse_here(module).await;
            continue;
        }
        let needed = modules.needed(&registry);
        let applied = replica.0.applied().meta.last_log_id;
        if applied >= replayed_to && cleaned_for.as_ref() != Some(&needed) {
            let (kept, ids) = (modules.kept.clone(), needed.clone());
            // Removing a large file takes a while.
            let _ = spawn_blocking(move || kept.retain(|id| ids.contains(id))).await;
            cleaned_for = Some(needed);
        }
        drop(replica);
        let _ = timeout(LOOK_INTERVAL, changed).await;
    }
}

/// The newest module that has not been tried with the active one's state.
fn next(replica: &Replica, registry: &Registry) -> Option<ModuleId> {
    let tried = lock(&replica.0.modules.tried);
    let untried = registry.modules().filter(|(id, _)| {
        *id != registry.active()
            && tried.get(id).is_none_or(|tried| tried.from != registry.active())
    });
    untried.max_by_key(|(_, known)| known.index).map(|(id, _)| id)
}

impl Replica {
    /// How far this node is with a module.
    pub(crate) fn readiness(&self, module: ModuleId) -> Readiness {
        let registry = self.registry();
        if registry.active() == module {
            return Readiness::Active;
        }
        if registry.get(&module).is_none() {
            return Readiness::Absent;
        }
        match lock(&self.0.modules.tried).get(&module) {
            Some(Tried { from, result }) if *from == registry.active() => match result {
                Ok(rehearsed) => Readiness::Ready(*rehearsed),
                Err(why) => Readiness::Failed(why.clone()),
            },
            _ => Readiness::Preparing,
        }
    }

    /// Waits a while for a module that was just pushed: its last piece may yet have to be applied here.
    async fn arrived(&self, module: ModuleId) {
        let until = Instant::now() + ARRIVAL_TIME_MAX;
        while self.registry().get(&module).is_none() && Instant::now() < until {
            sleep(PAUSE).await;
        }
    }

    /// Rehearses a module on this node, after whichever is being rehearsed.
    pub(crate) async fn rehearse_here(&self, module: ModuleId) -> Readiness {
        self.arrived(module).await;
        let inner = self.0.clone();
        let rehearsing = spawn_blocking(move || {
            let _turn = lock(&inner.modules.rehearsing);
            let registry = inner.applied().registry.clone();
            let Some(known) = registry.get(&module).filter(|_| registry.active() != module) else {
                return;
            };
            let compiled = inner.modules.compile(module, &known.bytes);
            let result = match compiled {
                Ok(compiled) => try_out(&inner, &compiled),
                Err(error) => Err(error.to_string()),
            };
            let from = match &result {
                Ok(rehearsed) => rehearsed.from,
                Err(_) => registry.active(),
            };
            match &result {
                Ok(rehearsed) => tracing::info!(
                    %module,
                    carry_over_ms = rehearsed.carry_over_ms,
                    entries = rehearsed.entries,
                    "a module is ready"
                ),
                Err(why) => tracing::warn!(%module, why, "a module is not ready"),
            }
            lock(&inner.modules.tried).insert(module, Tried { from, result });
        });
        if let Err(error) = rehearsing.await {
            return Readiness::Failed(format!("the rehearsal broke off: {error}"));
        }
        self.readiness(module)
    }
}

/// Blocking, for as long as the state and the log take.
fn try_out(inner: &Arc<Inner>, module: &Module) -> Result<Rehearsed, String> {
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        match attempt(inner, module) {
            Ok(rehearsed) => return Ok(rehearsed),
            Err(NotReady::History(error)) => last = error.to_string(),
            Err(error) => return Err(error.to_string()),
        }
        std::thread::sleep(PAUSE);
    }
    Err(format!("{last}; rehearse it again"))
}

fn attempt(inner: &Arc<Inner>, module: &Module) -> Result<Rehearsed, NotReady> {
    let present = present_state(inner)?;
    let from = present.module.id();
    let carried = run_through(inner, module, present, iter::empty())?;
    let entries = match recent(inner, from)? {
        Some((saved, entries)) => {
            run_through(inner, module, saved, entries.take(ENTRIES_MAX))?.entries
        }
        None => 0,
    };
    let carry_over_ms = u64::try_from(carried.restore_time.as_millis()).unwrap_or(u64::MAX);
    Ok(Rehearsed { from, carry_over_ms, entries })
}

fn run_through(
    inner: &Inner,
    module: &Module,
    saved: SavedState,
    entries: impl Iterator<Item = Result<Entry, HistoryError>> + Send,
) -> Result<Rehearsal, NotReady> {
    let stop = || inner.modules.is_stopping() || inner.worker.fault().is_some();
    rehearse(module, inner.modules.seed, saved, entries, stop)
}

/// The state as it is now, from the reader.
fn present_state(inner: &Inner) -> Result<SavedState, HistoryError> {
    let (state, limits) = {
        // With the lock held no later entry can be handed over before the reader has noted the request.
        let applied = inner.applied();
        let index = applied.meta.last_log_id.map_or(0, |log_id| log_id.index);
        (inner.worker.snapshot(index), applied.limits.limits)
    };
    let mut state = Handle::current().block_on(state).map_err(unreadable)?;
    Ok(SavedState {
        module: state.module().clone(),
        index: state.index(),
        time_ms: state.time_ms(),
        limits,
        state_version: state.state_version(),
        // A rehearsal compares nothing.
        digest: None,
        chunks: Box::new(iter::from_fn(move || {
            state.next_blocking().map(|chunk| chunk.map_err(unreadable))
        })),
    })
}

/// The newest snapshot, if it is of the active module, and what was applied since.
fn recent(inner: &Inner, active: ModuleId) -> Result<Option<(SavedState, Recent)>, HistoryError> {
    let Some(saved) = inner.history.snapshot()? else { return Ok(None) };
    if saved.module.id() != active {
        return Ok(None);
    }
    let entries = Recent {
        history: inner.history.clone(),
        next: saved.index + 1,
        to: inner.worker.applied(),
        read: Vec::new().into_iter(),
    };
    Ok(Some((saved, entries)))
}

/// Entries as they were applied, without those that trapped, up to the next activation.
struct Recent {
    history: Arc<LocalHistory>,
    next: u64,
    to: u64,
    read: std::vec::IntoIter<Entry>,
}

impl Recent {
    fn read_next(&mut self) -> Result<Option<Entry>, HistoryError> {
        loop {
            match self.read.next() {
                Some(entry) if self.history.trapped(entry.index).is_some() => {}
                // What comes after was meant for another module.
                Some(entry) if matches!(entry.work, Work::Activate(_)) => {
                    (self.next, self.to) = (1, 0);
                    return Ok(None);
                }
                Some(entry) => return Ok(Some(entry)),
                None if self.next > self.to => return Ok(None),
                None => {
                    let read = self.history.entries(self.next, self.to)?;
                    self.next = read.last().map_or(self.to, |last| last.index) + 1;
                    self.read = read.into_iter();
                }
            }
        }
    }
}

impl Iterator for Recent {
    type Item = Result<Entry, HistoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read_next().transpose()
    }
}
