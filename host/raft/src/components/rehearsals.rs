//! Rehearsals: dry runs of each component on this node's real state, before the component is activated.
//!
//! A rehearsal compiles the component and migrates the present state into an instance of it, as
//! the activation will. Then it does the same with the newest snapshot on disk, and applies the
//! log entries after that snapshot: real requests of clients. A node that has no snapshot of
//! the active component skips the second part. That does not last long, because a snapshot is
//! taken after each activation.
//!
//! Each component of the cluster is rehearsed once in the background, and again whenever
//! another component has become active. That includes the previous component, so that a
//! rollback need not wait.

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

use super::{Tried, lock};
use crate::{Inner, LocalEntrySource, Replica, registry::Registry, snapshot::unreadable};
use conclave_machine::{
    Component, Entry, EntrySource, EntrySourceError, NotReady, Rehearsal, SavedState, Work,
    rehearse,
};
use conclave_types::{
    ComponentId,
    components::{Readiness, Rehearsed},
};

/// The maximum number of entries that a rehearsal applies. A snapshot is taken about this often.
const ENTRIES_MAX: usize = 20_000;
/// The number of attempts. A query may trap in the standby while its state is being read, or the
/// snapshot may be replaced. The next attempt uses the new standby or snapshot.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);
/// The time that a pushed component may take to reach this node. A follower is not this far behind.
const ARRIVAL_TIME_MAX: Duration = Duration::from_secs(5);
/// The registry is checked at least this often.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Rehearses new components, and takes a snapshot after each activation, until the replica is gone.
pub(crate) async fn run(replica: Weak<Inner>) {
    let (mut asked_at, mut cleaned_for) = (0, None);
    // Until this entry is applied, the log may contain components that are not in the registry yet.
    let replayed_to = replica.upgrade().and_then(|inner| inner.log.extent().last);
    loop {
        let Some(inner) = replica.upgrade() else { return };
        if inner.components.is_stopping() {
            return;
        }
        let components = inner.components.clone();
        let mut changed = pin!(components.changed.notified());
        // Registered before the check, so that no notification is missed.
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
        if let Some(component) = next(&replica, &registry) {
            replica.rehearse_here(component).await;
            continue;
        }
        let needed = components.needed(&registry);
        let applied = replica.0.applied().meta.last_log_id;
        if applied >= replayed_to && cleaned_for.as_ref() != Some(&needed) {
            let (kept, ids) = (components.kept.clone(), needed.clone());
            // Removing a large file takes a while.
            let _ = spawn_blocking(move || kept.retain(|id| ids.contains(id))).await;
            cleaned_for = Some(needed);
        }
        drop(replica);
        let _ = timeout(POLL_INTERVAL, changed).await;
    }
}

/// Returns the newest component that has not been rehearsed with the active component's state.
fn next(replica: &Replica, registry: &Registry) -> Option<ComponentId> {
    let tried = lock(&replica.0.components.tried);
    let untried = registry.components().filter(|(id, _)| {
        *id != registry.active()
            && tried.get(id).is_none_or(|tried| tried.from != registry.active())
    });
    untried.max_by_key(|(_, known)| known.index).map(|(id, _)| id)
}

impl Replica {
    /// Returns the progress of this node with a component.
    pub(crate) fn readiness(&self, component: ComponentId) -> Readiness {
        let registry = self.registry();
        if registry.active() == component {
            return Readiness::Active;
        }
        if registry.get(&component).is_none() {
            return Readiness::Absent;
        }
        match lock(&self.0.components.tried).get(&component) {
            Some(Tried { from, result }) if *from == registry.active() => match result {
                Ok(rehearsed) => Readiness::Ready(*rehearsed),
                Err(why) => Readiness::Failed(why.clone()),
            },
            _ => Readiness::Preparing,
        }
    }

    /// Waits for a component that was just pushed, whose last piece may not be applied here yet.
    async fn arrived(&self, component: ComponentId) {
        let until = Instant::now() + ARRIVAL_TIME_MAX;
        while self.registry().get(&component).is_none() && Instant::now() < until {
            sleep(PAUSE).await;
        }
    }

