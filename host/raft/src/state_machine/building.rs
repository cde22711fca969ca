//! Building of snapshots in the background, and their delivery to openraft.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use openraft::RaftSnapshotBuilder;
use tokio::{sync::watch, task::spawn_blocking};

use super::StateMachine;
use crate::{
    components::Components,
    divergence::Divergence,
    host_state::HostState,
    snapshot::{self, OpenSnapshot, SnapshotData},
    supervise::Supervisor,
};
use conclave_machine::{SnapshotError, Worker};
use conclave_storage::{Identity, SnapshotFile, SnapshotStore, raft_types::TypeConfig};
use conclave_types::{Trap, TrapKind};

impl StateMachine {
    /// Starts building a snapshot, unless one is being built or the replica is in quarantine.
    pub(crate) fn rebuild_snapshot(&self) {
        if !self.divergence.is_stopped() && self.building.begin() {
            self.build();
        }
    }

    /// Writes the present state to a file, in the background.
    pub(super) fn build(&self) {
        let building = self.building.clone();
        let source = Source {
            worker: self.worker.clone(),
            snapshots: self.snapshots.clone(),
            identity: self.identity.clone(),
            components: self.components.clone(),
            applied: self.applied.clone(),
            divergence: self.divergence.clone(),
            building: self.building.clone(),
        };
        self.building.supervisor.spawn("snapshot", async move {
            for attempt in 1.. {
                match source.save().await {
                    Ok(file) => return building.finished(Ok(file)),
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        return building.finished(Err(error));
                    }
                    Err(error) if attempt < attempts_max(&error) => {
                        tracing::info!(%error, "retrying to take a snapshot");
                        let pause = BUILD_PAUSE_MIN.saturating_mul(1 << (attempt - 1).min(10));
                        tokio::time::sleep(pause.min(BUILD_PAUSE_MAX)).await;
                    }
                    Err(error) => return building.finished(Err(error)),
                }
            }
        });
    }
}

/// The parts of the node that a snapshot is made from.
struct Source {
    worker: Worker,
    snapshots: SnapshotStore,
    identity: Identity,
    components: Arc<Components>,
    applied: Arc<Mutex<HostState>>,
    divergence: Arc<Divergence>,
    building: Arc<Building>,
}

impl Source {
    async fn save(&self) -> io::Result<SnapshotFile> {
        let (state, index, applied, origin) = {
            // The lock keeps later entries from being fed before the standby has noted the request.
            let applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
            let index = applied.meta.last_log_id.map_or(0, |log_id| log_id.index);
            (self.worker.snapshot(index), index, applied.clone(), self.divergence.origin())
        };
        // Entries up to `index` may still wait for this node's disk. Both futures wait for them.
        let (state, digest) = tokio::join!(state, self.worker.digest_at(index));
        let (state, digest) = (state.map_err(io::Error::other)?, digest.map_err(io::Error::other)?);
        if digest.is_none() && self.worker.keeps_digest() {
            let why = format!("the digest at {index} is no longer known");
            return Err(io::Error::other(why));
        }
        let saved =
            snapshot::save(&self.snapshots, &self.identity, &applied, state, digest, origin);
        let file = saved.await?;
        self.check_restorable(&file).await?;
        if self.divergence.is_stopped() {
            return Err(io::Error::other(
                "this replica has diverged meanwhile, so its state is not saved",
            ));
        }
        let snapshots = self.snapshots.clone();
        let installing = spawn_blocking(move || snapshots.install(&file));
        installing.await.map_err(io::Error::other)?.map_err(io::Error::other)
    }

