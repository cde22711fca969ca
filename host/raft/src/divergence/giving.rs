//! Decides whether this node may send its snapshot to a peer: not while its state is disputed.
//!
//! The voters decide at the time when a snapshot is about to be sent, so no record of earlier
//! leaders is needed. A voter that is down, or behind, does not respond and blocks no snapshot.

use std::{sync::Arc, time::Duration};

use openraft::async_runtime::WatchReceiver;
use tokio::time::timeout;

use super::{
    digests::{Answers, Digests, Heard},
    lineage::{Testimony, Verdict, decide},
};
use crate::{
    node::Node,
    snapshot::{self, Snapshots},
};
use conclave_storage::{SnapshotFile, raft_types::Vote};
use conclave_types::{ConsistencyCheck, Digest, NodeId, error::Error};

/// The time that a peer waits until this node has applied the requested index.
const REACH_TIMEOUT: Duration = Duration::from_secs(10);

/// Decides which snapshots this node sends.
pub(crate) struct Giving {
    node: Arc<Node>,
    digests: Arc<Digests>,
    snapshots: Arc<Snapshots>,
}

impl Giving {
    pub(crate) fn new(node: Arc<Node>, digests: Arc<Digests>, snapshots: Arc<Snapshots>) -> Self {
        Self { node, digests, snapshots }
    }

    /// Returns an error if this node is in quarantine. Also returns an error if the other
    /// voters have other outcomes up to the snapshot's index and no majority of lineages
    /// has this node's outcomes.
    pub(crate) async fn may_give(&self, file: &SnapshotFile, to: NodeId) -> Result<(), String> {
        let given = self.check_given(file, to).await;
        self.node.divergence.note_given(to, given.as_ref().err().map(String::as_str));
        given
    }

    /// Returns a snapshot of this node for a diverged peer, if this node agreed with the
    /// consistency check that the peer failed.
    pub(crate) async fn snapshot_for(
        &self,
        consistency_check: ConsistencyCheck,
        index_min: u64,
        to: NodeId,
    ) -> Result<(Vote, SnapshotFile), Error> {
        if let Some(why) = self.node.fatal_error() {
            return Err(Error::stopped(why));
        }
        if !self.agreed_with(consistency_check).await {
            return Err(Error::refused(format!(
                "this node does not know whether it agreed with the consistency check at {}: ask another node, or retry after \
                 the next check",
                consistency_check.index
            )));
        }
        match timeout(REACH_TIMEOUT, self.node.reaches(index_min)).await {
            Ok(reached) => reached.map_err(Error::stopped)?,
            Err(_) => {
                return Err(Error::refused(format!(
                    "this node has not applied index {index_min} yet"
                )));
            }
        }
        let mut file = self.snapshots.newest().await?;
        if file.as_ref().is_none_or(|file| file.index() < index_min) {
            self.snapshots.take_now().await?;
            file = self.snapshots.newest().await?;
        }
        let file = file.filter(|file| file.index() >= index_min);
        let file = file.ok_or_else(|| Error::busy("the snapshot is being taken: try again"))?;
        self.may_give(&file, to).await.map_err(Error::refused)?;
        let vote = self.node.raft.metrics().borrow_watched().vote;
        Ok((vote, file))
    }

    async fn agreed_with(&self, consistency_check: ConsistencyCheck) -> bool {
        let later = self.node.divergence.last_equal();
        later.is_some_and(|last| last.index >= consistency_check.index)
            || matches!(
                self.digests.here(consistency_check.index).await,
                Heard::Digest(own) if own.digest == consistency_check.digest
            )
    }

    async fn check_given(&self, file: &SnapshotFile, to: NodeId) -> Result<(), String> {
        let divergence = &self.node.divergence;
        if divergence.is_stopped() {
            return Err(divergence
                .why()
                .unwrap_or_else(|| "this node is being repaired".to_owned()));
        }
        if !divergence.compares() || is_agreed(file.index(), divergence.last_equal()) {
            return Ok(());
        }
        // An agreement at this index covers all earlier indexes too, because the digest is a chain.
        let index = self.node.worker.applied();
        let Some(own) = self.node.worker.digest_at(index).await.ok().flatten() else {
            return Ok(()); // There is no digest to compare yet: the cluster was just upgraded.
        };
        if permits(self.verdict(index, own, to).await, own) {
            return Ok(());
        }
        // The voters may disagree only about entries after the snapshot.
        let header = snapshot::header(file).map_err(|error| error.to_string())?;
        match snapshot::digest(&header)? {
            Some(digest) if permits(self.verdict(file.index(), digest, to).await, digest) => Ok(()),
            _ => Err(format!(
                "the replicas disagree on the outcomes of the entries up to {}, and no majority decides: the \
                 snapshot at {} is not sent until they agree",
                index,
                file.index()
            )),
        }
    }

    /// Returns the verdict of the voters other than `to` on the digests at this index, where
    /// this node has `digest`.
    async fn verdict(&self, index: u64, digest: Digest, to: NodeId) -> Verdict {
        let mut others = self.node.other_voters();
        others.retain(|(node_id, _)| *node_id != to);
        let Answers { mut answers, .. } = self.digests.of(&others, index).await;
        let origin = self.node.divergence.origin();
        answers.insert(self.node.id(), Testimony { digest, origin });
        decide(&self.digests.voter_sets(), &answers)
    }
}

/// Returns whether a consistency check has found equal outcomes for all entries that a
/// snapshot at this index covers.
fn is_agreed(index: u64, last_equal: Option<ConsistencyCheck>) -> bool {
    last_equal.is_some_and(|last| index <= last.index)
}

/// Returns whether a state with this digest may be sent: no voter has another digest, or
/// a majority has this one.
fn permits(verdict: Verdict, digest: Digest) -> bool {
    match verdict {
        Verdict::Decided(decided) => decided == digest,
        Verdict::Unopposed => true,
        Verdict::Disputed => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Digest = Digest([1; 32]);
    const OTHER: Digest = Digest([2; 32]);

    #[test]
    fn disputed_or_outvoted_state_is_not_given() {
        assert!(permits(Verdict::Decided(OWN), OWN));
        assert!(permits(Verdict::Unopposed, OWN));
        assert!(!permits(Verdict::Disputed, OWN), "no majority decides");
        assert!(!permits(Verdict::Decided(OTHER), OWN), "the majority has another state");
    }

    #[test]
    fn snapshot_up_to_the_last_agreed_check_needs_no_question() {
        let last = ConsistencyCheck { index: 20, digest: OWN, version: 2, begins: false };
        assert!(is_agreed(19, Some(last)) && is_agreed(20, Some(last)));
        assert!(!is_agreed(21, Some(last)), "it covers entries that no check has compared");
        assert!(!is_agreed(0, None), "no check was agreed with since this node started");
    }
}
