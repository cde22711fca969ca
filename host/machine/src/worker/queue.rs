//! The queue of work for the standby: its state, and the decision about the next step of each thread.
//!
//! The queue changes only by named transitions. A transition records the threads that it concerns in
//! [`Wakes`], and [`Inbox`](super::inbox::Inbox) wakes them.
//!
//! The finished entries in it are a cache of the end of the log. While the standby catches up, they
//! may be dropped, and it reads them from the entry source. While it keeps up, the primary waits
//! for room instead, so that the standby cannot fall further and further behind.

mod next;

use std::collections::VecDeque;

pub(super) use self::next::{Next, Position, Requests};
use super::requests::{
    ENTRY_BYTES, Finished, Prepared, Promotion, Question, ReadRequest, SnapshotRequest,
};
use crate::instance::Instance;
use conclave_types::Call;

/// The number of gathered entries that wakes the standby.
const NAP_COUNT_MAX: usize = 64;
/// The size of gathered entries that wakes the standby.
const NAP_BYTES_MAX: usize = 1 << 20;

/// The queue. See the module documentation. The types of prepared states and of instances are
/// parameters, so that tests of the queue need no state machine.
///
/// Invariants:
/// - The kept entries are the newest that the primary has finished. The last one is at `pushed`, and
///   the next one follows it without a gap.
/// - `finished_bytes` is the size of the kept entries.
/// - `ready` has the questions that can be answered at `serving`, and `waiting` the others.
/// - A successor is newer than the last adopted state.
/// - Nothing waits for a standby that has ended.
pub(super) struct Queue<P = Prepared, I = Instance> {
    standby: StandbyState,
    finished: VecDeque<Finished>,
    finished_bytes: usize,
    /// The index of the last entry that the primary has finished.
    pushed: u64,
    /// Questions whose index has been reached.
    ready: VecDeque<Question>,
    /// Questions whose index has not been reached.
    waiting: Vec<Question>,
    /// The index at which questions are answered.
    serving: u64,
    snapshots: Vec<SnapshotRequest>,
    reads: VecDeque<ReadRequest>,
    closed: Vec<u64>,
    promotion: Option<Promotion<I>>,
    /// A state of another node, which the primary has adopted.
    replacement: Option<P>,
    /// The index of the last adopted state. Older snapshots of this node are obsolete.
    adopted_at: u64,
    /// A state that was restored from a snapshot of this node at this index, to become the standby.
    successor: Option<(u64, P)>,
    sleep: Sleep,
    wakes: Wakes,
}

/// The standby, as far as it concerns the primary. `requested` means that the primary has been
/// requested to answer queries, and has not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StandbyState {
    /// It follows the primary and answers queries. The primary waits for room.
    Following,
    /// There is none, or it is behind the kept entries. The primary answers queries, and does not
    /// wait for room.
    CatchingUp { requested: bool },
    /// The kept entries follow its state, but there are many. The primary still answers queries,
    /// and waits for room.
    Returning { requested: bool },
    /// It has ended, and nothing more is accepted.
    Ended,
}

/// The ways in which the standby waits for work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sleep {
    #[default]
    Awake,
    /// It lets entries gather for a short time.
    Napping,
    /// It waits until it is woken.
    Asleep,
}

/// The effects of transitions on threads. An unnecessary wake-up would cost a system call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wakes {
    /// Wakes the standby, which sleeps.
    pub(super) standby: bool,
    /// Wakes the primary if it waits for room.
    pub(super) room: bool,
    /// Requests the primary to answer queries.
    pub(super) queries: bool,
    /// Reports that the standby answers queries, or that it does not.
    pub(super) presence: Option<bool>,
}

/// Requests that no standby will handle.
pub(super) struct Unanswered {
    pub(super) questions: Vec<Question>,
    pub(super) snapshots: Vec<SnapshotRequest>,
    pub(super) reads: VecDeque<ReadRequest>,
}

/// The reasons why something was not queued.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotQueued {
    /// The standby has ended.
    Ended,
    /// Too many questions are waiting, or the standby has to make room for entries first.
    Full,
}

/// The primary's part in answering questions.
pub(super) enum PrimaryTurn {
    /// The standby answers, or a promotion comes first.
    Idle,
    /// The primary answers these. Whether there may be more.
    Answer { questions: VecDeque<Question>, more: bool },
}

