//! Repairs a quarantined replica: fetches a healthy peer's snapshot and replaces the state with it.
//!
//! openraft takes no part in the repair. It ignores a snapshot that does not reach beyond its
//! commit index, and the log of a quarantined node continues, so that every snapshot is soon behind
//! that index. The log itself is correct: after the snapshot, the state machine applies the missed
//! entries from the log, in
//! [`StateMachine::begin_repair`](crate::state_machine::StateMachine::begin_repair).

use std::{io, sync::Weak, time::Duration};

use openraft::async_runtime::WatchReceiver;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};
use tonic::Status;

use super::{Quarantine, consistency_checks::Heard};
use crate::{Inner, Replica, network::peer::ConnectionClass, snapshot};
use conclave_proto::{
    convert::consistency_check_to_wire,
    raft::{FetchSnapshotRequest, SnapshotPart, SnapshotStart, snapshot_part::Part},
};
use conclave_storage::{
    SnapshotFile,
    convert::vote_from_wire,
    raft_types::{LogId, Member, Vote},
};
use conclave_types::{ConsistencyCheck, NodeId, error::Error};

/// The interval at which the task checks that the replica still exists.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The pause before a failed repair is retried.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The time that a peer waits until it has applied the requested index, and that a node waits until
/// its log has reached the received snapshot.
const REACH_TIMEOUT: Duration = Duration::from_secs(10);
/// The interval at which a repair checks whether its entries have been applied.
const APPLY_INTERVAL: Duration = Duration::from_millis(1);

/// Repairs this node whenever it is in quarantine, until the replica is gone.
pub(crate) async fn run(replica: Weak<Inner>) {
    loop {
        let Some(divergence) = replica.upgrade().map(|inner| inner.divergence.clone()) else {
            return;
        };
        let mut refusing = divergence.watch();
        let Some(quarantine) = divergence.quarantine() else {
            let _ = timeout(POLL_INTERVAL, refusing.changed()).await;
            continue;
        };
        let Some(inner) = replica.upgrade() else { return };
        if inner.is_leader() {
            Replica(inner.clone()).hand_over_leadership(&quarantine).await;
        }
        drop(inner);
        let pause = divergence.pause();
        if !pause.is_zero() {
            sleep(pause.min(POLL_INTERVAL)).await;
            continue;
        }
        let Some(inner) = replica.upgrade() else { return };
        if let Err(error) = Replica(inner).repair(&quarantine).await {
            tracing::warn!(error, "cannot repair this node yet");
            sleep(RETRY_INTERVAL).await;
        }
    }
}

impl Replica {
    /// Transfers leadership to a voter with the majority's digest. If no voter takes over, this
    /// node continues to lead, and is repaired as the leader.
    async fn hand_over_leadership(&self, quarantine: &Quarantine) {
        let ConsistencyCheck { index, digest, .. } = quarantine.consistency_check;
        let mut others = self.voters();
        others.retain(|(node_id, _)| *node_id != self.0.node_id());
        let answers = self.digests(&others, index).await.answers;
        let agrees = |node_id: NodeId| {
            answers.get(&node_id).is_some_and(|testimony| testimony.digest == digest)
        };
        match self.transfer_leadership(agrees).await {
            Ok(to) => tracing::warn!(to, "leadership transferred: this node has diverged"),
            Err(why) => tracing::warn!(
                why,
                "no voter takes over: this node has diverged and continues to lead"
            ),
        }
    }

    /// Fetches a snapshot and replaces the state with it.
    async fn repair(&self, quarantine: &Quarantine) -> Result<(), String> {
        let leader = self.0.leader().map(|(node_id, _)| node_id);
        let mut others = self.voters();
        others.retain(|(node_id, _)| *node_id != self.0.node_id());
        // The leader is certainly running.
        others.sort_by_key(|(node_id, _)| (Some(*node_id) != leader, *node_id));
        let mut reasons = Vec::new();
        for (node_id, member) in others {
            // Ends with the replica, because the data directory stays locked while this runs.
            let fetched = tokio::select! {
                fetched = self.fetch(node_id, &member, quarantine) => fetched,
                () = self.stopped() => return Err("this node is stopping".to_owned()),
            };
            match fetched {
                Ok(file) => return self.put_in_place(file).await,
                Err(reason) => reasons.push(format!("node {node_id}: {reason}")),
            }
        }
        Err(format!("no healthy peer sent its snapshot: {}", reasons.join("; ")))
    }

    /// Waits until openraft has stopped.
    async fn stopped(&self) {
        let mut metrics = self.0.raft.metrics();
        while metrics.borrow_watched().running_state.is_ok() && metrics.changed().await.is_ok() {}
    }

