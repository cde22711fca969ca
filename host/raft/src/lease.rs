//! The leader's lease: the time until which no other leader can have been elected.
//!
//! A follower that accepts a message of the leader votes for no other node for one lease after
//! it received the message ([`crate::timing::Timing::lease`]). [`super::vote_holdoff`] keeps
//! that promise across a restart. So while a majority has accepted a heartbeat that was sent
//! less than one lease ago, this node is the only leader, and serves reads without a round (Raft
//! thesis, section 6.4.1).
//!
//! Contract: the lease counts from the time at which a heartbeat was sent, and only if that
//! heartbeat itself was acknowledged. It is shorter than the followers' promise, by a margin for
//! clocks that run at different rates. Its clock includes the time during which the host was
//! suspended. A transfer of leadership ends the lease, because the followers may then vote at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::boot_time::boot_time;
use conclave_storage::raft_types::Membership;
use conclave_types::NodeId;

/// The time since the host was started, suspension included. It also advances
/// while the process is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BootTime(Duration);

impl BootTime {
    pub(super) fn now() -> Self {
        Self(boot_time())
    }
}

/// The heartbeats of one term that the followers have acknowledged.
pub(super) struct Lease {
    length: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The term of the heartbeats below.
    term: u64,
    /// The send time of the newest heartbeat that each follower has acknowledged.
    sent: BTreeMap<NodeId, BootTime>,
    /// No lease of this term or an earlier one is valid, because leadership was offered to another node.
    ended: u64,
}

impl Lease {
    /// Creates a lease of this length ([`crate::timing::Timing::lease_used`]).
    pub(super) fn new(length: Duration) -> Self {
        Self { length, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a follower has accepted the heartbeat of this term that was sent at this time.
    pub(super) fn extend(&self, node_id: NodeId, term: u64, sent: BootTime) {
        let mut state = self.state();
        if term > state.term {
            state.term = term;
            state.sent.clear();
        }
        if term == state.term {
            let newest = state.sent.entry(node_id).or_insert(sent);
            *newest = sent.max(*newest);
        }
    }

    /// Ends the lease of this term permanently. Called before leadership is offered to another node.
    pub(super) fn end(&self, term: u64) {
        let mut state = self.state();
        state.ended = state.ended.max(term);
    }

    /// Returns whether no node other than the leader of this term, which is this node, can
    /// have been elected by now.
    pub(super) fn is_valid(&self, term: u64, membership: &Membership, own: NodeId) -> bool {
        self.is_valid_at(BootTime::now(), term, membership, own)
    }

    fn is_valid_at(&self, now: BootTime, term: u64, membership: &Membership, own: NodeId) -> bool {
        let state = self.state();
        if term <= state.ended {
            return false;
        }
        let fresh = |node: &NodeId| {
            let sent = state.sent.get(node).filter(|_| state.term == term);
            *node == own || sent.is_some_and(|sent| now.0.saturating_sub(sent.0) < self.length)
        };
        let majority = |voters: &BTreeSet<NodeId>| {
            voters.iter().filter(|node| fresh(node)).count() * 2 > voters.len()
        };
        membership.get_joint_config().iter().all(majority)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use conclave_storage::raft_types::Member;

    const LENGTH: Duration = Duration::from_millis(450);

    fn at(ms: u64) -> BootTime {
        BootTime(Duration::from_millis(ms))
    }

    fn membership(voters: &[NodeId]) -> Membership {
        let config: BTreeSet<NodeId> = voters.iter().copied().collect();
        let nodes: BTreeMap<NodeId, Member> =
            voters.iter().map(|id| (*id, Member::default())).collect();
        Membership::new(vec![config], nodes).unwrap()
    }

    #[test]
    fn the_lease_counts_from_the_sending() {
        let (lease, three) = (Lease::new(LENGTH), membership(&[1, 2, 3]));
        lease.extend(2, 4, at(1000));
        assert!(lease.is_valid_at(at(1449), 4, &three, 1));
        assert!(!lease.is_valid_at(at(1450), 4, &three, 1), "450 ms after the sending");
        assert!(!lease.is_valid_at(at(1449), 4, &membership(&[1, 2, 3, 4, 5]), 1), "two of five");
    }

    #[test]
    fn an_answer_that_comes_late_does_not_shorten_the_lease() {
        let (lease, three) = (Lease::new(LENGTH), membership(&[1, 2, 3]));
        lease.extend(2, 4, at(1200));
        lease.extend(2, 4, at(1000));
        assert!(lease.is_valid_at(at(1600), 4, &three, 1));
    }

    #[test]
    fn heartbeats_of_another_term_do_not_count() {
        let (lease, three) = (Lease::new(LENGTH), membership(&[1, 2, 3]));
        lease.extend(2, 4, at(1000));
        assert!(!lease.is_valid_at(at(1001), 5, &three, 1));
        lease.extend(3, 5, at(1001));
        assert!(!lease.is_valid_at(at(1002), 4, &three, 1));
        lease.extend(2, 4, at(1002));
        assert!(!lease.is_valid_at(at(1003), 4, &three, 1), "a late response of an earlier term");
        assert!(lease.is_valid_at(at(1003), 5, &three, 1));
    }

    #[test]
    fn a_transfer_ends_the_lease_of_its_term_for_good() {
        let (lease, three) = (Lease::new(LENGTH), membership(&[1, 2, 3]));
        lease.extend(2, 4, at(1000));
        lease.end(4);
        lease.extend(2, 4, at(1100));
        assert!(!lease.is_valid_at(at(1101), 4, &three, 1));
        lease.extend(2, 6, at(2000));
        assert!(lease.is_valid_at(at(2001), 6, &three, 1));
    }

    #[test]
    fn a_cluster_of_one_needs_nobody_elses_promise() {
        assert!(Lease::new(LENGTH).is_valid_at(at(1), 1, &membership(&[1]), 1));
    }
}