impl<P, I> Default for Queue<P, I> {
    fn default() -> Self {
        Self {
            standby: StandbyState::Following,
            finished: VecDeque::new(),
            finished_bytes: 0,
            pushed: 0,
            ready: VecDeque::new(),
            waiting: Vec::new(),
            serving: 0,
            snapshots: Vec::new(),
            reads: VecDeque::new(),
            closed: Vec::new(),
            promotion: None,
            replacement: None,
            adopted_at: 0,
            successor: None,
            sleep: Sleep::Awake,
            wakes: Wakes::default(),
        }
    }
}

/// The requests of callers.
impl<P, I> Queue<P, I> {
    /// Begins at the index at which both instances stand.
    pub(super) fn begin_at(&mut self, index: u64) {
        (self.pushed, self.serving, self.adopted_at) = (index, index, index);
        self.assert_invariants();
    }

    /// Queues a question, unless `waiting_max` are waiting.
    pub(super) fn ask(&mut self, question: Question, waiting_max: usize) -> Result<(), NotQueued> {
        self.check_end()?;
        if self.ready.len() + self.waiting.len() >= waiting_max {
            self.waiting.retain(|question| !question.ask.is_closed());
            if self.ready.len() + self.waiting.len() >= waiting_max {
                return Err(NotQueued::Full);
            }
        }
        if question.index_min <= self.serving {
            self.ready.push_back(question);
            if self.standby == StandbyState::Following {
                self.wake_standby();
            } else {
                self.request_primary();
            }
        } else {
            self.waiting.push(question);
            // The entries that the question waits for may be queued while the standby naps.
            if !self.finished.is_empty() {
                self.wake_standby();
            }
        }
        self.assert_invariants();
        Ok(())
    }

    /// Queues the request for a snapshot.
    pub(super) fn request_snapshot(&mut self, request: SnapshotRequest) -> Result<(), NotQueued> {
        self.check_end()?;
        self.snapshots.push(request);
        self.wake_standby();
        self.assert_invariants();
        Ok(())
    }

    /// Queues the request for a piece of a snapshot.
    pub(super) fn request_read(&mut self, request: ReadRequest) -> Result<(), NotQueued> {
        self.check_end()?;
        self.reads.push_back(request);
        self.wake_standby();
        self.assert_invariants();
        Ok(())
    }

    /// Releases a snapshot, unless the standby has ended and released all.
    pub(super) fn close_stream(&mut self, stream: u64) {
        if self.check_end().is_ok() {
            self.closed.push(stream);
            self.wake_standby();
        }
        self.assert_invariants();
    }

    /// Offers a state that was restored from a snapshot of this node at `index`. Returns a state
    /// that is of no use any more, for the caller to drop.
    pub(super) fn offer_successor(&mut self, index: u64, successor: P) -> Option<P> {
        if self.check_end().is_err() || index <= self.adopted_at {
            return Some(successor);
        }
        let previous = self.successor.replace((index, successor));
        self.wake_standby();
        self.assert_invariants();
        previous.map(|(_, previous)| previous)
    }
}

/// The transitions of the primary.
impl<P, I> Queue<P, I> {
    /// Continues from the state of another node at `index`, which both instances have. The entries
    /// and the successor before it are obsolete.
    pub(super) fn adopt(&mut self, index: u64, replacement: P) -> Result<(), NotQueued> {
        self.check_end()?;
        self.finished.clear();
        self.finished_bytes = 0;
        (self.pushed, self.adopted_at) = (index, index);
        self.replacement = Some(replacement);
        self.successor = None;
        self.wake_standby();
        self.assert_invariants();
        Ok(())
    }

    /// Requests the standby's instance. The request is dropped when the standby ends.
    pub(super) fn request_promotion(&mut self, promotion: Promotion<I>) -> Result<(), NotQueued> {
        self.check_end()?;
        self.promotion = Some(promotion);
        self.wake_standby();
        self.assert_invariants();
        Ok(())
    }

