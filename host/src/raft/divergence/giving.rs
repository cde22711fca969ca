//! Whether this node's snapshot may be given to a peer: not while its state is disputed.
//!
//! The question is asked when a snapshot is about to be sent, and answered by the voters at that moment, so it
//! needs no memory of earlier leaders. A voter that is down, or behind, answers nothing and stops no snapshot.

use super::{
    checkpoints::Digests,
    lineage::{Testimony, Verdict, decide},
};
use crate::{
    raft::{Replica, snapshot},
    storage::SnapshotFile,
    types::{Digest, NodeId},
};

impl Replica {
    /// Refuses to give this snapshot to a peer if this node is in quarantine, or if the other voters have other
    /// outcomes than this node up to the snapshot's index and no majority of lineages has this node's.
    pub(in crate::raft) async fn may_give(
        &self,
        file: &SnapshotFile,
        to: NodeId,
    ) -> Result<(), String> {
        let given = self.check_given(file, to).await;
        self.0.divergence.note_given(to, given.as_ref().err().map(String::as_str));
        given
    }

    async fn check_given(&self, file: &SnapshotFile, to: NodeId) -> Result<(), String> {
        let divergence = &self.0.divergence;
        if divergence.is_stopped() {
            return Err(divergence.why().unwrap_or_else(|| "it is being repaired".to_owned()));
        }
        if !divergence.compares()
            || divergence.last_equal().is_some_and(|last| file.index() <= last.index)
        {
            return Ok(());
        }
        // An agreement up to here is one up to every index before: the digest is a chain.
        let index = self.0.worker.applied();
        let Some(own) = self.0.worker.digest_at(index).await.ok().flatten() else {
            return Ok(()); // Nothing to compare yet: the cluster was just upgraded.
        };
        if self.is_unopposed(index, own, to).await {
            return Ok(());
        }
        // The voters may disagree only over what came after the snapshot.
        let header = snapshot::header(file).map_err(|error| error.to_string())?;
        match snapshot::digest(&header)? {
            Some(digest) if self.is_unopposed(file.index(), digest, to).await => Ok(()),
            _ => Err(format!(
                "the replicas disagree on the outcomes of the entries up to {}, and no majority decides: the \
                 snapshot at {} is not sent before they agree",
                index,
                file.index()
            )),
        }
    }

    /// Whether no voter has another digest at this index, or a majority has this one.
    async fn is_unopposed(&self, index: u64, digest: Digest, to: NodeId) -> bool {
        let mut others = self.voters();
        others.retain(|(node_id, _)| *node_id != self.0.node_id() && *node_id != to);
        let Digests { mut answers, .. } = self.digests(&others, index).await;
        let origin = self.0.divergence.origin();
        answers.insert(self.0.node_id(), Testimony { digest, origin });
        match decide(&self.voter_sets(), &answers) {
            Verdict::Decided(decided) => decided == digest,
            Verdict::Unopposed => true,
            Verdict::Disputed => false,
        }
    }
}
