//! The lock around the [`Queue`], and the ways in which the two threads wait for it and are woken.

use std::{
    ops::ControlFlow,
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tokio::sync::mpsc;

use super::{
    absence::Absence,
    job::Job,
    queue::{Queue, Sleep, Wakes},
};

/// The time for which the standby lets entries gather. Each wake-up of its thread costs as much
/// as many entries.
const NAP: Duration = Duration::from_millis(5);

/// The ways in which a thread waits for a change of the queue.
#[derive(Clone, Copy)]
pub(super) enum Wait {
    /// The standby has just followed entries, and lets the next ones gather for at most [`NAP`].
    Nap,
    /// The standby waits until it is woken.
    ForWork,
    /// The standby waits until it is woken, or until the time has passed.
    AtMost(Duration),
    /// The primary waits until the standby has made room.
    ForRoom,
}

/// The queue and the condition variables for waiting on it.
pub(super) struct Inbox {
    queue: Mutex<Queue>,
    work: Condvar,
    room: Condvar,
    /// The primary's queue.
    jobs: OnceLock<mpsc::WeakSender<Job>>,
    absence: Arc<Absence>,
}

impl Inbox {
    /// Creates an inbox that reports to `absence` whether the standby answers queries.
    pub(super) fn new(absence: Arc<Absence>) -> Self {
        Self {
            queue: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
            jobs: OnceLock::new(),
            absence,
        }
    }

    /// Sets the primary's queue. A weak reference, so that the worker ends with the last handle.
    pub(super) fn set_jobs(&self, jobs: mpsc::WeakSender<Job>) {
        let _ = self.jobs.set(jobs);
    }

    /// Applies transitions to the queue, and wakes the threads that they concern.
    pub(super) fn with<R>(&self, transitions: impl FnOnce(&mut Queue) -> R) -> R {
        let mut queue = self.lock();
        let result = transitions(&mut queue);
        self.wake(&mut queue);
        result
    }

    /// Applies transitions repeatedly until they return a result, and waits in between. No change is
    /// missed between transitions and wait.
    pub(super) fn until<R>(
        &self,
        mut transitions: impl FnMut(&mut Queue) -> ControlFlow<R, Wait>,
    ) -> R {
        let mut queue = self.lock();
        loop {
            let next = transitions(&mut queue);
            self.wake(&mut queue);
            queue = match next {
                ControlFlow::Break(result) => return result,
                ControlFlow::Continue(wait) => self.wait(queue, wait),
            };
        }
    }

    /// Wakes all threads, because the worker stops.
    pub(super) fn wake_all(&self) {
        let _queue = self.lock();
        self.work.notify_all();
        self.room.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Only a broken invariant panics under the lock. The guard of the threads then stops the
        // worker.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, queue: &mut Queue) {
        let Wakes { standby, room, presence, queries } = queue.take_wakes();
        if standby {
            self.work.notify_one();
        }
        if room {
            self.room.notify_one();
        }
        match presence {
            Some(true) => self.absence.end(),
            Some(false) => self.absence.begin(),
            None => {}
        }
        if queries {
            let jobs = self.jobs.get().and_then(mpsc::WeakSender::upgrade);
            // If the queue is full, the primary answers after the next batch anyway.
            if jobs.is_none_or(|jobs| jobs.try_send(Job::AnswerQueries).is_err()) {
                queue.primary_not_requested();
            }
        }
    }

    fn wait<'a>(&self, mut queue: MutexGuard<'a, Queue>, wait: Wait) -> MutexGuard<'a, Queue> {
        let (sleep, time) = match wait {
            Wait::ForRoom => return self.room.wait(queue).unwrap_or_else(PoisonError::into_inner),
            Wait::Nap => (Sleep::Napping, Some(NAP)),
            Wait::ForWork => (Sleep::Asleep, None),
            Wait::AtMost(time) => (Sleep::Asleep, Some(time)),
        };
        queue.standby_sleeps(sleep);
        let mut queue = match time {
            Some(time) => {
                self.work.wait_timeout(queue, time).unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.work.wait(queue).unwrap_or_else(PoisonError::into_inner),
        };
        queue.standby_sleeps(Sleep::Awake);
        queue
    }
}
