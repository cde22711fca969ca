//! Repairs a quarantined replica: fetches a healthy peer's snapshot and replaces the state with it.
//!
//! openraft takes no part in the repair. It ignores a snapshot that does not reach beyond its
//! commit index, and the log of a quarantined node continues, so that every snapshot is soon behind
//! that index. The log itself is correct: after the snapshot, the state machine applies the missed
//! entries from the log, in
//! [`StateMachine::begin_repair`](crate::state_machine::StateMachine::begin_repair).

use std::{io, sync::Arc, time::Duration};

use openraft::async_runtime::WatchReceiver;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Status;

use super::{Quarantine, digests::Digests};
use crate::{
    components::Components, leadership::Leadership, network::peer::ConnectionClass, node::Node,
    snapshot,
};
use conclave_proto::{
    convert::consistency_check_to_wire,
    raft::{FetchSnapshotRequest, SnapshotPart, SnapshotStart, snapshot_part::Part},
};
use conclave_storage::{
    SnapshotFile, SnapshotStore,
    convert::vote_from_wire,
    raft_types::{LogId, Member},
};
use conclave_types::{ConsistencyCheck, NodeId};

/// The pause before a failed repair is retried.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The time that a node waits until its log has reached the received snapshot.
const REACH_TIMEOUT: Duration = Duration::from_secs(10);

/// Repairs this node.
pub(crate) struct Repairs {
    node: Arc<Node>,
    digests: Arc<Digests>,
    leadership: Arc<Leadership>,
    components: Arc<Components>,
    snapshots: SnapshotStore,
}

impl Repairs {
    pub(crate) fn new(
        node: Arc<Node>,
        digests: Arc<Digests>,
        leadership: Arc<Leadership>,
        components: Arc<Components>,
        snapshots: SnapshotStore,
    ) -> Self {
        Self { node, digests, leadership, components, snapshots }
    }

    /// Repairs this node whenever it is in quarantine.
    pub(crate) async fn run(self) {
        let divergence = &self.node.divergence;
        let mut refusing = divergence.watch();
        while refusing.wait_for(|refusing| *refusing).await.is_ok() {
            let Some(quarantine) = divergence.quarantine() else {
                // The quarantine is about to end.
                let _ = refusing.changed().await;
                continue;
            };
            if self.node.is_leader() {
                self.hand_over_leadership(&quarantine).await;
            }
            let pause = divergence.pause();
            if !pause.is_zero() {
                // In steps, because this node may become the leader meanwhile.
                sleep(pause.min(RETRY_INTERVAL)).await;
                continue;
            }
            if let Err(error) = self.repair(&quarantine).await {
                tracing::warn!(error, "cannot repair this node yet");
                sleep(RETRY_INTERVAL).await;
            }
        }
    }

    /// Transfers leadership to a voter with the majority's digest. If no voter takes over, this
    /// node continues to lead, and is repaired as the leader.
    async fn hand_over_leadership(&self, quarantine: &Quarantine) {
        let ConsistencyCheck { index, digest, .. } = quarantine.consistency_check;
        let others = self.node.other_voters();
        let answers = self.digests.of(&others, index).await.answers;
        let agrees = |node_id: NodeId| {
            answers.get(&node_id).is_some_and(|testimony| testimony.digest == digest)
        };
        match self.leadership.transfer(agrees).await {
            Ok(to) => tracing::warn!(to, "leadership transferred: this node has diverged"),
            Err(why) => tracing::warn!(
                why,
                "no voter takes over: this node has diverged and continues to lead"
            ),
        }
    }

    /// Fetches a snapshot and replaces the state with it.
    async fn repair(&self, quarantine: &Quarantine) -> Result<(), String> {
        let leader = self.node.leader().map(|(node_id, _)| node_id);
        let mut others = self.node.other_voters();
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
                Ok(file) => return self.install(file).await,
                Err(reason) => reasons.push(format!("node {node_id}: {reason}")),
            }
        }
        Err(format!("no healthy peer sent its snapshot: {}", reasons.join("; ")))
    }

    /// Waits until openraft has stopped.
    async fn stopped(&self) {
        let mut metrics = self.node.raft.metrics();
        while metrics.borrow_watched().running_state.is_ok() && metrics.changed().await.is_ok() {}
    }

    async fn fetch(
        &self,
        node_id: NodeId,
        member: &Member,
        quarantine: &Quarantine,
    ) -> Result<SnapshotFile, String> {
        let peer = self.node.peers.peer(node_id, member);
        let client = peer.client(ConnectionClass::Snapshot).await;
        let mut client = client.map_err(|error| error.to_string())?;
        let index_min = quarantine.at.max(self.node.worker.applied());
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
        let SnapshotStart { vote, header, bytes, .. } = start;
        let (vote, mut header) = (vote.ok_or("no vote")?, header.ok_or("no header")?);
        snapshot::note_origin(&mut header, node_id);
        snapshot::check_header(&header, &self.node.local.identity)?;
        snapshot::check_coverage(&header, &vote_from_wire(&vote))?;
        let index = header.last_log_id.as_ref().map_or(0, |log_id| log_id.index);
        if index < index_min {
            return Err(format!("its snapshot reaches index {index}, but {index_min} is needed"));
        }
        if snapshot::digest(&header)?.is_none() {
            return Err("its snapshot has no digest of this version's algorithm".to_owned());
        }
        tracing::info!(from = node_id, index, "receiving a snapshot to repair with");
        let in_force = self.node.applied().limits.limits;
        snapshot::receive(header, bytes, parts, self.snapshots.clone(), &in_force)
            .await
            .map_err(|status| status.message().to_owned())
    }

    /// Waits until the log has reached the snapshot's index, and replaces the state.
    async fn install(&self, file: SnapshotFile) -> Result<(), String> {
        let index = file.index();
        let applied = |metrics: &openraft::RaftMetrics<_>| {
            metrics.last_applied.as_ref().map_or(0, |log_id: &LogId| log_id.index)
        };
        let until = Instant::now() + REACH_TIMEOUT;
        let mut metrics = self.node.raft.metrics();
        while applied(&metrics.borrow_watched()) < index {
            if Instant::now() >= until {
                return Err(format!("this node's log has not reached index {index} yet"));
            }
            let _ = timeout_at(until, metrics.changed()).await;
        }
        // A restart begins with the file and continues in the log, so the log on disk
        // must reach the file too.
        self.node.log.synced(index).await.map_err(|error| error.to_string())?;
        let accepted = snapshot::accept(&file, &self.node.worker, &self.components).await;
        let accepted = accepted.map_err(|error| error.to_string())?;
        let begun = self.node.raft.with_state_machine(move |machine| {
            Box::pin(async move { machine.begin_repair(file, accepted).await })
        });
        let begun: io::Result<()> = begun.await.map_err(|fatal| fatal.to_string())?;
        begun.map_err(|error| error.to_string())?;
        // Each step is short, so that openraft's own calls run between two steps.
        loop {
            let step = self
                .node
                .raft
                .with_state_machine(|machine| Box::pin(async move { machine.repair().await }));
            let step: io::Result<Option<u64>> = step.await.map_err(|fatal| fatal.to_string())?;
            let Some(reached) = step.map_err(|error| error.to_string())? else { return Ok(()) };
            self.node.reaches(reached).await?;
        }
    }
}
