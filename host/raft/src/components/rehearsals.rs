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

use std::{iter, sync::Arc, time::Duration};

use openraft::async_runtime::WatchReceiver;
use tokio::{runtime::Handle, task::spawn_blocking, time::timeout};

use super::{Components, Tried, lock};
use crate::{
    entry_source::LocalEntrySource, node::Node, registry::Registry, snapshot::unreadable,
    state_machine::Building,
};
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

/// This node's rehearsals.
pub(crate) struct Rehearsals {
    node: Arc<Node>,
    components: Arc<Components>,
    building: Arc<Building>,
    entry_source: Arc<LocalEntrySource>,
}

impl Rehearsals {
    pub(crate) fn new(
        node: Arc<Node>,
        components: Arc<Components>,
        building: Arc<Building>,
        entry_source: Arc<LocalEntrySource>,
    ) -> Self {
        Self { node, components, building, entry_source }
    }

    /// Returns the components in the log, as far as this node has applied it.
    pub(super) fn registry(&self) -> Registry {
        self.node.applied().registry.clone()
    }

    /// Rehearses new components, and takes a snapshot after each activation, until Raft has stopped.
    pub(crate) async fn run(self: Arc<Self>) {
        let (mut changed, mut building) = (self.components.watch(), self.building.watch());
        let mut metrics = self.node.raft.data_metrics();
        let (mut snapshot_at, mut cleaned_for) = (0, None);
        // Until this entry is applied, the log may contain components that are not in the registry yet.
        let replayed_to = self.node.log.extent().last;
        while !self.components.is_stopping() {
            // Before the checks, so that no change is missed.
            changed.mark_unchanged();
            building.mark_unchanged();
            let is_replayed = metrics.borrow_and_update().last_applied >= replayed_to;
            let registry = self.registry();
            let active = registry.get(&registry.active());
            let activated_at = active.map_or(0, |active| active.activated_index);
            if activated_at > snapshot_at && self.building.wants(activated_at) {
                snapshot_at = activated_at;
                if self.node.raft.trigger().snapshot().await.is_err() {
                    return;
                }
            }
            if let Some(component) = self.next(&registry) {
                self.rehearse(component).await;
                continue;
            }
            let needed = self.components.needed(&registry);
            if is_replayed && cleaned_for.as_ref() != Some(&needed) {
                let (kept, ids) = (self.components.kept.clone(), needed.clone());
                // Removing a large file takes a while.
                let _ = spawn_blocking(move || kept.retain(|id| ids.contains(id))).await;
                cleaned_for = Some(needed);
            }
            tokio::select! {
                _ = changed.changed() => {}
                _ = building.changed() => {}
                applied = metrics.changed(), if !is_replayed => if applied.is_err() { return },
            }
        }
    }

    /// Returns the newest component that has not been rehearsed with the active component's state.
    fn next(&self, registry: &Registry) -> Option<ComponentId> {
        let tried = lock(&self.components.tried);
        let untried = registry.components().filter(|(id, _)| {
            *id != registry.active()
                && tried.get(id).is_none_or(|tried| tried.from != registry.active())
        });
        untried.max_by_key(|(_, known)| known.index).map(|(id, _)| id)
    }

    /// Returns the progress of this node with a component.
    pub(crate) fn readiness(&self, component: ComponentId) -> Readiness {
        let registry = self.registry();
        if registry.active() == component {
            return Readiness::Active;
        }
        if registry.get(&component).is_none() {
            return Readiness::Absent;
        }
        match lock(&self.components.tried).get(&component) {
            Some(Tried { from, result }) if *from == registry.active() => match result {
                Ok(rehearsed) => Readiness::Ready(*rehearsed),
                Err(why) => Readiness::Failed(why.clone()),
            },
            _ => Readiness::Preparing,
        }
    }

    /// Waits for a component that was just pushed, whose last piece may not be applied here yet.
    async fn arrived(&self, component: ComponentId) {
        let mut changed = self.components.watch();
        let arrived = async {
            while self.registry().get(&component).is_none() && changed.changed().await.is_ok() {}
        };
        let _ = timeout(ARRIVAL_TIME_MAX, arrived).await;
    }

    /// Rehearses a component on this node, after the running rehearsal if there is one.
    pub(crate) async fn rehearse(self: &Arc<Self>, component: ComponentId) -> Readiness {
        self.arrived(component).await;
        let rehearsals = self.clone();
        let rehearsing = spawn_blocking(move || rehearsals.rehearse_blocking(component));
        if let Err(error) = rehearsing.await {
            return Readiness::Failed(format!("the rehearsal was interrupted: {error}"));
        }
        self.readiness(component)
    }

    /// Rehearses a component. Blocks for as long as the state and the log take.
    fn rehearse_blocking(&self, component: ComponentId) {
        let _turn = lock(&self.components.rehearsing);
        let registry = self.registry();
        let Some(known) = registry.get(&component).filter(|_| registry.active() != component)
        else {
            return;
        };
        let compiled = self.components.compile(component, &known.bytes);
        let result = match compiled {
            Ok(compiled) => self.try_out(&compiled),
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
        lock(&self.components.tried).insert(component, Tried { from, result });
    }

    /// Rehearses a component, with several attempts. Blocks for as long as the state and the log take.
    fn try_out(&self, component: &Component) -> Result<Rehearsed, String> {
        let mut last = String::new();
        for _ in 0..ATTEMPTS {
            match self.attempt(component) {
                Ok(rehearsed) => return Ok(rehearsed),
                Err(NotReady::EntrySource(error)) => last = error.to_string(),
                Err(error) => return Err(error.to_string()),
            }
            std::thread::sleep(PAUSE);
        }
        Err(format!("{last}; rehearse it again"))
    }

    fn attempt(&self, component: &Component) -> Result<Rehearsed, NotReady> {
        let present = self.present_state()?;
        let from = present.component.id();
        let carried = self.run_through(component, present, iter::empty())?;
        let entries = match self.recent(from)? {
            Some((saved, entries)) => {
                self.run_through(component, saved, entries.take(ENTRIES_MAX))?.entries
            }
            None => 0,
        };
        let migration_ms = u64::try_from(carried.restore_time.as_millis()).unwrap_or(u64::MAX);
        Ok(Rehearsed { from, migration_ms, entries })
    }

    fn run_through(
        &self,
        component: &Component,
        saved: SavedState,
        entries: impl Iterator<Item = Result<Entry, EntrySourceError>> + Send,
    ) -> Result<Rehearsal, NotReady> {
        let stop = || self.components.is_stopping() || self.node.worker.fatal_error().is_some();
        rehearse(component, self.components.seed, saved, entries, stop)
    }

    /// Returns the present state, read from the standby.
    fn present_state(&self) -> Result<SavedState, EntrySourceError> {
        let (state, limits) = {
            // The lock keeps later entries from being fed before the standby has noted the request.
            let applied = self.node.applied();
            let index = applied.meta.last_log_id.map_or(0, |log_id| log_id.index);
            (self.node.worker.snapshot(index), applied.limits.limits)
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
        &self,
        active: ComponentId,
    ) -> Result<Option<(SavedState, Recent)>, EntrySourceError> {
        let Some(saved) = self.entry_source.snapshot()? else { return Ok(None) };
        if saved.component.id() != active {
            return Ok(None);
        }
        let entries = Recent {
            entry_source: self.entry_source.clone(),
            next: saved.index + 1,
            to: self.node.worker.applied(),
            read: Vec::new().into_iter(),
        };
        Ok(Some((saved, entries)))
    }
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