    /// Appends entries of this size, if there is room. While the standby catches up, drops the
    /// oldest beyond the limit, because the standby reads them from the log. Interrupts a nap of the
    /// standby only if this is `urgent`, a request waits for the entries, or many have gathered.
    pub(super) fn push(
        &mut self,
        entries: &mut Vec<Finished>,
        bytes: usize,
        bytes_max: usize,
        urgent: bool,
    ) -> Result<(), NotQueued> {
        let is_catching_up = match self.standby {
            StandbyState::Ended => return Err(NotQueued::Ended),
            StandbyState::CatchingUp { .. } => true,
            StandbyState::Following | StandbyState::Returning { .. } => false,
        };
        if !is_catching_up && self.finished_bytes > bytes_max {
            self.wake_standby();
            return Err(NotQueued::Full);
        }
        if let Some(first) = entries.first() {
            assert_eq!(first.after, self.pushed, "entry {} leaves a gap in the queue", first.index);
        }
        if let Some(last) = entries.last() {
            self.pushed = last.index;
        }
        self.finished.extend(entries.drain(..));
        self.finished_bytes += bytes;
        while is_catching_up && self.finished_bytes > bytes_max {
            let Some(oldest) = self.finished.pop_front() else { break };
            self.finished_bytes -= oldest.bytes();
        }
        let can_wait = !urgent
            && self.waiting.is_empty()
            && self.snapshots.is_empty()
            && self.promotion.is_none()
            && self.finished.len() < NAP_COUNT_MAX
            && self.finished_bytes < NAP_BYTES_MAX;
        if self.sleep != Sleep::Napping || !can_wait {
            self.wake_standby();
        }
        self.assert_invariants();
        Ok(())
    }

    /// Takes at most `count` queries that pass `allowed`, in order, for the primary, which stands at
    /// `applied`. Leaves subscriptions, because only the standby records events.
    pub(super) fn primary_turn(
        &mut self,
        applied: u64,
        count: usize,
        allowed: impl Fn(&Call) -> bool,
    ) -> PrimaryTurn {
        self.primary_not_requested();
        if !self.primary_answers() || self.promotion.is_some() {
            return PrimaryTurn::Idle;
        }
        self.serve(applied);
        let mut questions = VecDeque::new();
        let mut left = VecDeque::new();
        while questions.len() < count
            && let Some(question) = self.ready.pop_front()
        {
            if !question.ask.is_subscription() && allowed(&question.call) {
                questions.push_back(question);
            } else {
                left.push_back(question);
            }
        }
        let more = !self.ready.is_empty();
        left.append(&mut self.ready);
        self.ready = left;
        self.assert_invariants();
        PrimaryTurn::Answer { questions, more }
    }

    /// Puts back the questions of a turn that were not answered. Fails if the standby has ended.
    pub(super) fn put_back(&mut self, mut questions: VecDeque<Question>) -> Result<(), NotQueued> {
        self.check_end()?;
        while let Some(question) = questions.pop_back() {
            self.ready.push_front(question);
        }
        // If there is a standby by now, it answers them.
        self.wake_standby();
        self.assert_invariants();
        Ok(())
    }

    /// Records that the primary has begun to answer queries, or that the request did not reach it.
    pub(super) fn primary_not_requested(&mut self) {
        if let StandbyState::CatchingUp { requested } | StandbyState::Returning { requested } =
            &mut self.standby
        {
            *requested = false;
        }
        self.assert_invariants();
    }
}

/// The transitions of the standby. Those of its next step are in [`next`].
impl<P, I> Queue<P, I> {
    /// Records that there is no standby, or that it is behind the kept entries. The primary answers
    /// queries from here on, and does not wait for room.
    pub(super) fn standby_lost(&mut self) {
        let requested = match self.standby {
            StandbyState::Ended => return,
            StandbyState::Following => {
                self.wakes.presence = Some(false);
                false
            }
            StandbyState::CatchingUp { requested } | StandbyState::Returning { requested } => {
                requested
            }
        };
        self.wakes.room |= !matches!(self.standby, StandbyState::CatchingUp { .. });
        self.standby = StandbyState::CatchingUp { requested };
        self.request_primary();
        self.assert_invariants();
    }

    /// Takes the requests that only a standby can handle, because none can be built.
    pub(super) fn take_unanswerable(&mut self) -> Unanswered {
        let is_subscription = |question: &mut Question| question.ask.is_subscription();
        let mut questions: Vec<Question> = self.waiting.extract_if(.., is_subscription).collect();
        let (subscriptions, ready) =
            self.ready.drain(..).partition(|question| question.ask.is_subscription());
        let subscriptions: VecDeque<Question> = subscriptions;
        questions.extend(subscriptions);
        self.ready = ready;
        self.closed.clear();
        let snapshots = std::mem::take(&mut self.snapshots);
        let reads = std::mem::take(&mut self.reads);
        self.assert_invariants();
        Unanswered { questions, snapshots, reads }
    }

