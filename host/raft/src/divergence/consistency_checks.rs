//! Proposes the digest of a majority of the voters, so that every replica can compare its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Weak, atomic::Ordering},
    time::Duration,
};

use futures::future::join_all;
use openraft::async_runtime::WatchReceiver;
use tokio::time::{Instant, sleep, timeout};

use super::lineage::{Testimony, Verdict, decide};
use crate::{Inner, Replica, network::peer::ConnectionClass};
use conclave_proto::{
    convert::digest_from_wire,
    raft::{DigestRequest, DigestResponse},
};
use conclave_storage::raft_types::Member;
use conclave_types::{CommandKind, ConsistencyCheck, DIGEST_VERSION, Digest, NodeId};

/// The time after which a voter that has not responded does not count.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// The time that a voter waits until it has applied the requested index.
const APPLY_TIMEOUT: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A node's response to the request for its digest at an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Digest(Testimony),
    /// The node has no comparable digest, because its state comes from a snapshot of another version.
    Without,
    /// The node has not applied the index, no longer knows the digest, has another
    /// version, or did not respond.
    Nothing,
}

/// The voters' responses.
#[derive(Default)]
pub(super) struct Digests {
    pub(super) answers: BTreeMap<NodeId, Testimony>,
    /// Set if a voter has no comparable digest.
    pub(super) without: bool,
}

/// Proposes consistency checks while this node leads, until the replica is gone.
pub(crate) async fn run(replica: Weak<Inner>, interval: Duration) {
    loop {
        sleep(interval).await;
        let Some(replica) = replica.upgrade().map(Replica) else { return };
        if replica.0.is_leader() && replica.0.fatal_error().is_none() {
            replica.consistency_check().await;
        } else {
            replica.0.divergence.set_disputed(false);
        }
    }
}

impl Replica {
    /// Collects the digests of all voters and proposes the majority's, if there are new entries.
    async fn consistency_check(&self) {
        let voters = self.voters();
        if voters.len() < 2 {
            return; // There is no other voter to compare with.
        }
        let index = self.0.worker.applied();
        if !self.0.worker.keeps_digest() {
            return self.begin_digests().await;
        }
        let Ok(Some(own)) = self.0.worker.digest_at(index).await else { return };
        if self.0.divergence.last_equal().is_some_and(|last| last.digest == own) {
            return; // There are no new entries.
        }
        let Digests { answers, without } = self.digests(&voters, index).await;
        if without {
            return self.begin_digests().await;
        }
        let digest = match decide(&self.voter_sets(), &answers) {
            Verdict::Decided(digest) => digest,
            Verdict::Unopposed => {
                self.0.divergence.set_disputed(false);
                tracing::debug!(
                    index,
                    ?answers,
                    "too few independent digests for a consistency check"
                );
                return;
            }
            Verdict::Disputed => {
                self.0.divergence.set_disputed(true);
                self.0.divergence.counts.undecided.fetch_add(1, Ordering::Relaxed);
                tracing::error!(
                    index,
                    ?answers,
                    "the replicas disagree on the outcomes of entries, and no majority of independent replicas \
                     decides. Start the voters that are down. If all are up, compare the states with `conclave \
                     cluster verify`, and rebuild the wrong node under a new id"
                );
                return;
            }
        };
        self.0.divergence.set_disputed(false);
        for (node, other) in &answers {
            if other.digest != digest {
                tracing::warn!(node, index, "a node has diverged from the majority");
            }
        }
        let (version, begins) = (DIGEST_VERSION, false);
        self.propose_consistency_check(ConsistencyCheck { index, digest, version, begins }).await;
    }

    /// Makes the digests of all replicas start again. Some replicas come from snapshots of another
    /// version of Conclave, so their digests could never become equal.
    async fn begin_digests(&self) {
        let index = self.0.worker.applied();
        let digest = Digest(*blake3::hash(&index.to_le_bytes()).as_bytes());
        tracing::info!("the digests of all replicas start again");
        let (version, begins) = (DIGEST_VERSION, true);
        self.propose_consistency_check(ConsistencyCheck { index, digest, version, begins }).await;
    }

    async fn propose_consistency_check(&self, consistency_check: ConsistencyCheck) {
        let kind = CommandKind::ConsistencyCheck(consistency_check);
        let deadline = Instant::now() + self.0.timing.request_timeout;
        if let Err(error) = self.propose_kind(kind, deadline).await {
            tracing::debug!(%error, "cannot propose a consistency check");
        }
    }

