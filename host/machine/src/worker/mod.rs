//! The worker of a node: two instances of the state machine, two threads, and the queues between
//! them. See the crate documentation for the overview.
//!
//! Contract: the standby never applies an entry that the primary has not finished. An entry that
//! traps in the primary therefore never reaches the standby, which can take the primary's place.

mod absence;
mod digest;
mod events;
#[cfg(feature = "bench")]
mod host_work;
mod inbox;
mod job;
mod primary;
mod queue;
mod requests;
mod restore;
mod restored;
mod seats;
mod shared;
mod standby;
mod status;
mod stream;
mod subscribe;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

#[cfg(feature = "bench")]
pub use self::host_work::HostWork;
use self::{
    digest::Digests,
    job::Job,
    primary::Primary,
    queue::NotQueued,
    requests::{Ask, Prepared, Question, SnapshotRequest},
    shared::Shared,
    standby::Standby,
    stream::Opening,
};
pub use self::{
    events::Watcher,
    restored::Restored,
    stream::StateStream,
    subscribe::{Subscribed, Subscribing},
};
use super::{
    component::Component,
    entry_source::{Entry, EntrySource, SavedState},
    error::{FatalError, QueryError, SnapshotError},
    metrics::Metrics,
    thread,
};
use conclave_types::{Call, Digest, Failure, Outcome};

/// Receives the outcome of an entry. Called on the primary's thread right after the entry, so it
/// must be fast. Dropped without a call if the worker stops before.
pub type Done = Box<dyn FnOnce(Outcome) + Send>;

/// A log index, the entry for the state machine at that index, and the receiver of the outcome.
/// Blank entries and membership changes have no entry for the state machine.
pub type BatchItem = (u64, Option<Entry>, Option<Done>);

/// The answer to a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The log index of the state that was queried.
    pub index: u64,
    /// The bytes of the response message, or the state machine's failure.
    pub result: Result<Bytes, Failure>,
}

