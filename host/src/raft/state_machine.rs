//! openraft's state machine: hands committed entries to the machine, and snapshots both ways.
//!
//! The machine lives in memory. After a restart openraft installs the newest snapshot and applies the
//! log again up to the committed index that was saved.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::{
    OptionalSend, RaftSnapshotBuilder,
    entry::RaftEntry,
    storage::{EntryResponder, RaftStateMachine},
};

use super::snapshot::{self, OpenSnapshot};
use crate::{
    machine::{self, Done, History, HistoryError, SavedState, Worker},
    storage::{Identity, LogStore, SnapshotFile, SnapshotStore},
    types::{
        Applied, CommandKind, Outcome, Trap,
        convert::{trap_from_wire, trap_to_wire},
        raft::{Entry, LogId, Payload, SnapshotMeta, StoredMembership, TypeConfig},
    },
};

/// Entries handed to the machine at once. One hand-over costs two thread switches, so a few hundred
/// make it negligible; more would only delay the first answers.
const BATCH_ENTRIES_MAX: usize = 256;

/// openraft's view of the machine.
pub struct StateMachine {
    worker: Worker,
    snapshots: SnapshotStore,
    identity: Identity,
    last_applied: Option<LogId>,
    membership: StoredMembership,
}

impl StateMachine {
    /// With nothing applied.
    pub fn new(worker: Worker, snapshots: SnapshotStore, identity: Identity) -> Self {
        Self {
            worker,
            snapshots,
            identity,
            last_applied: None,
            membership: StoredMembership::default(),
        }
    }