    /// Ends the standby, and takes all requests.
    pub(super) fn end(&mut self) -> Unanswered {
        self.standby = StandbyState::Ended;
        self.wakes.room = true;
        self.finished.clear();
        self.finished_bytes = 0;
        self.closed.clear();
        (self.promotion, self.replacement, self.successor) = (None, None, None);
        let mut questions: Vec<Question> = self.ready.drain(..).collect();
        questions.append(&mut self.waiting);
        let snapshots = std::mem::take(&mut self.snapshots);
        let reads = std::mem::take(&mut self.reads);
        self.assert_invariants();
        Unanswered { questions, snapshots, reads }
    }

    /// Records how the standby waits for work.
    pub(super) fn standby_sleeps(&mut self, sleep: Sleep) {
        self.sleep = sleep;
    }

    /// Takes the effects of the transitions since the last call.
    pub(super) fn take_wakes(&mut self) -> Wakes {
        std::mem::take(&mut self.wakes)
    }
}

impl<P, I> Queue<P, I> {
    /// Returns the size of the kept entries.
    pub(super) fn finished_bytes(&self) -> usize {
        self.finished_bytes
    }

    /// Returns whether the primary waits for an instance.
    pub(super) fn awaits_promotion(&self) -> bool {
        self.promotion.is_some()
    }

    /// Returns whether a standby that pauses has to continue at once.
    pub(super) fn ends_pause(&self) -> bool {
        self.promotion.is_some() || self.replacement.is_some()
    }

    fn primary_answers(&self) -> bool {
        matches!(self.standby, StandbyState::CatchingUp { .. } | StandbyState::Returning { .. })
    }

    fn check_end(&self) -> Result<(), NotQueued> {
        if self.standby == StandbyState::Ended { Err(NotQueued::Ended) } else { Ok(()) }
    }

    /// Releases the questions whose index has been reached.
    fn serve(&mut self, applied: u64) {
        if applied <= self.serving {
            return;
        }
        self.serving = applied;
        let is_reached = |question: &mut Question| question.index_min <= applied;
        self.ready.extend(self.waiting.extract_if(.., is_reached));
    }

    fn wake_standby(&mut self) {
        if std::mem::take(&mut self.sleep) != Sleep::Awake {
            self.wakes.standby = true;
        }
    }

    /// Requests the primary to answer queries, if no request is pending.
    fn request_primary(&mut self) {
        if let StandbyState::CatchingUp { requested } | StandbyState::Returning { requested } =
            &mut self.standby
            && !*requested
            && !self.ready.is_empty()
        {
            *requested = true;
            self.wakes.queries = true;
        }
    }

    /// Checks the invariants, as far as that takes constant time. Called at the end of each transition.
    fn assert_invariants(&self) {
        let (count, bytes) = (self.finished.len(), self.finished_bytes);
        if let (Some(first), Some(last)) = (self.finished.front(), self.finished.back()) {
            assert!(first.after <= first.index && first.index <= last.index);
            assert_eq!(last.index, self.pushed, "the last kept entry is the last finished one");
            assert!(bytes >= count * ENTRY_BYTES, "{bytes} bytes are too few for {count} entries");
        } else {
            assert_eq!(bytes, 0, "no entries have no size");
        }
        let can_be_answered = |question: &Question| question.index_min <= self.serving;
        assert!(self.ready.front().is_none_or(can_be_answered), "a question is ready too early");
        assert!(self.ready.back().is_none_or(can_be_answered), "a question is ready too early");
        assert!(!self.waiting.last().is_some_and(can_be_answered), "a question waits too long");
        if let Some((index, _)) = &self.successor {
            assert!(*index > self.adopted_at, "the successor at {index} is obsolete");
        }
        if self.standby == StandbyState::Ended {
            let questions = self.ready.len() + self.waiting.len();
            let requests = self.snapshots.len() + self.reads.len() + self.closed.len();
            assert_eq!((count, questions, requests), (0, 0, 0), "the standby has ended");
            let states = [self.replacement.is_some(), self.successor.is_some()];
            assert!(self.promotion.is_none() && states == [false; 2], "the standby has ended");
        }
    }
}

#[cfg(test)]
mod tests;
