//! What waits for the standby, behind one lock.
//!
//! The finished entries here are a cache of the log's end: while the standby catches up they may be
//! thrown away, and it reads them from the history. While it keeps up, the primary waits for room
//! instead, so that a standby cannot fall behind for ever.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{Answered, digest::OutcomeHash, stream::StateStream, subscribe::Begun};
use crate::{
    clock::Clock,
    component::Component,
    error::{QueryError, SnapshotError},
    instance::{EntryContext, Instance},
};
use conclave_types::{Call, limits::ClusterLimits};

/// An entry that the primary has finished.
pub(super) struct Finished {
    /// The index that the primary stood at before.
    pub(super) after: u64,
    /// The index that it stands at now.
    pub(super) index: u64,
    /// What the standby has to do to follow.
    pub(super) step: Step,
    /// What came of it, if a machine saw it.
    pub(super) outcome: Option<OutcomeHash>,
}

/// What the standby has to do to follow the primary over an entry.
pub(super) enum Step {
    /// Apply it, a call or a tick, and find the same outcome.
    Apply { context: EntryContext, call: Option<Call> },
    /// Go on with another component, as the primary does.
    Activate { context: EntryContext, component: Component },
    /// Apply other limits from here on.
    SetLimits { context: EntryContext, limits: ClusterLimits },
    /// Nothing but move on: no machine sees it, or it trapped, or the component was not activated.
    Skip { time_ms: u64 },
}

/// How long the standby lets entries gather: each wake-up of its thread costs as much as many entries.
const NAP: Duration = Duration::from_millis(5);
/// It is woken once so many have gathered ...
const NAP_COUNT_MAX: usize = 64;
/// ... or so many bytes.
const NAP_BYTES_MAX: usize = 1 << 20;

/// What an entry takes beside its request, about.
const ENTRY_BYTES: usize = 192;

impl Finished {
    pub(super) fn bytes(&self) -> usize {
        match &self.step {
            Step::Apply { call, .. } => ENTRY_BYTES + call.as_ref().map_or(0, Call::bytes),
            Step::Activate { .. } | Step::SetLimits { .. } | Step::Skip { .. } => ENTRY_BYTES,
        }
    }
}

/// A call of the standby that waits.
pub(super) struct Question {
    pub(super) call: Call,
    pub(super) index_min: u64,
    pub(super) ask: Ask,
}

/// What the standby is asked for, and who waits for it.
pub(super) enum Ask {
    /// A query.
    Query(oneshot::Sender<Result<Answered, QueryError>>),
    /// A subscription; with an index, one that goes on after it.
    Subscribe { resume: Option<u64>, reply: oneshot::Sender<Result<Begun, QueryError>> },
}

impl Ask {
    /// Nobody waits for the answer any more.
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::Query(reply) => reply.is_closed(),
            Self::Subscribe { reply, .. } => reply.is_closed(),
        }
    }

    /// There is no answer.
    pub(super) fn fail(self, error: QueryError) {
        // The caller may have given up.
        match self {
            Self::Query(reply) => _ = reply.send(Err(error)),
            Self::Subscribe { reply, .. } => _ = reply.send(Err(error)),
        }
    }
}

/// Somebody wants the state at an index.
pub(super) struct SnapshotRequest {
    pub(super) index: u64,
    pub(super) reply: oneshot::Sender<Result<StateStream, SnapshotError>>,
}

/// What a piece of a snapshot is: `None` at its end.
pub(super) type Chunk = Result<Option<bytes::Bytes>, SnapshotError>;

/// Somebody wants the next piece of a snapshot.
pub(super) struct ReadRequest {
    pub(super) stream: u64,
    pub(super) reply: oneshot::Sender<Chunk>,
}

/// The primary wants the standby's instance, as it is after `index`.
pub(super) struct Promotion {
    pub(super) index: u64,
    pub(super) reply: std::sync::mpsc::SyncSender<Instance>,
    /// The instance that trapped. Releasing a large memory takes long, so the standby drops it after its answer.
    pub(super) broken: Option<Instance>,
}

/// An instance to go on with, what it is one of, and where it stands.
pub(super) struct Prepared {
    pub(super) instance: Instance,
    pub(super) component: Component,
    pub(super) clock: Clock,
}

