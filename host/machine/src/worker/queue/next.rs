//! The standby's next step: the decision, and the transitions that take it from the queue.

use std::collections::VecDeque;

use super::{Queue, StandbyState};
use crate::{
    instance::Instance,
    worker::requests::{Finished, Prepared, Promotion, Question, ReadRequest, SnapshotRequest},
};

/// The number of entries and queries per turn. Each kind takes a millisecond or two, about as long
/// as a piece of a snapshot, so that none starves the others.
pub(super) const TURN_COUNT: usize = 256;

/// The facts about the standby's thread on which its next step depends.
#[derive(Clone, Copy, Debug)]
pub(in crate::worker) struct Position {
    /// The index that it has applied.
    pub(in crate::worker) applied: u64,
    pub(in crate::worker) has_instance: bool,
    /// Whether snapshots are being read from its instance.
    pub(in crate::worker) is_read: bool,
}

/// The kind of the standby's next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Adopt,
    Succeed,
    Build,
    Promote,
    /// The standby has passed the index of the promotion.
    Fail {
        promotion: u64,
    },
    CatchUp {
        to: u64,
    },
    Follow,
}

/// The standby's next step, with the requests that it takes from the queue.
pub(in crate::worker) enum Next<P = Prepared, I = Instance> {
    /// Continues from the state that the primary has adopted.
    Adopt(P),
    /// Continues with a state that was restored from a snapshot.
    Succeed(P),
    /// Builds an instance from the newest snapshot.
    Build,
    /// Gives its instance to the primary.
    Promote(Promotion<I>, Requests),
    /// Fails, because its instance is past the state that the primary needs.
    Fail { promotion: u64 },
    /// Reads entries up to `to` from the entry source.
    CatchUp { to: u64, requests: Requests },
    /// Follows the primary over entries, and answers questions.
    Follow { entries: Vec<Finished>, questions: VecDeque<Question>, requests: Requests },
    /// Waits for a change of the queue.
    Wait,
}

/// Requests that concern snapshots. They are handled in any state of the standby.
#[derive(Default)]
pub(in crate::worker) struct Requests {
    pub(in crate::worker) closed: Vec<u64>,
    pub(in crate::worker) snapshots: Vec<SnapshotRequest>,
    pub(in crate::worker) read: Option<ReadRequest>,
}

impl<P, I> Queue<P, I> {
    /// Takes the standby's next step.
    pub(in crate::worker) fn next(&mut self, at: Position) -> Next<P, I> {
        // A request whose caller has given up would hold the standby at its index.
        self.snapshots.retain(|request| !request.reply.is_closed());
        let next = match self.decide(at) {
            Decision::Build => Next::Build,
            Decision::Fail { promotion } => Next::Fail { promotion },
            Decision::Adopt => {
                let Some(replacement) = self.replacement.take() else { unreachable!("decided") };
                Next::Adopt(replacement)
            }
            Decision::Succeed => {
                let Some((_, successor)) = self.successor.take() else { unreachable!("decided") };
                self.standby_lost();
                Next::Succeed(successor)
            }
            Decision::Promote => {
                let Some(promotion) = self.promotion.take() else { unreachable!("decided") };
                self.serve(at.applied);
                Next::Promote(promotion, self.take_requests(at.applied))
            }
            Decision::CatchUp { to } => {
                self.serve(at.applied);
                self.standby_lost();
                Next::CatchUp { to, requests: self.take_requests(at.applied) }
            }
            Decision::Follow => self.follow(at.applied),
        };
        self.assert_invariants();
        next
    }