    /// Checks that the state machine accepts its own snapshot. The log before a snapshot is purged,
    /// so a snapshot that cannot be restored must never be the only copy of the state.
    async fn check_restorable(&self, file: &SnapshotFile) -> io::Result<()> {
        let (whole, components) = (file.clone(), self.components.clone());
        let reading = spawn_blocking(move || snapshot::saved_state(&whole, &components));
        let (saved, _) = reading.await.map_err(io::Error::other)??;
        let memory_bytes = self.worker.replace_standby(saved).await.map_err(|fatal_error| {
            let reason =
                format!("the state machine does not accept its own snapshot: {fatal_error}");
            io::Error::new(io::ErrorKind::InvalidData, reason)
        })?;
        self.building.restored_bytes.store(memory_bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// The snapshot that is being built.
///
/// An error from a snapshot builder stops the node in openraft, and a state machine may trap while
/// it saves its state. So openraft gets no builder until the file is complete. Then the listener of
/// [`Building::watch`] triggers openraft again, and openraft receives the file. If a snapshot
/// fails, the only cost is that the log is kept longer.
#[derive(Default)]
pub(crate) struct Building {
    progress: watch::Sender<Progress>,
    /// The linear memory used to restore the last snapshot, in bytes; 0 if none was restored yet.
    restored_bytes: AtomicU64,
    /// The index of the last snapshot that openraft received.
    handed_over: AtomicU64,
    /// Supervises the state machine's background tasks.
    pub(super) supervisor: Supervisor,
}

/// The progress of builds.
#[derive(Default)]
pub(crate) struct Progress {
    state: BuildState,
    /// The reason why the last build failed, if it did.
    pub(crate) failure: Option<String>,
    /// The number of builds that have ended.
    pub(crate) finished: u64,
}

impl Progress {
    /// Returns whether a complete file waits for openraft.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.state, BuildState::Whole(_))
    }
}

#[derive(Default)]
enum BuildState {
    #[default]
    Idle,
    Running,
    Whole(SnapshotFile),
}

/// The maximum number of attempts for one snapshot.
const BUILD_ATTEMPTS: u32 = 5;
/// The same if the standby is lost each time: calls that trap can replace it many times in a row.
const BUILD_ATTEMPTS_LOST: u32 = 20;
/// The pause after the first attempt. Each further attempt doubles it.
const BUILD_PAUSE_MIN: Duration = Duration::from_millis(200);
const BUILD_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Returns the number of attempts that an error permits.
fn attempts_max(error: &io::Error) -> u32 {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<SnapshotError>());
    match cause {
        Some(SnapshotError::Lost) => BUILD_ATTEMPTS_LOST,
        // For example, a snapshot that never ends: the next attempt would write as much again.
        Some(SnapshotError::Trap(Trap { kind: TrapKind::BadAnswer, .. })) => 1,
        _ => BUILD_ATTEMPTS,
    }
}

impl Building {
    pub(crate) fn new(supervisor: Supervisor) -> Self {
        Self { supervisor, ..Self::default() }
    }

    fn finished(&self, result: io::Result<SnapshotFile>) {
        if let Err(error) = &result {
            tracing::error!(%error, "no snapshot was taken; the log is kept");
        }
        let (state, failure) = match result {
            Ok(file) => (BuildState::Whole(file), None),
            Err(error) => (BuildState::Idle, Some(error.to_string())),
        };
        self.progress.send_modify(|progress| {
            let finished = progress.finished + 1;
            *progress = Progress { state, failure, finished };
        });
    }

    /// Returns the progress of builds, and its changes.
    pub(crate) fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Returns the reason why the last snapshot failed, if it did.
    pub(crate) fn failure(&self) -> Option<String> {
        self.progress.borrow().failure.clone()
    }

    /// Returns the linear memory used to restore the last snapshot, in bytes; 0 if none was restored yet.
    pub(crate) fn restored_bytes(&self) -> u64 {
        self.restored_bytes.load(Ordering::Relaxed)
    }

    /// Returns whether no snapshot is being built or waits for openraft, and openraft has
    /// received none up to `index`.
    pub(crate) fn wants(&self, index: u64) -> bool {
        let is_idle = matches!(self.progress.borrow().state, BuildState::Idle);
        is_idle && self.handed_over.load(Ordering::Relaxed) < index
    }

    /// Marks a build as started. Returns `false` if one is running or complete.
    fn begin(&self) -> bool {
        self.progress.send_if_modified(|progress| {
            let is_idle = matches!(progress.state, BuildState::Idle);
            if is_idle {
                progress.state = BuildState::Running;
            }
            is_idle
        })
    }

    /// Takes the file if it is complete. Otherwise the error is whether the caller must start a build.
    pub(super) fn take_or_begin(&self) -> Result<SnapshotFile, bool> {
        let mut taken = Err(false);
        self.progress.send_if_modified(|progress| {
            match std::mem::replace(&mut progress.state, BuildState::Running) {
                BuildState::Idle => taken = Err(true),
                BuildState::Running => {}
                BuildState::Whole(file) => {
                    progress.state = BuildState::Idle;
                    self.handed_over.store(file.index(), Ordering::Relaxed);
                    taken = Ok(file);
                }
            }
            !matches!(taken, Err(false))
        });
        taken
    }
}

/// A complete snapshot file, or else the newest snapshot on disk.
pub(crate) struct FinishedSnapshot(pub(super) Option<SnapshotFile>, pub(super) SnapshotStore);

impl RaftSnapshotBuilder<TypeConfig> for FinishedSnapshot {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<OpenSnapshot> {
        let file = match self.0.take() {
            Some(file) => Some(file),
            None => self.1.latest().map_err(io::Error::other)?,
        };
        let file = file.ok_or_else(|| io::Error::other("there is no snapshot yet"))?;
        snapshot::opened(file)
    }
}