/// See the page of this file.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) finished: VecDeque<Finished>,
    pub(super) finished_bytes: usize,
    /// The index of the last entry that the primary has finished.
    pub(super) pushed: u64,
    /// The standby is behind what is kept here, so nobody waits for it.
    pub(super) catching_up: bool,
    /// Queries whose index the standby has reached.
    pub(super) ready: VecDeque<Question>,
    /// Queries whose index it has not.
    pub(super) waiting: Vec<Question>,
    /// The index that queries are answered at.
    pub(super) serving: u64,
    pub(super) snapshots: Vec<SnapshotRequest>,
    pub(super) reads: VecDeque<ReadRequest>,
    pub(super) closed: Vec<u64>,
    pub(super) promotion: Option<Promotion>,
    pub(super) replacement: Option<Prepared>,
    /// An instance that a snapshot of this node was restored into, to become the standby.
    pub(super) successor: Option<Prepared>,
    /// There is no standby: the primary answers queries between batches.
    pub(super) primary_answers: bool,
    /// The primary has been asked to answer queries, and has not begun.
    pub(super) primary_asked: bool,
    /// The standby has ended; nothing is taken in any more.
    pub(super) ended: bool,
    sleep: Sleep,
}

/// Whether the standby waits for work, and how.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Sleep {
    #[default]
    Awake,
    /// It has just followed entries, and lets the next ones gather for at most [`NAP`].
    Napping,
    /// It waits until it is woken.
    Asleep,
}

/// The queue and those who wait at it.
#[derive(Default)]
pub(super) struct Inbox {
    queue: Mutex<Queue>,
    work: Condvar,
    room: Condvar,
}

impl Inbox {
    pub(super) fn lock(&self) -> MutexGuard<'_, Queue> {
        // No code panics under the lock; were it otherwise, the threads' own guard stops the worker.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the standby, if it sleeps: a wake-up without need costs a system call.
    pub(super) fn wake_standby(&self, queue: &mut Queue) {
        if std::mem::take(&mut queue.sleep) != Sleep::Awake {
            self.work.notify_one();
        }
    }

    /// Wakes the standby for entries. A nap is interrupted only if that is `urgent`, a request waits for the entries,
    /// or many have gathered.
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

    /// Waits for work. `naps`: entries may gather for a moment.
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

    /// Waits at most so long, or until woken.
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

    /// The primary sleeps until the standby has made room.
    pub(super) fn wait_for_room<'a>(&self, queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        self.room.wait(queue).unwrap_or_else(PoisonError::into_inner)
    }

    /// The standby has taken entries, or has ended.
    pub(super) fn made_room(&self) {
        self.room.notify_one();
    }

    /// Everybody looks again: the worker stops.
    pub(super) fn wake_all(&self) {
        let _queue = self.lock();
        self.work.notify_all();
        self.room.notify_all();
    }
}

impl Queue {
    /// The index that the standby must not go past before somebody has had the state there.
    pub(super) fn boundary(&self) -> u64 {
        let snapshots = self.snapshots.iter().map(|request| request.index);
        snapshots
            .chain(self.promotion.as_ref().map(|promotion| promotion.index))
            .min()
            .unwrap_or(u64::MAX)
    }

    /// Appends entries. While the standby catches up, the oldest make room: it reads the log anyway.
    pub(super) fn push(&mut self, entries: &mut Vec<Finished>, bytes: usize, bytes_max: usize) {
        if let Some(last) = entries.last() {
            self.pushed = last.index;
        }
        self.finished.extend(entries.drain(..));
        self.finished_bytes += bytes;
        while self.catching_up && self.finished_bytes > bytes_max {
            let Some(oldest) = self.finished.pop_front() else { break };
            self.finished_bytes -= oldest.bytes();
        }
    }

    /// Takes entries that follow on `applied`, up to the boundary, at most `count`.
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
    }

    /// Up to where the history has to be read before the kept entries follow on `applied`.
    pub(super) fn gap(&self, applied: u64) -> Option<u64> {
        let next = self.finished.iter().find(|next| next.index > applied);
        let known_from = next.map_or(self.pushed, |next| next.after);
        (known_from > applied).then_some(known_from)
    }

    /// Takes at most `count` queries that pass `allowed`, in their order. Subscriptions stay: only the standby notes
    /// events. True: there may be more.
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
        (taken, more)
    }

    /// Takes the subscriptions. Only a standby can begin one.
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
        taken
    }

    /// Lets queries through whose index has been reached.
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
    }
}
