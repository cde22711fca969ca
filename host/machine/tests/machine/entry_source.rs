//! An entry source in memory, as the raft layer implements it over storage.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use conclave_machine::{Component, Entry, EntrySource, EntrySourceError, SavedState};
use conclave_types::{Digest, Trap, limits::ClusterLimits};

#[derive(Default)]
pub(crate) struct MemorySource {
    state: Mutex<State>,
    /// The number of times that a snapshot was read. Each is a build of a standby.
    pub(crate) snapshot_reads: AtomicU64,
    /// The number of entries returned at once. Small, so that a batch is only a prefix.
    pub(crate) batch: usize,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<u64, Entry>,
    purged: u64,
    snapshot: Option<Saved>,
    traps: BTreeMap<u64, Trap>,
    /// Installs this snapshot and purges the log as soon as the present snapshot has been read.
    purge_after_read: Option<Saved>,
}

/// A snapshot in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Saved {
    pub(crate) component: Component,
    pub(crate) index: u64,
    pub(crate) time_ms: u64,
    pub(crate) limits: ClusterLimits,
    pub(crate) state_version: u32,
    pub(crate) digest: Option<Digest>,
    pub(crate) bytes: Vec<u8>,
}

impl Saved {
    /// Returns the state in pieces of three bytes, which cut every value in two.
    pub(crate) fn state(&self) -> SavedState {
        self.state_in(3)
    }

    pub(crate) fn state_in(&self, chunk_bytes: usize) -> SavedState {
        let chunks: Vec<_> =
            self.bytes.chunks(chunk_bytes).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        SavedState {
            component: self.component.clone(),
            index: self.index,
            time_ms: self.time_ms,
            limits: self.limits,
            state_version: self.state_version,
            digest: self.digest,
            chunks: Box::new(chunks.into_iter()),
        }
    }
}

impl MemorySource {
    pub(crate) fn new() -> Self {
        Self { batch: 7, ..Self::default() }
    }

    pub(crate) fn append(&self, entry: Entry) {
        self.state.lock().unwrap().entries.insert(entry.index, entry);
    }

    /// Installs a snapshot and purges the log up to it.
    pub(crate) fn install(&self, saved: Saved) {
        let mut state = self.state.lock().unwrap();
        state.purged = saved.index;
        state.entries = state.entries.split_off(&(saved.index + 1));
        state.snapshot = Some(saved);
    }

    /// Installs a snapshot at the worst time: right after the previous one has been read.
    pub(crate) fn install_after_next_read(&self, saved: Saved) {
        self.state.lock().unwrap().purge_after_read = Some(saved);
    }

    pub(crate) fn traps(&self) -> BTreeMap<u64, Trap> {
        self.state.lock().unwrap().traps.clone()
    }

    /// Forgets the traps, as a crash may.
    pub(crate) fn forget_traps(&self) {
        self.state.lock().unwrap().traps.clear();
    }

    pub(crate) fn all(&self) -> Vec<Entry> {
        self.state.lock().unwrap().entries.values().cloned().collect()
    }
}

impl EntrySource for MemorySource {
    fn snapshot(&self) -> Result<Option<SavedState>, EntrySourceError> {
        self.snapshot_reads.fetch_add(1, Ordering::Relaxed);
        let (saved, next) = {
            let mut state = self.state.lock().unwrap();
            (state.snapshot.clone(), state.purge_after_read.take())
        };
        if let Some(next) = next {
            self.install(next);
        }
        Ok(saved.map(|saved| saved.state()))
    }

    fn entries(&self, from: u64, to_inclusive: u64) -> Result<Vec<Entry>, EntrySourceError> {
        let state = self.state.lock().unwrap();
        if from <= state.purged {
            return Err(EntrySourceError::Gap(from));
        }
        Ok(state
            .entries
            .range(from..=to_inclusive)
            .take(self.batch)
            .map(|(_, entry)| entry.clone())
            .collect())
    }

    fn record_trap(&self, index: u64, trap: &Trap) {
        self.state.lock().unwrap().traps.insert(index, trap.clone());
    }

    fn trapped(&self, index: u64) -> Option<Trap> {
        self.state.lock().unwrap().traps.get(&index).cloned()
    }
}
