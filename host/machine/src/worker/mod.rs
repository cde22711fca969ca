//! A machine as one node runs it: two instances, two threads, and what passes between them. See the
//! layer's page for the whole.

mod absence;
mod digest;
mod events;
mod inbox;
mod primary;
mod restored;
mod seats;
mod shared;
mod standby;
mod stats;
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

use self::{
    digest::Digests,
    inbox::{Ask, Prepared, Question, SnapshotRequest},
    primary::{Job, Primary},
    shared::Shared,
    standby::Standby,
};
pub use self::{
    events::Watcher,
    restored::Restored,
    stats::Stats,
    stream::StateStream,
    subscribe::{Subscribed, Subscribing},
};
use super::{
    component::Component,
    entry_source::{Entry, EntrySource, SavedState},
    error::{FatalError, QueryError, SnapshotError},
    thread,
};
use conclave_types::{Call, Digest, Failure, Outcome};

/// Told the outcome of an entry, on the primary's thread, right after the entry: keep it short. Dropped
/// without a call if the worker stops before.
pub type Done = Box<dyn FnOnce(Outcome) + Send>;

/// An index of the log, the entry that the machine sees there (blank entries and changes of membership
/// have none), and who wants to know what comes of it.
pub type BatchItem = (u64, Option<Entry>, Option<Done>);

/// The answer to a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The log index of the state that it was asked of.
    pub index: u64,
    /// The response message's bytes, or the machine's refusal.
    pub result: Result<Bytes, Failure>,
}