    /// Decides about the standby's next step.
    pub(super) fn decide(&self, at: Position) -> Decision {
        if self.replacement.is_some() {
            return Decision::Adopt;
        }
        let is_requested =
            self.promotion.is_some() || !self.snapshots.is_empty() || !self.reads.is_empty();
        if self.successor.is_some() && !(at.has_instance && (at.is_read || is_requested)) {
            return Decision::Succeed;
        }
        if !at.has_instance {
            return Decision::Build;
        }
        match &self.promotion {
            Some(Promotion { index, .. }) if *index < at.applied => {
                return Decision::Fail { promotion: *index };
            }
            Some(Promotion { index, .. }) if *index == at.applied => return Decision::Promote,
            Some(_) | None => {}
        }
        match self.gap(at.applied) {
            Some(to) => Decision::CatchUp { to: to.min(self.boundary(at.applied)) },
            None => Decision::Follow,
        }
    }

    fn follow(&mut self, applied: u64) -> Next<P, I> {
        self.serve(applied);
        self.standby_caught_up();
        let requests = self.take_requests(applied);
        // No caller may observe an older state than was served before. All writes wait for a
        // promotion, so no query is answered before it.
        let answers = self.standby == StandbyState::Following
            && applied >= self.serving
            && self.promotion.is_none();
        let count = if answers { self.ready.len().min(TURN_COUNT) } else { 0 };
        let questions: VecDeque<_> = self.ready.drain(..count).collect();
        let entries =
            if requests.snapshots.is_empty() { self.take_entries(applied) } else { Vec::new() };
        let Requests { closed, snapshots, read } = &requests;
        let is_idle = closed.is_empty() && snapshots.is_empty() && read.is_none();
        if is_idle && questions.is_empty() && entries.is_empty() {
            return Next::Wait;
        }
        Next::Follow { entries, questions, requests }
    }

    /// Records that the kept entries follow the standby's state. Once few are left, it answers queries
    /// again. It has to catch up first, so that no caller observes an older state than was served before.
    fn standby_caught_up(&mut self) {
        if let StandbyState::CatchingUp { requested } = self.standby {
            self.standby = StandbyState::Returning { requested };
        }
        if matches!(self.standby, StandbyState::Returning { .. })
            && self.promotion.is_none()
            && self.finished.len() < TURN_COUNT
        {
            self.standby = StandbyState::Following;
            self.wakes.presence = Some(true);
        }
    }

    fn take_requests(&mut self, applied: u64) -> Requests {
        let due = |request: &mut SnapshotRequest| request.index <= applied;
        Requests {
            closed: std::mem::take(&mut self.closed),
            snapshots: self.snapshots.extract_if(.., due).collect(),
            read: self.reads.pop_front(),
        }
    }

    /// Takes entries that follow `applied`, up to the boundary.
    fn take_entries(&mut self, applied: u64) -> Vec<Finished> {
        let boundary = self.boundary(applied);
        let mut taken = Vec::new();
        let mut position = applied;
        while let Some(next) = self.finished.front() {
            let is_behind = next.index <= position;
            let is_late = next.after > position || next.index > boundary;
            if !is_behind && (is_late || taken.len() == TURN_COUNT) {
                break;
            }
            let Some(next) = self.finished.pop_front() else { break };
            self.finished_bytes -= next.bytes();
            self.wakes.room = true;
            if !is_behind {
                position = next.index;
                taken.push(next);
            }
        }
        taken
    }

    /// Returns the index after `applied` that the standby must not pass yet, because a snapshot or a
    /// promotion needs the state there.
    fn boundary(&self, applied: u64) -> u64 {
        let snapshots = self.snapshots.iter().map(|request| request.index);
        let promotion = self.promotion.iter().map(|promotion| promotion.index);
        snapshots.chain(promotion).filter(|index| *index > applied).min().unwrap_or(u64::MAX)
    }

    /// Returns the index up to which entries must be read from the entry source, because the kept
    /// ones do not follow `applied`.
    pub(super) fn gap(&self, applied: u64) -> Option<u64> {
        let next = self.finished.iter().find(|next| next.index > applied);
        let known_from = next.map_or(self.pushed, |next| next.after);
        (known_from > applied).then_some(known_from)
    }
}
