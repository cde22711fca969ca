//! The entry source of the worker: the newest snapshot, the log after it, and the traps of its entries.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use prost::Message;

use super::{
    components::Components,
    snapshot::{saved_state, unreadable},
};
use conclave_machine as machine;
use conclave_machine::{EntrySource, EntrySourceError, SavedState};
use conclave_proto::convert::{trap_from_wire, trap_to_wire};
use conclave_storage::{LogStore, SnapshotStore};
use conclave_types::Trap;

/// The entry source from which an instance is rebuilt.
pub struct LocalEntrySource {
    log: LogStore,
    snapshots: SnapshotStore,
    components: Arc<Components>,
    traps: Mutex<Traps>,
}

/// The traps of entries after the previous snapshot, so that a replay need not run these entries
/// again. A replay may have started from the previous snapshot before the newest existed.
#[derive(Default)]
struct Traps {
    by_index: BTreeMap<u64, Trap>,
    newest_snapshot: u64,
}

/// The maximum size of the entries that are returned at once, in bytes.
const REPLAY_BYTES_MAX: usize = 4 * 1024 * 1024;
const TRAP_PREFIX: &str = "trap/";

/// The message of the trap of a skipped entry. The same text on every node.
pub(super) const SKIPPED: &str =
    "an operator had the entry skipped (conclave recover --trap-entry)";

/// Returns the name of the metadata entry for an entry's trap.
pub(super) fn trap_record(index: u64) -> String {
    format!("{TRAP_PREFIX}{index:020}")
}

/// Returns the recorded traps.
pub(super) fn recorded_traps(log: &LogStore) -> io::Result<BTreeMap<u64, Trap>> {
    let mut traps = BTreeMap::new();
    for (name, record) in log.list_records(TRAP_PREFIX)? {
        let index = name.strip_prefix(TRAP_PREFIX).and_then(|index| index.parse().ok());
        let trap = conclave_proto::raft::Trap::decode(Bytes::from(record)).ok();
        if let (Some(index), Some(trap)) = (index, trap) {
            traps.insert(index, trap_from_wire(trap));
        }
    }
    Ok(traps)
}

impl Traps {
    /// Removes and returns the traps that a new snapshot makes unnecessary.
    fn snapshot_taken(&mut self, index: u64) -> impl Iterator<Item = u64> + use<> {
        let covered = std::mem::replace(&mut self.newest_snapshot, index);
        let later = self.by_index.split_off(&(covered + 1));
        std::mem::replace(&mut self.by_index, later).into_keys()
    }
}

impl LocalEntrySource {
    /// Opens the entry source and reads the recorded traps.
    pub fn open(
        log: LogStore,
        snapshots: SnapshotStore,
        components: Arc<Components>,
    ) -> io::Result<Arc<Self>> {
        let traps = Traps { by_index: recorded_traps(&log)?, ..Traps::default() };
        for (index, trap) in &traps.by_index {
            if trap.message == SKIPPED {
                tracing::warn!(index, "{SKIPPED}");
            }
        }
        Ok(Arc::new(Self { log, snapshots, components, traps: Mutex::new(traps) }))
    }

    /// Records a new snapshot, and removes the traps that the previous snapshot covers.
    pub(super) fn snapshot_taken(&self, index: u64) {
        let mut traps = self.traps();
        for index in traps.snapshot_taken(index) {
            if let Err(error) = self.log.put_record(&trap_record(index), None) {
                tracing::warn!(%error, "cannot remove a recorded trap");
            }
        }
    }

    fn traps(&self) -> MutexGuard<'_, Traps> {
        self.traps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EntrySource for LocalEntrySource {
    fn snapshot(&self) -> Result<Option<SavedState>, EntrySourceError> {
        let file = self.snapshots.latest().map_err(unreadable)?;
        let saved = file.as_ref().map(|file| saved_state(file, &self.components));
        let saved = saved.transpose().map_err(unreadable)?;
        Ok(saved.map(|(saved, _)| saved))
    }

    fn entries(&self, from: u64, to: u64) -> Result<Vec<machine::Entry>, EntrySourceError> {
        let mut found = Vec::new();
        let mut next = from;
        while next <= to && found.is_empty() {
            let entries = self.log.entries(next..to + 1, REPLAY_BYTES_MAX).map_err(unreadable)?;
            match entries.first() {
                Some(first) if first.log_id.index == next => {}
                _ => return Err(EntrySourceError::Gap(next)),
            }
            next += entries.len() as u64;
            found.extend(
                entries.into_iter().filter_map(|entry| self.components.machine_entry(entry)),
            );
        }
        Ok(found)
    }

    fn record_trap(&self, index: u64, trap: &Trap) {
        self.traps().by_index.insert(index, trap.clone());
        let record = trap_to_wire(trap).encode_to_vec();
        if let Err(error) = self.log.put_record(&trap_record(index), Some(record)) {
            // The trap is not lost: a replay runs into it again.
            tracing::warn!(index, %error, "cannot record a trap");
        }
    }

    fn trapped(&self, index: u64) -> Option<Trap> {
        self.traps().by_index.get(&index).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conclave_types::TrapKind;

    /// A replay that started from the previous snapshot still needs the traps in between.
    #[test]
    fn traps_are_kept_for_one_more_snapshot() {
        let mut traps = Traps::default();
        for index in [5, 15] {
            let trap = Trap { kind: TrapKind::Panic, message: "x".into() };
            traps.by_index.insert(index, trap);
        }
        let forgotten = [10, 20, 30].map(|index| traps.snapshot_taken(index).collect::<Vec<_>>());
        assert_eq!(forgotten, [vec![], vec![5], vec![15]]);
    }
}
