//! Snapshots of this node's own state: taken on request, given to openraft, and replaced if damaged.

use std::{sync::Arc, time::Duration};

use openraft::async_runtime::WatchReceiver;
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::Transfers;
use crate::{node::Node, state_machine::Building};
use conclave_storage::{SnapshotFile, SnapshotStore, raft_types::LogId};
use conclave_types::error::Error;

/// The pause before openraft is triggered again while it has to act. openraft ignores a trigger
/// while it builds a snapshot, and this node's state machine while the replicas disagree. Neither
/// raises an event when a trigger would succeed.
const TRIGGER_INTERVAL: Duration = Duration::from_millis(50);
/// The pause before openraft is triggered again to receive a complete file.
const HAND_OVER_INTERVAL: Duration = Duration::from_secs(1);
/// The pause before the replacement of a damaged snapshot is retried.
const REPLACE_INTERVAL: Duration = Duration::from_secs(10);

fn index(log_id: Option<&LogId>) -> u64 {
    log_id.map_or(0, |log_id| log_id.index)
}

/// The snapshots of this node's own state.
pub(crate) struct Snapshots {
    node: Arc<Node>,
    building: Arc<Building>,
    files: SnapshotStore,
    transfers: Arc<Transfers>,
}

impl Snapshots {
    pub(crate) fn new(
        node: Arc<Node>,
        building: Arc<Building>,
        files: SnapshotStore,
        transfers: Arc<Transfers>,
    ) -> Self {
        Self { node, building, files, transfers }
    }

    /// Returns the newest snapshot on disk.
    pub(crate) async fn newest(&self) -> Result<Option<SnapshotFile>, Error> {
        let files = self.files.clone();
        let newest = spawn_blocking(move || files.latest()).await;
        let newest = newest.map_err(|error| Error::caused_by(Error::fatal, error))?;
        newest.map_err(|error| Error::caused_by(Error::fatal, error))
    }

    /// Takes a snapshot and waits until it is on disk. Returns the index that it covers.
    pub(crate) async fn take_now(&self) -> Result<u64, Error> {
        if let Some(why) = self.node.fatal_error() {
            return Err(Error::stopped(why));
        }
        if self.node.divergence.holds_snapshots() {
            return Err(Error::busy(
                "the replicas disagree and no majority decides, so no snapshot is taken: start the voters that are \
                 down, or see this node's log",
            ));
        }
        let mut metrics = self.node.raft.metrics();
        let target = index(metrics.borrow_watched().last_applied.as_ref());
        let snapshot = index(metrics.borrow_watched().snapshot.as_ref());
        if snapshot >= target {
            return Ok(snapshot);
        }
        let mut building = self.building.watch();
        let finished = building.borrow_and_update().finished;
        loop {
            // Repeated, because a snapshot that was already running may be of an older state.
            if self.building.wants(target) {
                self.node
                    .raft
                    .trigger()
                    .snapshot()
                    .await
                    .map_err(|fatal| self.node.stopped(fatal))?;
            }
            let snapshot = index(metrics.borrow_watched().snapshot.as_ref());
            if snapshot >= target {
                return Ok(snapshot);
            }
            tokio::select! {
                _ = building.changed() => {
                    let building = building.borrow_and_update();
                    if let Some(failure) = &building.failure
                        && building.finished > finished
                    {
                        return Err(Error::fatal(format!("no snapshot was taken: {failure}")));
                    }
                }
                changed = timeout(TRIGGER_INTERVAL, metrics.changed()) => {
                    if let Ok(Err(_)) = changed {
                        return Err(Error::shutting_down());
                    }
                }
            }
        }
    }

    /// Triggers openraft for each snapshot whose file is complete, until Raft has stopped.
    pub(crate) async fn hand_over(self: Arc<Self>) {
        let mut building = self.building.watch();
        while building.wait_for(|building| building.is_whole()).await.is_ok() {
            if self.node.raft.trigger().snapshot().await.is_err() {
                return;
            }
            let taken = building.wait_for(|building| !building.is_whole());
            let _ = timeout(HAND_OVER_INTERVAL, taken).await;
        }
    }

    /// Builds a new snapshot in place of a damaged one, until Raft has stopped.
    pub(crate) async fn replace_damaged(self: Arc<Self>) {
        let mut damage = self.transfers.watch_damage();
        loop {
            let damaged = match damage.wait_for(Option::is_some).await {
                Ok(damaged) => damaged.clone(),
                Err(_) => return,
            };
            let Some(damaged) = damaged else { continue };
            if let Ok(Some(file)) = self.newest().await
                && file.id() != damaged.id
            {
                tracing::info!(path = %damaged.path.display(), "the damaged snapshot has been replaced");
                self.transfers.replaced();
                continue;
            }
            let mut building = self.building.watch();
            let finished = building.borrow_and_update().finished;
            let begun = self
                .node
                .raft
                .with_state_machine(|machine| Box::pin(async move { machine.rebuild_snapshot() }));
            if begun.await.is_err() {
                return;
            }
            let _ = timeout(
                REPLACE_INTERVAL,
                building.wait_for(|building| building.finished > finished),
            )
            .await;
            if self.building.failure().is_some() {
                sleep(REPLACE_INTERVAL).await;
            }
        }
    }
}
