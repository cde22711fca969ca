//! The queue of work for the standby, behind one lock.
//!
//! The finished entries in it are a cache of the end of the log. While the standby catches up, they
//! may be dropped, and it reads them from the entry source. While it keeps up, the primary waits
//! for room instead, so that the standby cannot fall further and further behind.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{Answered, digest::OutcomeHash, events::Watcher};
use crate::{
    clock::Clock,
    component::Component,
    entry_context::EntryContext,
    error::{QueryError, SnapshotError},
    instance::{Instance, Subscription},
};
use conclave_types::{Call, Failure, limits::ClusterLimits};

/// An entry that the primary has finished.
pub(super) struct Finished {
    /// The index at which the primary stood before.
    pub(super) after: u64,
    /// The index at which it stands now.
    pub(super) index: u64,
    /// The work with which the standby follows.
    pub(super) step: Step,
    /// The hash of the outcome, if the state machine applied the entry.
    pub(super) outcome: Option<OutcomeHash>,
}

/// The work with which the standby follows the primary over an entry.
pub(super) enum Step {
    /// Applies a call or a tick, and expects the same outcome.
    Apply { context: EntryContext, call: Option<Call> },
    /// Changes to another component.
    Activate { context: EntryContext, component: Component },
    /// Sets other limits from here on.
    SetLimits { context: EntryContext, limits: ClusterLimits },
    /// Only advances: the state machine does not see the entry, it trapped, or its component was
    /// not activated.
    Skip { time_ms: u64 },
}

/// The time for which the standby lets entries gather. Each wake-up of its thread costs as much
/// as many entries.
const NAP: Duration = Duration::from_millis(5);
/// The number of gathered entries that wakes the standby.
const NAP_COUNT_MAX: usize = 64;
/// The size of gathered entries that wakes the standby.
const NAP_BYTES_MAX: usize = 1 << 20;

/// The approximate overhead of an entry in bytes, beside its request.
const ENTRY_BYTES: usize = 192;

impl Finished {
    pub(super) fn bytes(&self) -> usize {
        match &self.step {
            Step::Apply { call, .. } => ENTRY_BYTES + call.as_ref().map_or(0, Call::bytes),
            Step::Activate { .. } | Step::SetLimits { .. } | Step::Skip { .. } => ENTRY_BYTES,
        }
    }
}

/// A query or subscription that waits for the standby.
pub(super) struct Question {
    pub(super) call: Call,
    pub(super) index_min: u64,
    pub(super) ask: Ask,
}

/// The kind of question, with the channel of its answer.
pub(super) enum Ask {
    /// A query.
    Query(oneshot::Sender<Result<Answered, QueryError>>),
    /// A subscription. With `resume`, it continues after that index.
    Subscribe { resume: Option<u64>, reply: oneshot::Sender<Result<Begun, QueryError>> },
}

/// The standby's answer to a subscription, created on its thread.
pub(super) struct Begun {
    pub(super) index: u64,
    pub(super) result: Result<(Subscription, Watcher), Failure>,
}

impl Ask {
    /// Returns whether the caller has given up.
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::Query(reply) => reply.is_closed(),
            Self::Subscribe { reply, .. } => reply.is_closed(),
        }
    }

    /// Answers with an error.
    pub(super) fn fail(self, error: QueryError) {
        // The caller may have given up.
        match self {
            Self::Query(reply) => _ = reply.send(Err(error)),
            Self::Subscribe { reply, .. } => _ = reply.send(Err(error)),
        }
    }
}

/// A request for a snapshot of the state at an index.
pub(super) struct SnapshotRequest {
    pub(super) index: u64,
    pub(super) reply: oneshot::Sender<Result<Captured, SnapshotError>>,
}

/// A state that the standby, which runs this component, has captured. It holds the state under this
/// number until the snapshot has been read or closed.
pub(super) struct Captured {
    pub(super) stream: u64,
    pub(super) component: Component,
    pub(super) context: EntryContext,
}

