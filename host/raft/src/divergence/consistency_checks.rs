//! Proposes the digest of a majority of the voters, so that every replica can compare its own.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    digests::{Answers, Digests},
    lineage::{Verdict, decide},
};
use crate::{node::Node, propose::Proposer};
use conclave_types::{CommandKind, ConsistencyCheck, DIGEST_VERSION, Digest};

/// Proposes consistency checks as the leader.
pub(crate) struct ConsistencyChecks {
    node: Arc<Node>,
    digests: Arc<Digests>,
    proposer: Arc<Proposer>,
}

impl ConsistencyChecks {
    pub(crate) fn new(node: Arc<Node>, digests: Arc<Digests>, proposer: Arc<Proposer>) -> Self {
        Self { node, digests, proposer }
    }

    /// Proposes consistency checks while this node leads.
    pub(crate) async fn run(self, interval: Duration) {
        loop {
            sleep(interval).await;
            if self.node.is_leader() && self.node.fatal_error().is_none() {
                self.propose_next().await;
            } else {
                self.node.divergence.set_disputed(false);
            }
        }
    }

    /// Collects the digests of all voters and proposes the majority's, if there are new entries.
    async fn propose_next(&self) {
        let voters = self.node.voters();
        if voters.len() < 2 {
            return; // There is no other voter to compare with.
        }
        let index = self.node.worker.applied();
        if !self.node.worker.keeps_digest() {
            return self.begin_digests().await;
        }
        let Ok(Some(own)) = self.node.worker.digest_at(index).await else { return };
        if self.node.divergence.last_equal().is_some_and(|last| last.digest == own) {
            return; // There are no new entries.
        }
        let Answers { answers, without } = self.digests.of(&voters, index).await;
        if without {
            return self.begin_digests().await;
        }
        let digest = match decide(&self.digests.voter_sets(), &answers) {
            Verdict::Decided(digest) => digest,
            Verdict::Unopposed => {
                self.node.divergence.set_disputed(false);
                tracing::debug!(
                    index,
                    ?answers,
                    "too few independent digests for a consistency check"
                );
                return;
            }
            Verdict::Disputed => {
                self.node.divergence.set_disputed(true);
                self.node.metrics.checks_undecided.inc();
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
        self.node.divergence.set_disputed(false);
        for (node, other) in &answers {
            if other.digest != digest {
                tracing::warn!(node, index, "a node has diverged from the majority");
            }
        }
        let (version, begins) = (DIGEST_VERSION, false);
        self.propose(ConsistencyCheck { index, digest, version, begins }).await;
    }

    /// Makes the digests of all replicas start again. Some replicas come from snapshots of another
    /// version of Conclave, so their digests could never become equal.
    async fn begin_digests(&self) {
        let index = self.node.worker.applied();
        let digest = Digest(*blake3::hash(&index.to_le_bytes()).as_bytes());
        tracing::info!("the digests of all replicas start again");
        let (version, begins) = (DIGEST_VERSION, true);
        self.propose(ConsistencyCheck { index, digest, version, begins }).await;
    }

    async fn propose(&self, consistency_check: ConsistencyCheck) {
        let kind = CommandKind::ConsistencyCheck(consistency_check);
        let deadline = Instant::now() + self.node.timing.request_timeout;
        if let Err(error) = self.proposer.propose(kind, deadline).await {
            tracing::debug!(%error, "cannot propose a consistency check");
        }
    }
}
