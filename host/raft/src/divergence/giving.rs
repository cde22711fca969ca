//! Decides whether this node may send its snapshot to a peer: not while its state is disputed.
//!
//! The voters decide at the time when a snapshot is about to be sent, so no record of earlier
//! leaders is needed. A voter that is down, or behind, does not respond and blocks no snapshot.

use super::{
    consistency_checks::Digests,
    lineage::{Testimony, Verdict, decide},
};
use crate::{Replica, snapshot};
use conclave_storage::SnapshotFile;
use conclave_types::{ConsistencyCheck, Digest, NodeId};

impl Replica {
    /// Returns an error if this node is in quarantine. Also returns an error if the other
    /// voters have other outcomes up to the snapshot's index and no majority of lineages
    /// has this node's outcomes.
    pub(crate) async fn may_give(&self, file: &SnapshotFile, to: NodeId) -> Result<(), String> {
        let given = self.check_given(file, to).await;
        self.0.divergence.note_given(to, given.as_ref().err().map(String::as_str));
        given
    }

    async fn check_given(&self, file: &SnapshotFile, to: NodeId) -> Result<(), String> {
        let divergence = &self.0.divergence;
        if divergence.is_stopped() {
            return Err(divergence
                .why()
                .unwrap_or_else(|| "this node is being repaired".to_owned()));
        }
        if !divergence.compares() || is_agreed(file.index(), divergence.last_equal()) {
            return Ok(());
        }
        // An agreement at this index covers all earlier indexes too, because the digest is a chain.
        let index = self.0.worker.applied();
        let Some(own) = self.0.worker.digest_at(index).await.ok().flatten() else {
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
        let mut others = self.voters();
        others.retain(|(node_id, _)| *node_id != self.0.node_id() && *node_id != to);
        let Digests { mut answers, .. } = self.digests(&others, index).await;
        let origin = self.0.divergence.origin();
        answers.insert(self.0.node_id(), Testimony { digest, origin });
        decide(&self.voter_sets(), &answers)
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
