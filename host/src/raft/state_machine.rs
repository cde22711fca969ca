//! openraft's state machine: hands committed entries to the machine, and snapshots both ways.
//!
//! The machine lives in memory. After a restart openraft installs the newest snapshot and applies the
//! log again up to the committed index that was saved.
//!
//! A snapshot from a leader becomes the newest one on disk when the machine's turn to restore it has come:
//! before that, an instance that is rebuilt must not go past the entries that are still on their way to the
//! head, and a snapshot that the machine does not take must not replace one that it does.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt};
use openraft::{
    OptionalSend, RaftSnapshotBuilder,
    entry::RaftEntry,
    storage::{EntryResponder, RaftStateMachine},
};
use tokio::sync::Notify;

use super::snapshot::{self, OpenSnapshot};
use crate::{
    machine::{self, BatchItem, Done, HistoryError, SavedState, Worker},
    storage::{Identity, LogStore, SnapshotFile, SnapshotStore},
    types::{
        Applied,
        raft::{Entry, LogId, Payload, SnapshotMeta, StoredMembership, TypeConfig},
    },
};

/// Entries handed to the machine at once. One hand-over costs two thread switches, so a few hundred
/// make it negligible; more would only delay the first answers.
const BATCH_ENTRIES_MAX: usize = 256;

/// openraft's view of the machine.
pub(super) struct StateMachine {
    worker: Worker,
    log: LogStore,
    snapshots: SnapshotStore,
    identity: Identity,
    applied: Arc<Mutex<SnapshotMeta>>,
    building: Arc<Building>,
}

impl StateMachine {
    /// With nothing applied.
    pub(super) fn new(
        worker: Worker,
        log: LogStore,
        snapshots: SnapshotStore,
        identity: Identity,
        building: Arc<Building>,
    ) -> Self {
        Self { worker, log, snapshots, identity, applied: Arc::default(), building }
    }

    fn applied(&self) -> MutexGuard<'_, SnapshotMeta> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what the host itself needs of an entry and turns the rest into work for the machine.
    fn prepare(&self, (entry, responder): EntryResponder<TypeConfig>) -> BatchItem {
        let index = entry.log_id.index;
        let mut applied = self.applied();
        applied.last_log_id = Some(entry.log_id);
        if let Payload::Membership(membership) = &entry.payload {
            let stored = StoredMembership::new(applied.last_log_id, membership.clone());
            applied.last_membership = stored;
        }
        match machine_entry(entry) {
            Some(entry) => {
                let done = responder.map(|responder| -> Done {
                    Box::new(move |outcome| {
                        responder.send(Applied { index, outcome: Some(outcome) });
                    })
                });
                (index, Some(entry), done)
            }
            None => {
                if let Some(responder) = responder {
                    responder.send(Applied { index, outcome: None });
                }
                (index, None, None)
            }
        }
    }

    /// What to restore from a snapshot. The file is installed when the machine has read all of it, on the
    /// head's thread: after all entries before, and before anything that comes next.
    fn restored_state(&self, file: SnapshotFile) -> io::Result<SavedState> {
        let mut saved = saved_state(&file)?;
        let snapshots = self.snapshots.clone();
        let install = std::iter::once_with(move || snapshots.install(&file).err());
        let failed = install.flatten().map(|error| Err(unreadable(error)));
        saved.chunks = Box::new(saved.chunks.chain(failed));
        Ok(saved)
    }

    /// Writes the state as it is now to a file, in the background.
    fn build(&self) {
        let (worker, snapshots, identity) =
            (self.worker.clone(), self.snapshots.clone(), self.identity.clone());
        let (applied, building) = (self.applied.clone(), self.building.clone());
        tokio::spawn(async move {
            for attempt in 1.. {
                let meta = applied.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let result = save(&worker, &snapshots, &identity, &meta).await;
                match result {
                    Ok(file) => return building.finished(Ok(file)),
                    // Most often the reader died under a query, and there is a new one by now.
                    Err(error) if attempt < BUILD_ATTEMPTS => {
                        tracing::info!(%error, "a snapshot is begun again");
                        tokio::time::sleep(BUILD_PAUSE).await;
                    }
                    Err(error) => return building.finished(Err(error)),
                }
            }
        });
    }
}

async fn save(
    worker: &Worker,
    snapshots: &SnapshotStore,
    identity: &Identity,
    meta: &SnapshotMeta,
) -> io::Result<SnapshotFile> {
    let index = meta.last_log_id.map_or(0, |log_id| log_id.index);
    let state = worker.snapshot(index).await.map_err(io::Error::other)?;
    snapshot::save(snapshots, identity, meta, state).await
}

