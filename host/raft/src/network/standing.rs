//! The acknowledgements of a peer, and the check whether the peer started with less.
//!
//! An acknowledgement means that the vote and the log id are on the peer's disk, and a node's
//! vote never decreases. So a peer that starts with a smaller vote has lost data, and so has a
//! peer with the same vote and a smaller log id. Under a greater vote a later leader may have
//! truncated the entries, which is legal, and then that leader's own record counts (Raft
//! thesis, sections 3.4 to 3.6).
//!
//! Only the state at the *start* of a process is compared, and only with acknowledgements of
//! earlier processes of the peer: later votes could hide the loss.

use std::cmp::Ordering;

use conclave_proto::raft as wire;
use conclave_storage::{
    convert::{log_id_from_wire, log_id_to_wire, vote_from_wire, vote_to_wire},
    raft_types::{LogId, Vote},
};

/// The log and the vote of a node when its process started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    process: u64,
    pub(super) vote: Option<Vote>,
    pub(super) last: Option<LogId>,
}

impl Standing {
    /// Creates the standing of a process that starts now. `last` is the end of the log or
    /// of the newest snapshot.
    pub fn new(vote: Option<Vote>, last: Option<LogId>) -> Self {
        Self { process: rand::random(), vote, last }
    }

    pub(super) fn process(&self) -> u64 {
        self.process
    }

    pub(super) fn to_wire(self) -> wire::Standing {
        wire::Standing {
            process: self.process,
            vote: self.vote.as_ref().map(vote_to_wire),
            last_log_id: self.last.as_ref().map(log_id_to_wire),
        }
    }

    pub(super) fn from_wire(standing: &wire::Standing) -> Self {
        Self {
            process: standing.process,
            vote: standing.vote.as_ref().map(vote_from_wire),
            last: standing.last_log_id.as_ref().map(log_id_from_wire),
        }
    }
}

/// The newest acknowledgement of a peer to this node as its leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Acknowledged {
    /// This node's vote as the leader.
    pub(super) vote: Vote,
    pub(super) last: Option<LogId>,
    pub(super) process: u64,
}

impl Acknowledged {
    /// Applies a later acknowledgement. Returns whether it changed anything.
    pub(super) fn advance(&mut self, later: Self) -> bool {
        let before = *self;
        if later.vote > self.vote {
            *self = later;
        } else if later.vote == self.vote {
            // A new process may confirm less at first. It was checked at its handshake.
            self.last = self.last.max(later.last);
            self.process = later.process;
        }
        *self != before
    }

    /// Returns whether a peer with this standing has lost data that it acknowledged before.
    pub(super) fn is_lost_by(&self, standing: &Standing) -> bool {
        if standing.process == self.process {
            return false;
        }
        match standing.vote {
            None => true,
            Some(vote) if vote == self.vote => standing.last < self.last,
            // Votes of the same term for different nodes have no order.
            Some(vote) => vote.partial_cmp(&self.vote) != Some(Ordering::Greater),
        }
    }

    pub(super) fn to_wire(self) -> wire::Acknowledged {
        wire::Acknowledged {
            vote: Some(vote_to_wire(&self.vote)),
            log_id: self.last.as_ref().map(log_id_to_wire),
            process: self.process,
        }
    }

    pub(super) fn from_wire(known: &wire::Acknowledged) -> Option<Self> {
        Some(Self {
            vote: vote_from_wire(known.vote.as_ref()?),
            last: known.log_id.as_ref().map(log_id_from_wire),
            process: known.process,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conclave_types::NodeId;

    fn vote(term: u64, node_id: NodeId) -> Vote {
        Vote::new_committed(term, node_id)
    }

    fn id(term: u64, index: u64) -> Option<LogId> {
        Some(LogId::new_term_index(term, index))
    }

    /// Each line is a start of a peer that acknowledged entry 100 of term 3 to node 1 under term 3:
    /// its vote, its last log id, and whether it has lost data.
    #[test]
    fn only_real_losses_are_losses() {
        let known = Acknowledged { vote: vote(3, 1), last: id(3, 100), process: 7 };
        let cases = [
            (Some(vote(3, 1)), id(3, 100), false, "unchanged"),
            (Some(vote(3, 1)), id(3, 150), false, "more entries were in transit"),
            (Some(vote(3, 1)), id(3, 99), true, "the last entry is missing"),
            (Some(vote(3, 1)), id(2, 200), true, "a longer log of an older term"),
            (Some(vote(3, 1)), None, true, "no log"),
            (Some(vote(2, 2)), id(2, 200), true, "an older vote"),
            (Some(Vote::new(3, 1)), id(3, 100), true, "the vote was committed before"),
            (Some(Vote::new(3, 2)), id(3, 100), true, "it voted for node 1"),
            (None, None, true, "an empty directory"),
            (Some(vote(4, 2)), id(4, 60), false, "truncated by the leader of term 4"),
            (Some(vote(4, 2)), id(2, 50), false, "truncated, the new entries were in transit"),
            (Some(Vote::new(5, 2)), id(3, 100), false, "it has voted since"),
        ];
        for (vote, last, lost, what) in cases {
            let standing = Standing { process: 8, vote, last };
            assert_eq!(known.is_lost_by(&standing), lost, "{what}");
            let same = Standing { process: 7, vote, last };
            assert!(
                !known.is_lost_by(&same),
                "{what}: the start of the process that acknowledged it"
            );
        }
    }

    #[test]
    fn acknowledgements_advance_by_vote_and_log_id() {
        let mut known = Acknowledged { vote: vote(3, 1), last: id(3, 100), process: 7 };
        let later = |term, index, process| Acknowledged {
            vote: vote(term, 1),
            last: id(term, index),
            process,
        };
        assert!(!known.advance(later(3, 90, 7)), "an older response");
        assert!(known.advance(later(3, 101, 7)));
        assert!(known.advance(later(3, 5, 8)), "a new process begins with a probe");
        assert_eq!((known.last, known.process), (id(3, 101), 8), "the log id stays");
        assert!(!known.advance(later(2, 300, 8)), "of an earlier term");
        assert!(known.advance(later(5, 20, 8)));
        assert_eq!(known.last, id(5, 20));
    }

    #[test]
    fn records_survive_encoding() {
        for last in [None, id(3, 100)] {
            let known = Acknowledged { vote: vote(3, 1), last, process: u64::MAX };
            assert_eq!(Acknowledged::from_wire(&known.to_wire()), Some(known));
        }
        assert_eq!(Acknowledged::from_wire(&wire::Acknowledged::default()), None);
    }
}