/// A piece of a snapshot; `None` at its end.
pub(super) type Chunk = Result<Option<bytes::Bytes>, SnapshotError>;

/// A request for the next piece of a snapshot.
pub(super) struct ReadRequest {
    pub(super) stream: u64,
    pub(super) reply: oneshot::Sender<Chunk>,
}

/// The primary's request for the standby's instance, in its state after `index`.
pub(super) struct Promotion {
    pub(super) index: u64,
    pub(super) reply: std::sync::mpsc::SyncSender<Instance>,
    /// The instance that trapped. Releasing a large memory takes long, so the standby drops it
    /// after its answer.
    pub(super) broken: Option<Instance>,
}

/// An instance that is ready for use, with its component and its position in the log.
pub(super) struct Prepared {
    pub(super) instance: Instance,
    pub(super) component: Component,
    pub(super) clock: Clock,
}

/// The queue. See the module documentation.
///
/// Invariants:
/// - The kept entries are the newest that the primary has finished. The last one is at `pushed`, and
///   the next one follows it without a gap.
/// - `finished_bytes` is the size of the kept entries.
/// - `ready` has the questions that can be answered at `serving`, and `waiting` the others.
/// - The primary is requested to answer queries only while there is no standby.
/// - Nothing waits for a standby that has ended.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) finished: VecDeque<Finished>,
    pub(super) finished_bytes: usize,
    /// The index of the last entry that the primary has finished.
    pub(super) pushed: u64,
    /// Whether the standby is behind the entries that are kept here, so that the primary does
    /// not wait for it.
    pub(super) catching_up: bool,
    /// Queries whose index the standby has reached.
    pub(super) ready: VecDeque<Question>,
    /// Queries whose index the standby has not reached.
    pub(super) waiting: Vec<Question>,
    /// The index at which queries are answered.
    pub(super) serving: u64,
    pub(super) snapshots: Vec<SnapshotRequest>,
    pub(super) reads: VecDeque<ReadRequest>,
    pub(super) closed: Vec<u64>,
    pub(super) promotion: Option<Promotion>,
    pub(super) replacement: Option<Prepared>,
    /// An instance that was restored from a snapshot of this node, to become the standby.
    pub(super) successor: Option<Prepared>,
    /// Whether there is no standby, so that the primary answers queries between batches.
    pub(super) primary_answers: bool,
    /// Whether the primary has been requested to answer queries, and has not begun.
    pub(super) primary_asked: bool,
    /// Whether the standby has ended, so that nothing more is accepted.
    pub(super) ended: bool,
    sleep: Sleep,
}

/// The ways in which the standby waits for work.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Sleep {
    #[default]
    Awake,
    /// It has just followed entries, and lets the next ones gather for at most [`NAP`].
    Napping,
    /// It waits until it is woken.
    Asleep,
}

/// The queue and the condition variables for waiting on it.
#[derive(Default)]
pub(super) struct Inbox {
    queue: Mutex<Queue>,
    work: Condvar,
    room: Condvar,
}

impl Inbox {
    pub(super) fn lock(&self) -> MutexGuard<'_, Queue> {
        // Only a broken invariant panics under the lock. The guard of the threads then stops the
        // worker.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the standby if it sleeps. An unnecessary wake-up would cost a system call.
    pub(super) fn wake_standby(&self, queue: &mut Queue) {
        if std::mem::take(&mut queue.sleep) != Sleep::Awake {
            self.work.notify_one();
        }
    }

    /// Wakes the standby for entries. Interrupts a nap only if this is `urgent`, a request waits
    /// for the entries, or many have gathered.
    pub(super) fn wake_for_entries(&self, queue: &mut Queue, urgent: bool) {
        let can_wait = !urgent
            && queue.waiting.is_empty()
            && queue.boundary() == u64::MAX
            && queue.finished.len() < NAP_COUNT_MAX
            && queue.finished_bytes < NAP_BYTES_MAX;
        if queue.sleep != Sleep::Napping || !can_wait {
            self.wake_standby(queue);
        }
    }

