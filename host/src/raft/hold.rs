//! What a node must not do right after its start: help to elect a leader.
//!
//! A leader that answers lease reads relies on its followers, who grant nobody a vote for one lease after
//! its last word. openraft keeps that promise in memory only, so a follower that restarts quickly has
//! forgotten it (and a second leader could be elected while the first still answers). So whoever finds on
//! its disk that it followed somebody waits for one lease, in which every such promise runs out. Who has
//! never followed anybody, or led last itself, has promised nothing.

use std::{sync::Weak, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::Inner;
use crate::types::{NodeId, raft::Vote};

/// Until when this node neither votes nor stands for election.
pub(super) struct Hold {
    until: Instant,
}

impl Hold {
    /// For a node that starts now and has this vote on disk.
    pub(super) fn new(vote: Option<Vote>, node_id: NodeId, lease: Duration) -> Self {
        let followed =
            vote.is_some_and(|vote| vote.committed && vote.leader_id.voted_for != node_id);
        Self { until: Instant::now() + if followed { lease } else { Duration::ZERO } }
    }

    pub(super) fn is_over(&self) -> bool {
        self.until <= Instant::now()
    }

    /// Returns once it is over. A request for a vote waits here rather than being refused: the next
    /// one would come only after another election timeout.
    pub(super) async fn over(&self) {
        if !self.is_over() {
            sleep_until(self.until).await;
        }
    }
}

/// Lets the node stand for election once it may.
pub(super) async fn release(replica: Weak<Inner>) {
    let Some(until) = replica.upgrade().map(|inner| inner.hold.until) else { return };
    sleep_until(until).await;
    if let Some(inner) = replica.upgrade() {
        inner.raft.runtime_config().elect(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(60);

    #[test]
    fn only_who_followed_somebody_waits() {
        let waits = |vote| !Hold::new(vote, 1, LEASE).is_over();
        assert!(waits(Some(Vote::new_committed(3, 2))));
        assert!(!waits(Some(Vote::new_committed(3, 1))), "it led itself");
        assert!(!waits(Some(Vote::new(3, 2))), "nobody was elected yet");
        assert!(!waits(None));
    }
}