    /// Notes what the host itself needs of an entry and turns the rest into work for the machine.
    fn prepare(&mut self, (entry, responder): EntryResponder<TypeConfig>) -> machine::Work {
        let index = entry.log_id.index;
        self.last_applied = Some(entry.log_id);
        let done = responder.map(|responder| -> Done {
            Box::new(move |outcome: Option<Outcome>| responder.send(Applied { index, outcome }))
        });
        let entry = match entry.payload {
            Payload::Normal(command) => {
                let CommandKind::Call(call) = command.kind;
                Some(machine::Entry { index, time_ms: command.time_ms, call })
            }
            Payload::Blank => None,
            Payload::Membership(membership) => {
                self.membership = StoredMembership::new(self.last_applied, membership);
                None
            }
        };
        machine::Work { index, entry, done }
    }

    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.last_applied, last_membership: self.membership.clone() }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut batches = entries.ready_chunks(BATCH_ENTRIES_MAX);
        while let Some(batch) = batches.next().await {
            let mut work = Vec::with_capacity(batch.len());
            for item in batch {
                work.push(self.prepare(item?));
            }
            self.worker.apply(work).await.map_err(io::Error::other)?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let index = self.last_applied.map_or(0, |log_id| log_id.index);
        SnapshotBuilder {
            // Asked for now, so that it is the state at this index that is captured.
            state: Some(self.worker.snapshot(index)),
            worker: self.worker.clone(),
            index,
            meta: self.meta(),
            snapshots: self.snapshots.clone(),
            identity: self.identity.clone(),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        file: SnapshotFile,
    ) -> io::Result<()> {
        let header = snapshot::header(&file)?;
        snapshot::check_header(&header, &self.identity).map_err(io::Error::other)?;
        self.worker.restore(saved_state(&file)?).await.map_err(io::Error::other)?;
        self.last_applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<OpenSnapshot>> {
        let file = self.snapshots.latest().map_err(io::Error::other)?;
        file.map(snapshot::opened).transpose()
    }
}

/// Writes the state at one index to a file, while later entries are applied.
pub struct SnapshotBuilder {
    state: Option<machine::SnapshotRequest>,
    worker: Worker,
    index: u64,
    meta: SnapshotMeta,
    snapshots: SnapshotStore,
    identity: Identity,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFile;

    /// An error here would stop the node. A reader that dies under a query while it is being read is
    /// no reason for that: the same state is then built once more from the log.
    async fn build_snapshot(&mut self) -> io::Result<OpenSnapshot> {
        if let Some(request) = self.state.take() {
            match self.save(request).await {
                Ok(snapshot) => return Ok(snapshot),
                Err(error) => tracing::warn!(%error, "a snapshot is begun again"),
            }
        }
        let again = self.worker.rebuild_at(self.index);
        self.save(again).await
    }
}

impl SnapshotBuilder {
    async fn save(&self, request: machine::SnapshotRequest) -> io::Result<OpenSnapshot> {
        let state = request.await.map_err(io::Error::other)?;
        let file = snapshot::save(&self.snapshots, &self.identity, &self.meta, state).await?;
        snapshot::opened(file)
    }
}

fn saved_state(file: &SnapshotFile) -> io::Result<SavedState> {
    let header = snapshot::header(file)?;
    let chunks = file.read().map_err(io::Error::other)?;
    Ok(SavedState {
        index: header.last_log_id.as_ref().map_or(0, |log_id| log_id.index),
        time_ms: header.time_ms,
        state_version: header.state_version,
        chunks: Box::new(chunks.map(|chunk| chunk.map_err(HistoryError::new))),
    })
}

/// What an instance of the machine can be rebuilt from: the newest snapshot and the log after it.
pub struct LocalHistory {
    log: LogStore,
    snapshots: SnapshotStore,
    /// The traps since the newest snapshot, so that replaying the log need not run into them again.
    traps: Mutex<BTreeMap<u64, Trap>>,
}

/// Entries handed out at once, by their size.
const REPLAY_BYTES_MAX: usize = 4 * 1024 * 1024;
const TRAP_PREFIX: &str = "trap/";

fn trap_record(index: u64) -> String {
    format!("{TRAP_PREFIX}{index:020}")
}

impl LocalHistory {
    /// Reads the traps that were recorded.
    pub fn open(log: LogStore, snapshots: SnapshotStore) -> io::Result<Arc<Self>> {
        use prost::Message;
        let mut traps = BTreeMap::new();
        for (name, record) in log.list_records(TRAP_PREFIX)? {
            let index = name.strip_prefix(TRAP_PREFIX).and_then(|index| index.parse().ok());
            let trap = crate::proto::raft::Trap::decode(Bytes::from(record)).ok();
            if let (Some(index), Some(trap)) = (index, trap) {
                traps.insert(index, trap_from_wire(trap));
            }
        }
        Ok(Arc::new(Self { log, snapshots, traps: Mutex::new(traps) }))
    }

    /// Forgets the traps that a snapshot covers.
    pub fn forget_traps(&self, snapshot_index: u64) {
        let mut traps = self.traps.lock().unwrap_or_else(PoisonError::into_inner);
        let later = traps.split_off(&(snapshot_index + 1));
        for index in std::mem::replace(&mut *traps, later).into_keys() {
            if let Err(error) = self.log.put_record(&trap_record(index), None) {
                tracing::warn!(%error, "cannot forget a trap");
            }
        }
    }
}

impl History for LocalHistory {
    fn snapshot(&self) -> Result<Option<SavedState>, HistoryError> {
        let file = self.snapshots.latest().map_err(HistoryError::new)?;
        file.as_ref().map(saved_state).transpose().map_err(HistoryError::new)
    }

    fn entries(&self, from: u64, to: u64) -> Result<Vec<machine::Entry>, HistoryError> {
        let mut found = Vec::new();
        let mut next = from;
        while next <= to && found.is_empty() {
            let entries =
                self.log.entries(next..to + 1, REPLAY_BYTES_MAX).map_err(HistoryError::new)?;
            match entries.first() {
                Some(first) if first.log_id.index == next => {}
                _ => return Err(HistoryError::gap(next)),
            }
            next += entries.len() as u64;
            found.extend(entries.into_iter().filter_map(machine_entry));
        }
        Ok(found)
    }

    fn record_trap(&self, index: u64, trap: &Trap) {
        use prost::Message;
        let mut traps = self.traps.lock().unwrap_or_else(PoisonError::into_inner);
        traps.insert(index, trap.clone());
        let record = trap_to_wire(trap).encode_to_vec();
        if let Err(error) = self.log.put_record(&trap_record(index), Some(record)) {
            // Not lost: a replay runs into the trap again.
            tracing::warn!(index, %error, "cannot record a trap");
        }
    }

    fn trapped(&self, index: u64) -> Option<Trap> {
        self.traps.lock().unwrap_or_else(PoisonError::into_inner).get(&index).cloned()
    }
}

fn machine_entry(entry: Entry) -> Option<machine::Entry> {
    let index = entry.index();
    match entry.payload {
        Payload::Normal(command) => {
            let CommandKind::Call(call) = command.kind;
            Some(machine::Entry { index, time_ms: command.time_ms, call })
        }
        Payload::Blank | Payload::Membership(_) => None,
    }
}