    /// Waits for work. With `naps`, waits at most [`NAP`], so that entries gather.
    pub(super) fn wait_for_work<'a>(
        &self,
        mut queue: MutexGuard<'a, Queue>,
        naps: bool,
    ) -> MutexGuard<'a, Queue> {
        let mut queue = if naps {
            queue.sleep = Sleep::Napping;
            let napped = self.work.wait_timeout(queue, NAP);
            napped.unwrap_or_else(PoisonError::into_inner).0
        } else {
            queue.sleep = Sleep::Asleep;
            self.work.wait(queue).unwrap_or_else(PoisonError::into_inner)
        };
        queue.sleep = Sleep::Awake;
        queue
    }

    /// Waits until woken, or until `time` has passed.
    pub(super) fn wait_at_most<'a>(
        &self,
        mut queue: MutexGuard<'a, Queue>,
        time: Duration,
    ) -> MutexGuard<'a, Queue> {
        queue.sleep = Sleep::Asleep;
        let waited = self.work.wait_timeout(queue, time);
        let mut queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        queue.sleep = Sleep::Awake;
        queue
    }

    /// Blocks the primary until the standby has made room.
    pub(super) fn wait_for_room<'a>(&self, queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        self.room.wait(queue).unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the primary, because the standby has taken entries or has ended.
    pub(super) fn made_room(&self) {
        self.room.notify_one();
    }

    /// Wakes all threads, because the worker stops.
    pub(super) fn wake_all(&self) {
        let _queue = self.lock();
        self.work.notify_all();
        self.room.notify_all();
    }
}

impl Queue {
    /// Begins at the index at which both instances stand.
    pub(super) fn begin_at(&mut self, index: u64) {
        self.pushed = index;
        self.serving = index;
        self.assert_invariants();
    }

    /// Continues from another state, which both instances have.
    pub(super) fn adopt(&mut self, prepared: Prepared) {
        self.finished.clear();
        self.finished_bytes = 0;
        self.pushed = prepared.clock.index();
        self.replacement = Some(prepared);
        self.assert_invariants();
    }

    /// Returns the index that the standby must not pass yet, because a snapshot or a promotion
    /// needs the state there.
    pub(super) fn boundary(&self) -> u64 {
        let snapshots = self.snapshots.iter().map(|request| request.index);
        snapshots
            .chain(self.promotion.as_ref().map(|promotion| promotion.index))
            .min()
            .unwrap_or(u64::MAX)
    }

    /// Appends entries. While the standby catches up, drops the oldest beyond the limit, because
    /// the standby reads them from the log.
    pub(super) fn push(&mut self, entries: &mut Vec<Finished>, bytes: usize, bytes_max: usize) {
        if let Some(first) = entries.first() {
            assert_eq!(first.after, self.pushed, "entry {} leaves a gap in the queue", first.index);
        }
        if let Some(last) = entries.last() {
            self.pushed = last.index;
        }
        self.finished.extend(entries.drain(..));
        self.finished_bytes += bytes;
        while self.catching_up && self.finished_bytes > bytes_max {
            let Some(oldest) = self.finished.pop_front() else { break };
            self.finished_bytes -= oldest.bytes();
        }
        self.assert_invariants();
    }

    /// Takes at most `count` entries that follow `applied`, up to the boundary.
    pub(super) fn take(&mut self, applied: u64, count: usize, into: &mut Vec<Finished>) {
        let boundary = self.boundary();
        let mut position = applied;
        while let Some(next) = self.finished.front() {
            let behind = next.index <= position;
            if !behind && (next.after > position || next.index > boundary || into.len() == count) {
                break;
            }
            let Some(next) = self.finished.pop_front() else { break };
            self.finished_bytes -= next.bytes();
            if !behind {
                position = next.index;
                into.push(next);
            }
        }
        self.assert_invariants();
    }