/// A snapshot on its way to disk.
///
/// For openraft an error while a snapshot is built ends the node, and a machine may trap over its own
/// snapshot. So openraft is told that there is none yet, until the file is whole: then `ready` is
/// notified, whoever listens makes openraft ask again, and it is handed the file. A snapshot that
/// fails costs only that the log is kept longer.
#[derive(Default)]
pub(super) struct Building {
    state: Mutex<BuildState>,
    /// Notified when a file is whole, and when it has failed for good.
    pub ready: Notify,
    /// Why the last one failed, if it did.
    failure: Mutex<Option<String>>,
    /// The index of the last one that was handed over.
    handed_over: AtomicU64,
}

#[derive(Default)]
enum BuildState {
    #[default]
    Idle,
    Running,
    Whole(SnapshotFile),
}

/// A reader that dies under a query is replaced within a moment.
const BUILD_ATTEMPTS: u32 = 5;
const BUILD_PAUSE: Duration = Duration::from_millis(200);

impl Building {
    fn finished(&self, result: io::Result<SnapshotFile>) {
        let (state, failure) = match result {
            Ok(file) => (BuildState::Whole(file), None),
            Err(error) => {
                tracing::error!(%error, "no snapshot was taken; the log is kept");
                (BuildState::Idle, Some(error.to_string()))
            }
        };
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        self.ready.notify_waiters();
    }

    /// Why the last snapshot failed, if it did.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a file waits to be handed over.
    pub(super) fn is_whole(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(*state, BuildState::Whole(_))
    }

    /// Whether nothing is on its way that openraft has yet to hear of, nor has it been handed a
    /// snapshot up to `index`.
    pub(super) fn wants(&self, index: u64) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(*state, BuildState::Idle) && self.handed_over.load(Ordering::Relaxed) < index
    }

    /// Takes the file if it is whole; says whether one is to be begun otherwise.
    fn take_or_begin(&self) -> Result<SnapshotFile, bool> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, BuildState::Running) {
            BuildState::Idle => Err(true),
            BuildState::Running => Err(false),
            BuildState::Whole(file) => {
                *state = BuildState::Idle;
                self.handed_over.store(file.index(), Ordering::Relaxed);
                Ok(file)
            }
        }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = FinishedSnapshot;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let applied = self.applied();
        Ok((applied.last_log_id, applied.last_membership.clone()))
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
            // An entry may be committed by the others' disks. Whoever is answered by this node, or
            // reads from it, may count on its own as well.
            if let Some((index, ..)) = work.last() {
                self.log.synced(*index).await?;
            }
            self.worker.apply(work).await.map_err(io::Error::other)?;
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<FinishedSnapshot> {
        if force {
            return Some(self.get_snapshot_builder().await);
        }
        match self.building.take_or_begin() {
            Ok(file) => Some(FinishedSnapshot(Some(file), self.snapshots.clone())),
            Err(begin) => {
                if begin {
                    self.build();
                }
                None
            }
        }
    }

    async fn get_snapshot_builder(&mut self) -> FinishedSnapshot {
        FinishedSnapshot(None, self.snapshots.clone())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        file: SnapshotFile,
    ) -> io::Result<()> {
        let header = snapshot::header(&file)?;
        snapshot::check_header(&header, &self.identity).map_err(io::Error::other)?;
        let saved = self.restored_state(file)?;
        self.worker.restore(saved).await.map_err(io::Error::other)?;
        *self.applied() = meta.clone();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<OpenSnapshot>> {
        let file = self.snapshots.latest().map_err(io::Error::other)?;
        file.map(snapshot::opened).transpose()
    }
}

/// A snapshot whose file is whole, or failing that the newest there is.
pub(super) struct FinishedSnapshot(Option<SnapshotFile>, SnapshotStore);

impl RaftSnapshotBuilder<TypeConfig> for FinishedSnapshot {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<OpenSnapshot> {
        let file = match self.0.take() {
            Some(file) => Some(file),
            None => self.1.latest().map_err(io::Error::other)?,
        };
        let file = file.ok_or_else(|| io::Error::other("there is no snapshot yet"))?;
        snapshot::opened(file)
    }
}

pub(super) fn saved_state(file: &SnapshotFile) -> io::Result<SavedState> {
    let header = snapshot::header(file)?;
    let chunks = file.read().map_err(io::Error::other)?;
    Ok(SavedState {
        index: header.last_log_id.as_ref().map_or(0, |log_id| log_id.index),
        time_ms: header.time_ms,
        state_version: header.state_version,
        chunks: Box::new(chunks.map(|chunk| chunk.map_err(unreadable))),
    })
}

pub(super) fn unreadable(error: impl std::fmt::Display) -> HistoryError {
    HistoryError::Unreadable(error.to_string())
}

pub(super) fn machine_entry(entry: Entry) -> Option<machine::Entry> {
    let index = entry.index();
    match entry.payload {
        Payload::Normal(command) => {
            Some(machine::Entry { index, time_ms: command.time_ms, command: command.kind })
        }
        Payload::Blank | Payload::Membership(_) => None,
    }
}
