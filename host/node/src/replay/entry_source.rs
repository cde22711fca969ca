//! The entry source of a replay: the state that the replay began with, and the log since then.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::source::Start;
use conclave_machine::{
    Component, Entry, EntrySource, EntrySourceError, SavedState, TrapReport, Work,
};
use conclave_raft::{Components, saved_state};
use conclave_storage::LogStore;
use conclave_types::{Trap, error::chain};

/// Maximum size of the entries returned together.
const REPLAY_BYTES_MAX: usize = 4 << 20;

/// The entry source of one [`Player`](super::Player). It has only the traps of its own replay.
pub(super) struct ReplayEntrySource {
    pub(super) log: LogStore,
    pub(super) components: Arc<Components>,
    pub(super) start: Start,
    /// Replaces the components that were active at the time.
    pub(super) other: Option<Component>,
    pub(super) traps: Mutex<BTreeMap<u64, Trap>>,
    pub(super) trap_report: Mutex<BTreeMap<u64, TrapReport>>,
}

fn unreadable(error: impl std::error::Error + 'static) -> EntrySourceError {
    EntrySourceError::Unreadable(chain(&error))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ReplayEntrySource {
    /// Returns the trap report of an entry, and removes it.
    pub(super) fn take_trap_report(&self, index: u64) -> Option<TrapReport> {
        lock(&self.trap_report).remove(&index)
    }

    /// Returns whether the replay applies the entry. The other component ignores activations
    /// and stays active.
    fn is_seen(&self, entry: &Entry) -> bool {
        self.other.is_none() || !matches!(entry.work, Work::Activate(_))
    }
}

impl EntrySource for ReplayEntrySource {
    fn snapshot(&self) -> Result<Option<SavedState>, EntrySourceError> {
        let Start::Snapshot(file) = &self.start else { return Ok(None) };
        let (mut saved, _) = saved_state(file, &self.components).map_err(unreadable)?;
        if let Some(other) = &self.other {
            saved.component = other.clone();
        }
        Ok(Some(saved))
    }

    fn entries(&self, from: u64, to: u64) -> Result<Vec<Entry>, EntrySourceError> {
        let mut found = Vec::new();
        let mut next = from;
        while next <= to && found.is_empty() {
            let entries = self.log.entries(next..to + 1, REPLAY_BYTES_MAX).map_err(unreadable)?;
            match entries.first() {
                Some(first) if first.log_id.index == next => {}
                _ => return Err(EntrySourceError::Gap(next)),
            }
            next += entries.len() as u64;
            let entries =
                entries.into_iter().filter_map(|entry| self.components.machine_entry(entry));
            found.extend(entries.filter(|entry| self.is_seen(entry)));
        }
        Ok(found)
    }

    fn record_trap(&self, index: u64, trap: &Trap) {
        lock(&self.traps).insert(index, trap.clone());
    }

    fn trapped(&self, index: u64) -> Option<Trap> {
        lock(&self.traps).get(&index).cloned()
    }

    fn record_trap_report(&self, index: u64, trap_report: TrapReport) {
        lock(&self.trap_report).insert(index, trap_report);
    }
}