    /// Returns the index up to which entries must be read from the entry source, because the kept
    /// ones do not follow `applied`.
    pub(super) fn gap(&self, applied: u64) -> Option<u64> {
        let next = self.finished.iter().find(|next| next.index > applied);
        let known_from = next.map_or(self.pushed, |next| next.after);
        (known_from > applied).then_some(known_from)
    }

    /// Takes at most `count` queries that pass `allowed`, in order, and returns whether there may
    /// be more. Leaves subscriptions, because only the standby records events.
    pub(super) fn take_queries(
        &mut self,
        count: usize,
        allowed: impl Fn(&Call) -> bool,
    ) -> (VecDeque<Question>, bool) {
        let mut taken = VecDeque::new();
        let mut left = VecDeque::new();
        while taken.len() < count
            && let Some(question) = self.ready.pop_front()
        {
            let is_query = matches!(question.ask, Ask::Query(_));
            if is_query && allowed(&question.call) {
                taken.push_back(question);
            } else {
                left.push_back(question);
            }
        }
        let more = !self.ready.is_empty();
        left.append(&mut self.ready);
        self.ready = left;
        self.assert_invariants();
        (taken, more)
    }

    /// Takes the subscriptions, which only a standby can begin.
    pub(super) fn take_subscriptions(&mut self) -> Vec<Question> {
        let is_subscription =
            |question: &mut Question| matches!(question.ask, Ask::Subscribe { .. });
        let mut taken: Vec<Question> = self.waiting.extract_if(.., is_subscription).collect();
        for mut question in std::mem::take(&mut self.ready) {
            if is_subscription(&mut question) {
                taken.push(question);
            } else {
                self.ready.push_back(question);
            }
        }
        self.assert_invariants();
        taken
    }

    /// Releases the queries whose index has been reached.
    pub(super) fn serve(&mut self, applied: u64) {
        if applied <= self.serving {
            return;
        }
        self.serving = applied;
        if !self.waiting.is_empty() {
            let (ready, waiting) =
                self.waiting.drain(..).partition(|question| question.index_min <= applied);
            let ready: Vec<Question> = ready;
            self.ready.extend(ready);
            self.waiting = waiting;
        }
        self.assert_invariants();
    }

    /// Checks the invariants, as far as that takes constant time. Called at the end of each mutation,
    /// also by the code that changes fields directly.
    pub(super) fn assert_invariants(&self) {
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
        assert!(self.primary_answers || !self.primary_asked, "there is a standby to answer");
        if self.ended {
            let questions = self.ready.len() + self.waiting.len();
            let requests = self.snapshots.len() + self.reads.len();
            assert_eq!((count, questions, requests), (0, 0, 0), "the standby has ended");
            assert!(self.promotion.is_none(), "the standby has ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns an entry that the state machine does not see.
    fn blank(after: u64, index: u64) -> Finished {
        Finished { after, index, step: Step::Skip { time_ms: 0 }, outcome: None }
    }

    #[test]
    fn the_oldest_entries_make_room_while_the_standby_catches_up() {
        let mut queue = Queue { catching_up: true, ..Queue::default() };
        queue.begin_at(4);
        let mut entries: Vec<_> = (4..10).map(|after| blank(after, after + 1)).collect();
        queue.push(&mut entries, 6 * ENTRY_BYTES, 2 * ENTRY_BYTES);
        assert_eq!(queue.gap(4), Some(8), "the standby reads the others from the log");
        let mut taken = Vec::new();
        queue.take(8, 10, &mut taken);
        let taken: Vec<_> = taken.iter().map(|finished| finished.index).collect();
        assert_eq!((taken, queue.gap(10)), (vec![9, 10], None));
    }

    #[test]
    #[should_panic(expected = "entry 6 leaves a gap in the queue")]
    fn an_entry_that_leaves_a_gap_is_a_bug() {
        let mut queue = Queue::default();
        queue.begin_at(4);
        queue.push(&mut vec![blank(5, 6)], ENTRY_BYTES, usize::MAX);
    }
}