/// The replicated state machine of one node. Cheap to clone. The threads end when the last clone is
/// dropped, or with [`Worker::shutdown`].
#[derive(Clone)]
pub struct Worker(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
    /// The room for entries that wait for the primary, in units.
    room: Arc<Semaphore>,
    room_units: u32,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// The unit of that room, in bytes.
const ROOM_UNIT_BYTES: usize = 256;
/// The maximum number of batches that wait for the primary. Their bytes are bounded separately.
const JOBS_MAX: usize = 1024;
/// The interval at which a shutdown interrupts running calls.
const INTERRUPT_EVERY: Duration = Duration::from_millis(5);

impl Worker {
    /// Starts a worker from the saved state `at`, with the component to which it belongs. Without one,
    /// starts from the initial state of `initial`, the initial component of the log. `seed` is derived
    /// from the cluster's id and is the same on every node. Blocks while the state is restored.
    ///
    /// # Errors
    /// Fails if the state cannot be restored, or if a thread cannot be started.
    pub fn start(
        initial: Component,
        seed: [u8; 32],
        entry_source: Arc<dyn EntrySource>,
        at: Option<SavedState>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, FatalError> {
        let limits = initial.engine().limits().clone();
        let component = at.as_ref().map_or(&initial, |saved| &saved.component).clone();
        let digests = match &at {
            Some(saved) => Digests::of(saved.index, saved.digest),
            None => Digests::new(0, Digest::default()),
        };
        let keeps_digest = digests.is_kept();
        let shared = Arc::new(Shared::new(initial, seed, entry_source, metrics));
        let stack_bytes = limits.thread_stack_bytes();
        let ([primary, standby], clock) = {
            let shared = Arc::clone(&shared);
            thread::run("restore", stack_bytes, move || match at {
                Some(saved) => {
                    shared.restored(["primary", "standby"], saved).map_err(FatalError::from)
                }
                None => {
                    let fresh = |role| {
                        shared
                            .fresh(role)
                            .map_err(|broken| broken.ended("starting the state machine"))
                    };
                    Ok(([fresh("primary")?, fresh("standby")?], shared.clock()))
                }
            })??
        };
        shared.active.send_replace(component.clone());
        shared.keeps_digest.store(keeps_digest, Ordering::Release);
        shared.applied.store(clock.index(), Ordering::Release);
        shared.events.skip_to(clock.index());
        shared.wake_at.send_replace((clock.index() > 0).then_some(0));
        shared.metrics.primary_memory_bytes.set(primary.memory_bytes() as i64);
        shared.metrics.standby_memory_bytes.set(standby.memory_bytes() as i64);
        shared.metrics.standby_applied.set(clock.index() as i64);
        shared.inbox.with(|queue| queue.begin_at(clock.index()));
        let (jobs, inbox) = mpsc::channel(JOBS_MAX);
        shared.inbox.set_jobs(jobs.downgrade());
        let prepared =
            |instance| Prepared { instance, component: component.clone(), clock: clock.clone() };
        let primary = Primary::new(Arc::clone(&shared), prepared(primary), digests);
        let standby = Standby::new(Arc::clone(&shared), prepared(standby));
        let threads = vec![
            spawn(&shared, "primary", stack_bytes, move || primary.run(inbox))?,
            spawn(&shared, "standby", stack_bytes, move || standby.run())?,
        ];
        let room_units =
            u32::try_from(limits.queue_bytes_max / ROOM_UNIT_BYTES).unwrap_or(u32::MAX >> 4);
        let room = Arc::new(Semaphore::new(room_units as usize));
        Ok(Self(Arc::new(Inner { shared, jobs, room, room_units, threads: Mutex::new(threads) })))
    }

    /// Queues entries in the order of the log, and waits for room in the queue. Returns before they
    /// are applied; each `Done` reports an outcome. Must not be called concurrently.
    ///
    /// # Errors
    /// Fails if the worker has stopped.
    pub async fn apply(&self, batch: Vec<BatchItem>) -> Result<(), FatalError> {
        let Inner { shared, jobs, room, room_units, .. } = &*self.0;
        if batch.is_empty() {
            return Ok(());
        }
        let bytes_of = |entry: &Entry| entry.work.bytes();
        let bytes: usize =
            batch.iter().map(|(_, entry, _)| entry.as_ref().map_or(0, bytes_of)).sum();
        // A batch larger than the whole room waits until the queue is empty.
        let units = u32::try_from(bytes / ROOM_UNIT_BYTES + batch.len())
            .unwrap_or(u32::MAX)
            .min(*room_units);
        let Ok(permit) = Arc::clone(room).acquire_many_owned(units).await else {
            return Err(shared.status.end());
        };
        if shared.status.check().is_err() {
            return Err(shared.status.end());
        }
        jobs.send(Job::Apply { batch, _room: permit }).await.map_err(|_| shared.status.end())
    }

    /// Returns the log index that the primary has applied.
    pub fn applied(&self) -> u64 {
        self.0.shared.applied.load(Ordering::Acquire)
    }

    /// Returns the digest over all entries up to an index. Waits until the primary has applied that
    /// index. `None` if the index is too old, is before the state from which the state machine
    /// began, or if no digest is kept.
    ///
    /// # Errors
    /// Fails if the worker has stopped.
    pub async fn digest_at(&self, index: u64) -> Result<Option<Digest>, FatalError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.0.jobs.send(Job::Digest { index, reply }).await;
        sent.map_err(|_| self.0.shared.status.end())?;
        answer.await.map_err(|_| self.0.shared.status.end())
    }

    /// Returns whether digests are kept. They are not for a state from a snapshot of another
    /// version, until [`Worker::begin_digest`] is called.
    pub fn keeps_digest(&self) -> bool {
        self.0.shared.keeps_digest.load(Ordering::Acquire)
    }

    /// Starts the running hash with this digest, after `index`, the last entry that was queued.
    /// Takes effect in order with [`Worker::apply`].
    ///
    /// # Errors
    /// Fails if the worker has stopped.
    pub async fn begin_digest(&self, index: u64, digest: Digest) -> Result<(), FatalError> {
        let sent = self.0.jobs.send(Job::BeginDigest { index, digest }).await;
        sent.map_err(|_| self.0.shared.status.end())
    }

    /// Returns a channel with the wake-up time, in the state machine's own time. 0 means as
    /// soon as possible.
    pub fn wake_at(&self) -> watch::Receiver<Option<u64>> {
        self.0.shared.wake_at.subscribe()
    }

    /// Ends all subscriptions, because the state may be wrong.
    pub fn end_watchers(&self) {
        self.0.shared.events.end_watchers();
    }

    /// Queries the standby, once it has applied `index_min`. Dropping the future cancels the query.
    ///
    /// # Errors
    /// See [`QueryError`]. The state machine's own failure is in [`Answered::result`].
    pub async fn query(&self, call: Call, index_min: u64) -> Result<Answered, QueryError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Question { call, index_min, ask: Ask::Query(reply) })?;
        answer
            .await
            .unwrap_or_else(|_| Err(QueryError::stopped(self.0.shared.status.fatal_error())))
    }

    /// Queues a question for the standby.
    fn ask(&self, question: Question) -> Result<(), QueryError> {
        let shared = &self.0.shared;
        let waiting_max = shared.engine.limits().queries_waiting_max;
        let queued = shared.inbox.with(|queue| {
            shared.status.check().map_err(|_| NotQueued::Ended)?;
            queue.ask(question, waiting_max)
        });
        queued.map_err(|error| match error {
            NotQueued::Ended => QueryError::stopped(shared.status.fatal_error()),
            NotQueued::Full => QueryError::Busy,
        })
    }

    /// Takes a snapshot of the state exactly at `index`, the last index passed to
    /// [`Worker::apply`]. The request is queued before this function returns, so later entries may
    /// follow immediately; the future can be awaited later.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn snapshot(
        &self,
        index: u64,
    ) -> impl Future<Output = Result<StateStream, SnapshotError>> + Send + use<> {
        let shared = Arc::clone(&self.0.shared);
        let (reply, captured) = oneshot::channel();
        let request = SnapshotRequest { index, reply };
        // If the standby has ended, dropping the request fails it.
        let _ = shared.inbox.with(|queue| queue.request_snapshot(request));
        Opening::new(shared, captured).stream()
    }

    /// Returns the reason why the worker has stopped, if a fatal error stopped it.
    pub fn fatal_error(&self) -> Option<String> {
        self.0.shared.status.fatal_error().map(ToString::to_string)
    }

    /// Returns a channel with the message of a panic in one of the worker's threads. Nothing is
    /// applied after a panic.
    pub fn panicked(&self) -> watch::Receiver<Option<String>> {
        self.0.shared.panic.subscribe()
    }

    /// Returns a channel that reports whether there is a standby. While one is being built, a
    /// second trap would stop all writes.
    pub fn standby(&self) -> watch::Receiver<bool> {
        self.0.shared.absence.watch()
    }

    /// Returns the time from the loss of the previous standby to the first query of the last one.
    /// If there is none yet, returns the time so far.
    pub fn standby_build_time(&self) -> Duration {
        self.0.shared.absence.took()
    }

    /// Returns the reason why no standby can be built now, or the entry at which the last one
    /// disagreed with the primary.
    pub fn standby_problem(&self) -> Option<String> {
        self.0.shared.absence.problem()
    }

    /// Returns whether a call of this method trapped within the last minute.
    pub fn has_trapped(&self, method: &str) -> bool {
        self.0.shared.absence.has_trapped(method)
    }

    /// Returns the worker's metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.0.shared.metrics
    }

    /// Returns the component that the primary runs. Queries at or above the index of its activation
    /// are answered by it or by a later component.
    pub fn component(&self) -> Component {
        self.0.shared.active.borrow().clone()
    }

    /// Returns a channel with the component that the primary runs. It changes before the outcome of
    /// the activation is reported.
    pub fn components(&self) -> watch::Receiver<Component> {
        self.0.shared.active.subscribe()
    }

    /// Ends both threads with their running calls, and waits for them. Entries that were not
    /// applied are dropped with their `Done`.
    pub fn shutdown(&self) {
        self.0.stop();
        let threads =
            std::mem::take(&mut *self.0.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.thread().id() == std::thread::current().id() {
                continue;
            }
            while !thread.is_finished() {
                // An instance that was created after the last interruption has missed it, so
                // it is repeated.
                self.0.shared.interrupt();
                std::thread::sleep(INTERRUPT_EVERY);
            }
            // A panic has already become the worker's fatal error.
            let _ = thread.join();
        }
    }
}

impl Inner {
    fn stop(&self) {
        self.shared.stop();
        self.room.close();
        // A full queue wakes the primary as well.
        let _ = self.jobs.try_send(Job::Stop);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Starts one of the two threads. A panic on it is a bug, and stops the worker with a fatal error.
fn spawn(
    shared: &Arc<Shared>,
    name: &'static str,
    stack_bytes: usize,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, FatalError> {
    let shared = Arc::clone(shared);
    thread::spawn(name, stack_bytes, move || {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
            let message =
                format!("the thread {name} panicked: {}", conclave_types::panic_message(&*panic));
            shared.fail(FatalError::new(&message));
            shared.panic.send_replace(Some(message));
        }
    })
}