/// The replicated machine of one node. Cheap to clone; the threads end with the last one, or with
/// [`Worker::shutdown`].
#[derive(Clone)]
pub struct Worker(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
    /// Room for entries that wait for the primary, in units.
    room: Arc<Semaphore>,
    room_units: u32,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// The unit that room for waiting entries is counted in, in bytes.
const ROOM_UNIT_BYTES: usize = 256;
/// Batches that wait for the primary; their bytes are bounded apart.
const JOBS_MAX: usize = 1024;
/// How long a call that a shutdown interrupts may take to notice.
const INTERRUPT_EVERY: Duration = Duration::from_millis(5);

impl Worker {
    /// Starts a machine: from `at`, with the component whose state that is, or from the initial state of
    /// `initial`, the component that the log begins with. `seed` comes from the cluster's id: the same on
    /// every node. Blocks for as long as the state takes to restore.
    ///
    /// # Errors
    /// The state cannot be restored, or threads cannot be had.
    pub fn start(
        initial: Component,
        seed: [u8; 32],
        entry_source: Arc<dyn EntrySource>,
        at: Option<SavedState>,
    ) -> Result<Self, FatalError> {
        let limits = initial.engine().limits().clone();
        let component = at.as_ref().map_or(&initial, |saved| &saved.component).clone();
        let digests = match &at {
            Some(saved) => Digests::of(saved.index, saved.digest),
            None => Digests::new(0, Digest::default()),
        };
        let keeps_digest = digests.is_kept();
        let shared = Arc::new(Shared::new(initial, seed, entry_source));
        let stack_bytes = limits.thread_stack_bytes();
        let ([primary, standby], clock) = {
            let shared = Arc::clone(&shared);
            thread::run("conclave-restore", stack_bytes, move || match at {
                Some(saved) => shared
                    .restored(["primary", "standby"], saved)
                    .map_err(shared::Restore::into_fatal),
                None => {
                    let fresh = |role| {
                        shared
                            .fresh(role)
                            .map_err(|broken| broken.into_fatal("starting the machine"))
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
        shared
            .counters
            .primary_memory_bytes
            .store(primary.memory_bytes() as u64, Ordering::Relaxed);
        shared
            .counters
            .standby_memory_bytes
            .store(standby.memory_bytes() as u64, Ordering::Relaxed);
        shared.counters.standby_applied.store(clock.index(), Ordering::Relaxed);
        {
            let mut queue = shared.inbox.lock();
            queue.pushed = clock.index();
            queue.serving = clock.index();
        }
        let (jobs, inbox) = mpsc::channel(JOBS_MAX);
        // Weak: the worker ends with the last handle.
        let _ = shared.jobs.set(jobs.downgrade());
        let prepared =
            |instance| Prepared { instance, component: component.clone(), clock: clock.clone() };
        let primary = Primary::new(Arc::clone(&shared), prepared(primary), digests);
        let standby = Standby::new(Arc::clone(&shared), prepared(standby));
        let threads = vec![
            spawn(&shared, "conclave-primary", stack_bytes, move || primary.run(inbox))?,
            spawn(&shared, "conclave-standby", stack_bytes, move || standby.run())?,
        ];
        let room_units =
            u32::try_from(limits.queue_bytes_max / ROOM_UNIT_BYTES).unwrap_or(u32::MAX >> 4);
        let room = Arc::new(Semaphore::new(room_units as usize));
        Ok(Self(Arc::new(Inner { shared, jobs, room, room_units, threads: Mutex::new(threads) })))
    }

    /// Hands over entries in the order of the log, and waits for room for them. Returns before they
    /// are applied: each `Done` tells. Called by one caller at a time.
    ///
    /// # Errors
    /// The worker applies nothing any more.
    pub async fn apply(&self, batch: Vec<BatchItem>) -> Result<(), FatalError> {
        let Inner { shared, jobs, room, room_units, .. } = &*self.0;
        if batch.is_empty() {
            return Ok(());
        }
        let bytes_of = |entry: &Entry| entry.work.bytes();
        let bytes: usize =
            batch.iter().map(|(_, entry, _)| entry.as_ref().map_or(0, bytes_of)).sum();
        // A batch larger than the whole room waits until it has it to itself.
        let units = u32::try_from(bytes / ROOM_UNIT_BYTES + batch.len())
            .unwrap_or(u32::MAX)
            .min(*room_units);
        let Ok(permit) = Arc::clone(room).acquire_many_owned(units).await else {
            return Err(shared.end());
        };
        if shared.check().is_err() {
            return Err(shared.end());
        }
        jobs.send(Job::Apply { batch, _room: permit }).await.map_err(|_| shared.end())
    }

    /// The log index that the primary has applied.
    pub fn applied(&self) -> u64 {
        self.0.shared.applied.load(Ordering::Acquire)
    }

    /// The digest at an index: of all entries up to there. Waits until the primary has applied the index. `None`:
    /// that is too long ago, or before the state that the machine began from, or
    /// none is kept.
    ///
    /// # Errors
    /// The worker applies nothing any more.
    pub async fn digest_at(&self, index: u64) -> Result<Option<Digest>, FatalError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.0.jobs.send(Job::Digest { index, reply }).await;
        sent.map_err(|_| self.0.shared.end())?;
        answer.await.map_err(|_| self.0.shared.end())
    }

    /// Whether there are digests to be asked for. Not for a state from a snapshot of another version, until
    /// [`Worker::begin_digest`].
    pub fn keeps_digest(&self) -> bool {
        self.0.shared.keeps_digest.load(Ordering::Acquire)
    }

    /// From here on, after `index`, the last entry that was handed over, the digest is a running hash that begins with
    /// this one. In order with [`Worker::apply`].
    ///
    /// # Errors
    /// The worker applies nothing any more.
    pub async fn begin_digest(&self, index: u64, digest: Digest) -> Result<(), FatalError> {
        let sent = self.0.jobs.send(Job::BeginDigest { index, digest }).await;
        sent.map_err(|_| self.0.shared.end())
    }

    /// When the machine wants its `tick` called, in its own time, with every change. 0: as soon as
    /// possible.
    pub fn wake_at(&self) -> watch::Receiver<Option<u64>> {
        self.0.shared.wake_at.subscribe()
    }

    /// Ends all subscriptions: the state is not to be believed.
    pub fn end_watchers(&self) {
        self.0.shared.events.end_watchers();
    }

    /// Asks the standby, once it has applied `index_min`. Dropping the future takes the question back.
    ///
    /// # Errors
    /// See [`QueryError`]. A machine's own refusal is in [`Answered::result`].
    pub async fn query(&self, call: Call, index_min: u64) -> Result<Answered, QueryError> {
        let (reply, answer) = oneshot::channel();
        self.push(Question { call, index_min, ask: Ask::Query(reply) })?;
        answer.await.unwrap_or_else(|_| Err(QueryError::stopped(self.0.shared.fatal_error())))
    }

    /// The state exactly at `index`, the last one handed to [`Worker::apply`]. The standby notes the
    /// request before this returns, so later entries may follow at once; await the rest at leisure.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn snapshot(
        &self,
        index: u64,
    ) -> impl Future<Output = Result<StateStream, SnapshotError>> + Send + use<> {
        let shared = Arc::clone(&self.0.shared);
        let (reply, opened) = oneshot::channel();
        {
            let mut queue = shared.inbox.lock();
            if !queue.ended {
                queue.snapshots.push(SnapshotRequest { index, reply });
                shared.inbox.wake_standby(&mut queue);
            }
        }
        async move {
            match opened.await {
                Ok(answer) => answer,
                Err(_) => Err(shared.snapshot_end()),
            }
        }
    }

    /// Why this node's machine has stopped, if it has.
    pub fn fatal_error(&self) -> Option<String> {
        self.0.shared.fatal_error().map(ToString::to_string)
    }

    /// The message of a panic of the worker's threads, with every change. Nothing is applied after one.
    pub fn panicked(&self) -> watch::Receiver<Option<String>> {
        self.0.shared.panic.subscribe()
    }

    /// Whether there is a standby, with every change. While one is built, a second trap would stop all writes.
    pub fn standby(&self) -> watch::Receiver<bool> {
        self.0.shared.absence.watch()
    }

    /// The time from the loss of the last standby to the first query of the next one; so far, if there is none yet.
    pub fn standby_build_time(&self) -> Duration {
        self.0.shared.absence.took()
    }

    /// Why there is no standby and none can be built now, or at which entry the last one disagreed with the primary.
    pub fn standby_problem(&self) -> Option<String> {
        self.0.shared.absence.problem()
    }

    /// Whether a call of this method trapped within the last minute.
    pub fn has_trapped(&self, method: &str) -> bool {
        self.0.shared.absence.has_trapped(method)
    }

    /// What it has done and holds.
    pub fn stats(&self) -> Stats {
        self.0.shared.counters.read(self.applied())
    }

    /// The component that the primary runs. Queries for an index at or above its activation are answered by
    /// it, or by one after it.
    pub fn component(&self) -> Component {
        self.0.shared.active.borrow().clone()
    }

    /// The component that the primary runs, with every change. A change is there before the activation is
    /// answered.
    pub fn components(&self) -> watch::Receiver<Component> {
        self.0.shared.active.subscribe()
    }

    /// Ends both threads, and the calls they are in, and waits for them. Entries that were not applied
    /// yet are dropped with their `Done`.
    pub fn shutdown(&self) {
        self.0.stop();
        let threads =
            std::mem::take(&mut *self.0.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.thread().id() == std::thread::current().id() {
                continue;
            }
            while !thread.is_finished() {
                // An instance that was made after the last interruption has not seen it.
                self.0.shared.interrupt();
                std::thread::sleep(INTERRUPT_EVERY);
            }
            // A panic has become the worker's fault already.
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

/// Starts one of the two threads. A panic on it, a bug, stops the worker with a fault.
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
