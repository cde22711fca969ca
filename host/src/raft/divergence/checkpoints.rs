//! Proposes the digest that a majority of the voters has, for everybody to compare their own with.

use std::{
    collections::BTreeMap,
    sync::{Weak, atomic::Ordering},
    time::Duration,
};

use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    proto::raft::DigestRequest,
    raft::{Inner, Replica, network::peer::Lane},
    types::{Checkpoint, CommandKind, Digest, NodeId, convert::digest_from_wire, raft::Member},
};

/// A voter that has not answered by then has no say.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// For so long a voter waits until it has applied what it is asked about.
const APPLY_TIMEOUT: Duration = Duration::from_secs(1);
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Proposes checkpoints while this node leads, until the replica is gone.
pub(in crate::raft) async fn run(replica: Weak<Inner>, interval: Duration) {
    loop {
        sleep(interval).await;
        let Some(replica) = replica.upgrade().map(Replica) else { return };
        if replica.0.is_leader() && replica.0.fault().is_none() {
            replica.checkpoint().await;
        }
    }
}

impl Replica {
    /// Asks all voters and proposes what most of them have, if there is anything new.
    async fn checkpoint(&self) {
        let voters = self.voters();
        if voters.len() < 2 {
            return; // Nobody to compare with.
        }
        let index = self.0.worker.applied();
        let Ok(Some(own)) = self.0.worker.digest_at(index).await else { return };
        if self.0.divergence.last_equal().is_some_and(|last| last.digest == own) {
            return; // Nothing has come since.
        }
        let digests = self.digests(&voters, index).await;
        let answered = digests.iter().filter(|(_, digest)| digest.is_some()).count();
        let Some(digest) = majority(&digests) else {
            // Too few answers say nothing about the machine.
            if answered * 2 > voters.len() {
                self.0.divergence.counts.undecided.fetch_add(1, Ordering::Relaxed);
                tracing::error!(
                    index,
                    ?digests,
                    "no majority of the voters agrees on what came of the entries: is the machine a function of the log alone?"
                );
            }
            return;
        };
        for (node, other) in &digests {
            if other.is_some_and(|other| other != digest) {
                tracing::warn!(node, index, "a node's machine has diverged from the majority's");
            }
        }
        let kind = CommandKind::Checkpoint(Checkpoint { index, digest });
        let deadline = Instant::now() + self.0.timing.request_timeout;
        if let Err(error) = self.propose_kind(kind, deadline).await {
            tracing::debug!(%error, "no checkpoint");
        }
    }

    /// The voters' digests at an index, as far as they tell.
    pub(super) async fn digests(
        &self,
        voters: &[(NodeId, Member)],
        index: u64,
    ) -> Vec<(NodeId, Option<Digest>)> {
        let asked = voters.iter().map(|(node_id, member)| async move {
            let answer = async {
                match *node_id == self.0.node_id() {
                    true => self.digest_here(index).await,
                    false => self.digest_there(*node_id, member, index).await,
                }
            };
            (*node_id, timeout(ASK_TIMEOUT, answer).await.ok().flatten())
        });
        join_all(asked).await
    }

    async fn digest_there(&self, node_id: NodeId, member: &Member, index: u64) -> Option<Digest> {
        let peer = self.0.peers.peer(node_id, member);
        let mut client = peer.client(Lane::Control).await.ok()?;
        let answer = client.digest(DigestRequest { index }).await;
        let answer = answer.map_err(|status| peer.failed(Lane::Control, status));
        let answer = answer.inspect_err(|error| tracing::debug!(%error, "no digest")).ok()?;
        digest_from_wire(&answer.into_inner().digest).ok().flatten()
    }

    /// This node's digest at an index, once it has applied it. `None`: it does not get there in time, does not
    /// know any more, or has nothing to say.
    pub(in crate::raft) async fn digest_here(&self, index: u64) -> Option<Digest> {
        let until = Instant::now() + APPLY_TIMEOUT;
        while self.0.worker.applied() < index {
            if Instant::now() >= until {
                return None;
            }
            sleep(LOOK_INTERVAL).await;
        }
        match self.0.fault() {
            None => self.0.worker.digest_at(index).await.ok().flatten(),
            Some(_) => None,
        }
    }
}

/// What more than half of the voters have.
fn majority(digests: &[(NodeId, Option<Digest>)]) -> Option<Digest> {
    let mut counts = BTreeMap::<Digest, usize>::new();
    for digest in digests.iter().filter_map(|(_, digest)| *digest) {
        *counts.entry(digest).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(_, count)| *count);
    most.filter(|(_, count)| count * 2 > digests.len()).map(|(digest, _)| digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_majority_is_one_of_all_voters_and_not_of_those_that_answered() {
        let [a, b] = [[1; 32], [2; 32]].map(|bytes| Some(Digest(bytes)));
        let of = |digests: &[Option<Digest>]| {
            majority(&(1..).zip(digests.iter().copied()).collect::<Vec<_>>())
        };
        assert_eq!(of(&[a, a, b]), a);
        assert_eq!(of(&[b, a, a]), a, "whoever is asked first");
        assert_eq!(of(&[a, a, None]), a);
        assert_eq!(of(&[a, b, None]), None);
        assert_eq!(of(&[a, None, None]), None);
        assert_eq!(of(&[a, a, b, b]), None);
        assert_eq!(of(&[a, b]), None);
        assert_eq!(of(&[]), None);
    }
}