    /// Rehearses a component on this node, after the running rehearsal if there is one.
    pub(crate) async fn rehearse_here(&self, component: ComponentId) -> Readiness {
        self.arrived(component).await;
        let inner = self.0.clone();
        let rehearsing = spawn_blocking(move || {
            let _turn = lock(&inner.components.rehearsing);
            let registry = inner.applied().registry.clone();
            let Some(known) = registry.get(&component).filter(|_| registry.active() != component)
            else {
                return;
            };
            let compiled = inner.components.compile(component, &known.bytes);
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
                    %component,
                    migration_ms = rehearsed.migration_ms,
                    entries = rehearsed.entries,
                    "component is ready"
                ),
                Err(why) => tracing::warn!(%component, why, "component is not ready"),
            }
            lock(&inner.components.tried).insert(component, Tried { from, result });
        });
        if let Err(error) = rehearsing.await {
            return Readiness::Failed(format!("the rehearsal was interrupted: {error}"));
        }
        self.readiness(component)
    }
}

/// Rehearses a component, with several attempts. Blocks for as long as the state and the log take.
fn try_out(inner: &Arc<Inner>, component: &Component) -> Result<Rehearsed, String> {
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        match attempt(inner, component) {
            Ok(rehearsed) => return Ok(rehearsed),
            Err(NotReady::EntrySource(error)) => last = error.to_string(),
            Err(error) => return Err(error.to_string()),
        }
        std::thread::sleep(PAUSE);
    }
    Err(format!("{last}; rehearse it again"))
}

fn attempt(inner: &Arc<Inner>, component: &Component) -> Result<Rehearsed, NotReady> {
    let present = present_state(inner)?;
    let from = present.component.id();
    let carried = run_through(inner, component, present, iter::empty())?;
    let entries = match recent(inner, from)? {
        Some((saved, entries)) => {
            run_through(inner, component, saved, entries.take(ENTRIES_MAX))?.entries
        }
        None => 0,
    };
    let migration_ms = u64::try_from(carried.restore_time.as_millis()).unwrap_or(u64::MAX);
    Ok(Rehearsed { from, migration_ms, entries })
}

fn run_through(
    inner: &Inner,
    component: &Component,
    saved: SavedState,
    entries: impl Iterator<Item = Result<Entry, EntrySourceError>> + Send,
) -> Result<Rehearsal, NotReady> {
    let stop = || inner.components.is_stopping() || inner.worker.fatal_error().is_some();
    rehearse(component, inner.components.seed, saved, entries, stop)
}

/// Returns the present state, read from the standby.
fn present_state(inner: &Inner) -> Result<SavedState, EntrySourceError> {
    let (state, limits) = {
        // The lock keeps later entries from being fed before the standby has noted the request.
        let applied = inner.applied();
        let index = applied.meta.last_log_id.map_or(0, |log_id| log_id.index);
        (inner.worker.snapshot(index), applied.limits.limits)
    };
    let mut state = Handle::current().block_on(state).map_err(unreadable)?;
    Ok(SavedState {
        component: state.component().clone(),
        index: state.index(),
        time_ms: state.time_ms(),
        limits,
        state_version: state.state_version(),
        // A rehearsal compares no digests.
        digest: None,
        chunks: Box::new(iter::from_fn(move || {
            state.next_blocking().map(|chunk| chunk.map_err(unreadable))
        })),
    })
}

/// Returns the newest snapshot, if it belongs to the active component, and the entries applied since.
fn recent(
    inner: &Inner,
    active: ComponentId,
) -> Result<Option<(SavedState, Recent)>, EntrySourceError> {
    let Some(saved) = inner.entry_source.snapshot()? else { return Ok(None) };
    if saved.component.id() != active {
        return Ok(None);
    }
    let entries = Recent {
        entry_source: inner.entry_source.clone(),
        next: saved.index + 1,
        to: inner.worker.applied(),
        read: Vec::new().into_iter(),
    };
    Ok(Some((saved, entries)))
}

/// The applied entries up to the next activation, without those that trapped.
struct Recent {
    entry_source: Arc<LocalEntrySource>,
    next: u64,
    to: u64,
    read: std::vec::IntoIter<Entry>,
}

impl Recent {
    fn read_next(&mut self) -> Result<Option<Entry>, EntrySourceError> {
        loop {
            match self.read.next() {
                Some(entry) if self.entry_source.trapped(entry.index).is_some() => {}
                // Later entries were meant for another component.
                Some(entry) if matches!(entry.work, Work::Activate(_)) => {
                    (self.next, self.to) = (1, 0);
                    return Ok(None);
                }
                Some(entry) => return Ok(Some(entry)),
                None if self.next > self.to => return Ok(None),
                None => {
                    let read = self.entry_source.entries(self.next, self.to)?;
                    self.next = read.last().map_or(self.to, |last| last.index) + 1;
                    self.read = read.into_iter();
                }
            }
        }
    }
}

impl Iterator for Recent {
    type Item = Result<Entry, EntrySourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read_next().transpose()
    }
}