    /// Returns the sets of voters: one, or two while the membership changes.
    pub(crate) fn voter_sets(&self) -> Vec<BTreeSet<NodeId>> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_joint_config().clone()
    }

    /// Collects the digests at an index from the voters that know theirs.
    pub(super) async fn digests(&self, voters: &[(NodeId, Member)], index: u64) -> Digests {
        let asked = voters.iter().map(|(node_id, member)| async move {
            let answer = async {
                match *node_id == self.0.node_id() {
                    true => self.digest_here(index).await,
                    false => self.digest_there(*node_id, member, index).await,
                }
            };
            (*node_id, timeout(ASK_TIMEOUT, answer).await.unwrap_or(Heard::Nothing))
        });
        let mut digests = Digests::default();
        for (node_id, heard) in join_all(asked).await {
            match heard {
                Heard::Digest(testimony) => _ = digests.answers.insert(node_id, testimony),
                Heard::Without => digests.without = true,
                Heard::Nothing => {}
            }
        }
        digests
    }

    async fn digest_there(&self, node_id: NodeId, member: &Member, index: u64) -> Heard {
        let peer = self.0.peers.peer(node_id, member);
        let Ok(mut client) = peer.client(ConnectionClass::Control).await else {
            return Heard::Nothing;
        };
        let answer = client.digest(DigestRequest { index }).await;
        let answer = match answer.map_err(|status| peer.failed(ConnectionClass::Control, status)) {
            Ok(answer) => answer.into_inner(),
            Err(error) => {
                tracing::debug!(%error, "no digest");
                return Heard::Nothing;
            }
        };
        heard_from_wire(node_id, &answer)
    }

    /// Returns this node's digest at an index, once this node has applied it.
    pub(crate) async fn digest_here(&self, index: u64) -> Heard {
        let until = Instant::now() + APPLY_TIMEOUT;
        while self.0.worker.applied() < index {
            if Instant::now() >= until {
                return Heard::Nothing;
            }
            sleep(POLL_INTERVAL).await;
        }
        if self.0.fatal_error().is_some() {
            return Heard::Nothing;
        }
        // The origin is read first. If another state is restored in between, the digest counts for
        // the older state's origin. That errs only towards too few votes, if both states are
        // copies, and the digest of the newer state is not known before its index.
        let origin = self.0.divergence.origin();
        let keeps = self.0.worker.keeps_digest();
        match self.0.worker.digest_at(index).await {
            Ok(Some(digest)) => Heard::Digest(Testimony { digest, origin }),
            Ok(None) if !keeps => Heard::Without,
            _ => Heard::Nothing,
        }
    }
}

/// Converts a digest to its wire form.
pub(crate) fn heard_to_wire(heard: Heard) -> DigestResponse {
    let answer = DigestResponse { version: DIGEST_VERSION, ..DigestResponse::default() };
    match heard {
        Heard::Digest(Testimony { digest, origin }) => {
            DigestResponse { digest: digest.0.to_vec().into(), origin, ..answer }
        }
        Heard::Without => DigestResponse { without: true, ..answer },
        Heard::Nothing => answer,
    }
}

/// Converts a digest from its wire form. A digest of another version cannot be compared.
fn heard_from_wire(node_id: NodeId, answer: &DigestResponse) -> Heard {
    if answer.version != DIGEST_VERSION {
        return Heard::Nothing;
    }
    match digest_from_wire(&answer.digest) {
        Ok(Some(digest)) => {
            let origin = if answer.origin == 0 { node_id } else { answer.origin };
            Heard::Digest(Testimony { digest, origin })
        }
        Ok(None) if answer.without => Heard::Without,
        _ => Heard::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_of_another_version_is_no_answer() {
        let testimony = Testimony { digest: Digest([3; 32]), origin: 2 };
        for heard in [Heard::Digest(testimony), Heard::Without, Heard::Nothing] {
            assert_eq!(heard_from_wire(1, &heard_to_wire(heard)), heard);
        }
        let other = DigestResponse { version: 1, ..heard_to_wire(Heard::Digest(testimony)) };
        assert_eq!(heard_from_wire(1, &other), Heard::Nothing);
        let anonymous = DigestResponse { origin: 0, ..heard_to_wire(Heard::Digest(testimony)) };
        let own = Testimony { origin: 1, ..testimony };
        assert_eq!(heard_from_wire(1, &anonymous), Heard::Digest(own));
    }
}