    async fn fetch(
        &self,
        node_id: NodeId,
        member: &Member,
        quarantine: &Quarantine,
    ) -> Result<SnapshotFile, String> {
        let peer = self.0.peers.peer(node_id, member);
        let client = peer.client(ConnectionClass::Snapshot).await;
        let mut client = client.map_err(|error| error.to_string())?;
        let index_min = quarantine.at.max(self.0.worker.applied());
        let consistency_check = Some(consistency_check_to_wire(&quarantine.consistency_check));
        let failed = |status: Status| peer.failed(ConnectionClass::Snapshot, status).to_string();
        let answer =
            client.fetch_snapshot(FetchSnapshotRequest { consistency_check, index_min }).await;
        let mut parts = answer.map_err(failed)?.into_inner();
        let Some(SnapshotPart { part: Some(Part::Start(start)) }) =
            parts.message().await.map_err(failed)?
        else {
            return Err("the peer sent a snapshot without a header".to_owned());
        };
        let SnapshotStart { vote, header, .. } = start;
        let (vote, mut header) = (vote.ok_or("no vote")?, header.ok_or("no header")?);
        snapshot::note_origin(&mut header, node_id);
        snapshot::check_header(&header, &self.0.local.identity)?;
        snapshot::check_coverage(&header, &vote_from_wire(&vote))?;
        let index = header.last_log_id.as_ref().map_or(0, |log_id| log_id.index);
        if index < index_min {
            return Err(format!("its snapshot reaches index {index}, but {index_min} is needed"));
        }
        if snapshot::digest(&header)?.is_none() {
            return Err("its snapshot has no digest of this version's algorithm".to_owned());
        }
        tracing::info!(from = node_id, index, "receiving a snapshot to repair with");
        snapshot::receive(header, parts, self.0.snapshots.clone())
            .await
            .map_err(|status| status.message().to_owned())
    }

    /// Waits until the log has reached the snapshot's index, and replaces the state.
    async fn put_in_place(&self, file: SnapshotFile) -> Result<(), String> {
        let index = file.index();
        let applied = |metrics: &openraft::RaftMetrics<_>| {
            metrics.last_applied.as_ref().map_or(0, |log_id: &LogId| log_id.index)
        };
        let until = Instant::now() + REACH_TIMEOUT;
        let mut metrics = self.0.raft.metrics();
        while applied(&metrics.borrow_watched()) < index {
            if Instant::now() >= until {
                return Err(format!("this node's log has not reached index {index} yet"));
            }
            let _ = timeout(POLL_INTERVAL, metrics.changed()).await;
        }
        // A restart begins with the file and continues in the log, so the log on disk
        // must reach the file too.
        self.0.log.synced(index).await.map_err(|error| error.to_string())?;
        let accepted = snapshot::accept(&file, &self.0.worker, &self.0.components).await;
        let accepted = accepted.map_err(|error| error.to_string())?;
        let begun = self.0.raft.with_state_machine(move |machine| {
            Box::pin(async move { machine.begin_repair(file, accepted).await })
        });
        let begun: io::Result<()> = begun.await.map_err(|fatal| fatal.to_string())?;
        begun.map_err(|error| error.to_string())?;
        // Each step is short, so that openraft's own calls run between two steps.
        loop {
            let step = self
                .0
                .raft
                .with_state_machine(|machine| Box::pin(async move { machine.repair().await }));
            let step: io::Result<Option<u64>> = step.await.map_err(|fatal| fatal.to_string())?;
            let Some(reached) = step.map_err(|error| error.to_string())? else { return Ok(()) };
            while self.0.worker.applied() < reached {
                if let Some(fatal_error) = self.0.worker.fatal_error() {
                    return Err(fatal_error);
                }
                sleep(APPLY_INTERVAL).await;
            }
        }
    }

    /// Returns a snapshot of this node for a diverged peer, if this node agreed with the
    /// consistency check that the peer failed.
    pub(crate) async fn snapshot_for(
        &self,
        consistency_check: ConsistencyCheck,
        index_min: u64,
        to: NodeId,
    ) -> Result<(Vote, SnapshotFile), Error> {
        if let Some(why) = self.0.fatal_error() {
            return Err(Error::stopped(why));
        }
        if !self.agreed_with(consistency_check).await {
            return Err(Error::refused(format!(
                "this node does not know whether it agreed with the consistency check at {}: ask another node, or retry after \
                 the next check",
                consistency_check.index
            )));
        }
        let until = Instant::now() + REACH_TIMEOUT;
        while self.0.worker.applied() < index_min {
            if Instant::now() >= until {
                return Err(Error::refused(format!(
                    "this node has not applied index {index_min} yet"
                )));
            }
            sleep(Duration::from_millis(5)).await;
        }
        let mut file = self.newest_snapshot().await?;
        if file.as_ref().is_none_or(|file| file.index() < index_min) {
            self.snapshot_now().await?;
            file = self.newest_snapshot().await?;
        }
        let file = file.filter(|file| file.index() >= index_min);
        let file = file.ok_or_else(|| Error::busy("the snapshot is being taken: try again"))?;
        self.may_give(&file, to).await.map_err(Error::refused)?;
        let vote = self.0.raft.metrics().borrow_watched().vote;
        Ok((vote, file))
    }

    async fn agreed_with(&self, consistency_check: ConsistencyCheck) -> bool {
        let later = self.0.divergence.last_equal();
        later.is_some_and(|last| last.index >= consistency_check.index)
            || matches!(
                self.digest_here(consistency_check.index).await,
                Heard::Digest(own) if own.digest == consistency_check.digest
            )
    }

    async fn newest_snapshot(&self) -> Result<Option<SnapshotFile>, Error> {
        let snapshots = self.0.snapshots.clone();
        let newest = spawn_blocking(move || snapshots.latest()).await;
        let newest = newest.map_err(|error| Error::caused_by(Error::fatal, error))?;
        newest.map_err(|error| Error::caused_by(Error::fatal, error))
    }
}
