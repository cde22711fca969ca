//! The vote hold-off: a restarted follower waits for one lease before it votes.
//!
//! A leader that serves lease reads relies on its followers, which vote for no other node for one
//! lease after its last message (Raft thesis, section 6.4.1). openraft keeps that promise in memory
//! only, so a follower that restarts quickly has forgotten it. Then a second leader could be
//! elected while the first still serves lease reads.
//!
//! So a node waits if the vote on its disk shows that it followed a leader. It waits for the longest
//! lease that it may have promised, after which every such promise has expired. A node that has
//! never followed a leader, or that was the last leader itself, has promised nothing.
//!
//! Every node also first tries to reach each other member once: a peer may remember more of it than
//! its data directory holds (see [`super::network::local`]), and then it must not vote.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::{fitness::Fitness, node::Node};
use conclave_storage::{LogStore, raft_types::Vote};
use conclave_types::NodeId;

/// The metadata entry with the longest lease, in milliseconds, that this node may have promised.
const LEASE: &str = "lease";

/// Returns the longest lease that this node may have promised before it started, or will promise
/// with its present configuration. Stores that value.
pub(super) fn longest_lease(log: &LogStore, lease: Duration) -> io::Result<Duration> {
    let recorded = log.get_record(LEASE)?.and_then(|value| <[u8; 8]>::try_from(value).ok());
    let recorded = recorded.map(u64::from_be_bytes).map(Duration::from_millis);
    let longest = lease.max(recorded.unwrap_or_default());
    if recorded != Some(longest) {
        record_lease(log, longest)?;
    }
    Ok(longest)
}

fn record_lease(log: &LogStore, lease: Duration) -> io::Result<()> {
    log.put_record(LEASE, Some((lease.as_millis() as u64).to_be_bytes().to_vec()))
}

/// The time until which this node neither votes nor stands for election.
pub(super) struct VoteHoldoff {
    until: Instant,
    /// Set once every other member has been tried as well.
    released: AtomicBool,
}

impl VoteHoldoff {
    /// Creates the hold-off of a node that starts now and has this vote on disk.
    pub(super) fn new(vote: Option<Vote>, node_id: NodeId, lease: Duration) -> Self {
        let followed =
            vote.is_some_and(|vote| vote.committed && vote.leader_id.voted_for != node_id);
        let until = Instant::now() + if followed { lease } else { Duration::ZERO };
        Self { until, released: AtomicBool::new(false) }
    }

    pub(super) fn is_over(&self) -> bool {
        self.until <= Instant::now()
    }

    /// Returns whether this node may stand for election.
    pub(super) fn is_released(&self) -> bool {
        self.released.load(Ordering::Relaxed)
    }

    /// Returns once the hold-off is over. A vote request waits here instead of being rejected,
    /// because the next request would come only after another election timeout.
    pub(super) async fn over(&self) {
        if !self.is_over() {
            sleep_until(self.until).await;
        }
    }
}

/// Lets the node stand for election once it may.
pub(super) async fn release(node: Arc<Node>, fitness: Arc<Fitness>, hold: Arc<VoteHoldoff>) {
    hold.over().await;
    node.peers.settled().await;
    // Every promise of an earlier process has expired.
    if let Err(error) = record_lease(&node.log, node.timing.lease()) {
        tracing::warn!(%error, "cannot store the length of the lease");
    }
    hold.released.store(true, Ordering::Relaxed);
    if node.local.lost().is_none() && fitness.unfit().is_none() {
        node.raft.runtime_config().elect(true);
    }
    let mut lost = node.local.watch_lost();
    // Peers ignore a node whose directory is an old copy. The node must not stand for election either.
    if lost.wait_for(Option::is_some).await.is_ok() {
        node.raft.runtime_config().elect(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(60);

    #[test]
    fn only_who_followed_somebody_waits() {
        let waits = |vote| !VoteHoldoff::new(vote, 1, LEASE).is_over();
        assert!(waits(Some(Vote::new_committed(3, 2))));
        assert!(!waits(Some(Vote::new_committed(3, 1))), "the node was the leader");
        assert!(!waits(Some(Vote::new(3, 2))), "no leader was elected");
        assert!(!waits(None));
    }
}
