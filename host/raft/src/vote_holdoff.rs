//! What a node must not do right after its start: help to elect a leader.
//!
//! A leader that answers lease reads relies on its followers, who grant nobody a vote for one lease after
//! its last word. openraft keeps that promise in memory only, so a follower that restarts quickly has
//! forgotten it (and a second leader could be elected while the first still answers). So whoever finds on
//! its disk that it followed somebody waits for one lease, the longest that it had been set to, in which every
//! such promise runs out. Who has
//! never followed anybody, or led last itself, has promised nothing.
//!
//! Every node also first tries to reach each other member once: a peer may remember more of it than its data
//! directory holds (see [`super::network::local`]), and then it must not vote.

use std::{
    io,
    sync::{
        Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::Inner;
use conclave_storage::{LogStore, raft_types::Vote};
use conclave_types::NodeId;

/// The metadata entry with the longest lease, in milliseconds, that this node may have promised.
const LEASE: &str = "lease";

/// The longest lease that this node may have promised before it started, or will with its present setting.
/// From now on that is on record.
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

/// Until when this node neither votes nor stands for election.
pub(super) struct VoteHoldoff {
    until: Instant,
    /// Every other member has been tried as well.
    released: AtomicBool,
}

impl VoteHoldoff {
    /// For a node that starts now and has this vote on disk.
    pub(super) fn new(vote: Option<Vote>, node_id: NodeId, lease: Duration) -> Self {
        let followed =
            vote.is_some_and(|vote| vote.committed && vote.leader_id.voted_for != node_id);
        let until = Instant::now() + if followed { lease } else { Duration::ZERO };
        Self { until, released: AtomicBool::new(false) }
    }

    pub(super) fn is_over(&self) -> bool {
        self.until <= Instant::now()
    }

    /// Whether this node may stand for election.
    pub(super) fn is_released(&self) -> bool {
        self.released.load(Ordering::Relaxed)
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
    let Some(inner) = replica.upgrade() else { return };
    inner.peers.settled().await;
    // Every promise of an earlier process has run out.
    if let Err(error) = record_lease(&inner.log, inner.timing.lease()) {
        tracing::warn!(%error, "cannot record the length of the lease");
    }
    inner.hold.released.store(true, Ordering::Relaxed);
    if inner.local.lost().is_none() && inner.unfit().is_none() {
        inner.raft.runtime_config().elect(true);
    }
    let mut lost = inner.local.watch_lost();
    drop(inner);
    // Its peers ignore a node whose directory is an old copy; it must not try to be elected either.
    if lost.wait_for(Option::is_some).await.is_ok()
        && let Some(inner) = replica.upgrade()
    {
        inner.raft.runtime_config().elect(false);
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
        assert!(!waits(Some(Vote::new_committed(3, 1))), "it led itself");
        assert!(!waits(Some(Vote::new(3, 2))), "nobody was elected yet");
        assert!(!waits(None));
    }
}
