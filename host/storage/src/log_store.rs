//! The log store: openraft's view of the tree, and ours.

use std::{
    fmt::Debug,
    io,
    ops::{Bound, Range, RangeBounds},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::Ordering,
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use openraft::{
    OptionalSend, RaftLogReader,
    storage::{IOFlushed, LogState, RaftLogStorage},
};
use tokio::{
    sync::{oneshot, watch},
    task::spawn_blocking,
};

use super::{
    Error,
    check::Recovered,
    group_commit::BatchWindow,
    lock::Lock,
    ops::Op,
    reader,
    state::{Shared, State},
    tree::Tree,
    watermark::WatermarkFile,
    writer::Writer,
};
use crate::raft_types::{Entry, LogId, TypeConfig, Vote};

/// How much a peer is sent, or apply is given, at a time.
const READ_BYTES_MAX: usize = 1 << 20;

/// How many bytes may wait for the disk before `append` waits too.
const UNWRITTEN_BYTES_MAX: usize = 64 << 20;

/// The largest value of a record, and the longest name: a record is one sealed value of the tree.
const RECORD_BYTES_MAX: usize = 128 << 10;
const RECORD_NAME_BYTES_MAX: usize = 256;

/// The log, the vote, and small records. Cloning shares; the last one to go writes what is left, as
/// [`LogStore::shutdown`] does.
#[derive(Clone)]
pub struct LogStore {
    inner: Arc<Inner>,
}

/// What there is of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The last entry that was removed, for a snapshot that covers it.
    pub purged: Option<LogId>,
    /// The index of the first entry, if there is one.
    pub first: u64,
    /// The last entry; the purged one if there is none.
    pub last: Option<LogId>,
    /// Up to here the log is known to be committed. It may be so further.
    pub committed: Option<LogId>,
}

struct Inner {
    shared: Arc<Shared>,
    tree: Arc<Tree>,
    /// Sent to with the state locked, so that the queue has the order of the state's changes.
    queue: Sender<Op>,
    thread: Mutex<Option<JoinHandle<()>>>,
    _lock: Arc<Lock>,
}

impl LogStore {
    pub(super) fn start(
        tree: Arc<Tree>,
        watermark_file: WatermarkFile,
        recovered: Recovered,
        lock: Arc<Lock>,
    ) -> Result<Self, Error> {
        let shared = Arc::new(Shared::new(&recovered));
        let (queue, receiver) = mpsc::channel();
        let writer = Writer::new(
            Arc::clone(&shared),
            Arc::clone(&tree),
            watermark_file,
            recovered,
            receiver,
        );
        let thread = thread::Builder::new()
            .name("storage".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || {
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| writer.run())) {
                        shared.panicked(&*panic);
                    }
                }
            })
            .map_err(Error::io("cannot start the storage thread of", tree.dir()))?;
        let thread = Mutex::new(Some(thread));
        Ok(Self { inner: Arc::new(Inner { shared, tree, queue, thread, _lock: lock }) })
    }

    /// Waits until this node's own disk holds the log up to `index`.
    pub async fn synced(&self, index: u64) -> io::Result<()> {
        let shared = &self.inner.shared;
        loop {
            // Registered before looking, so that no notification falls in between.
            let mut written = pin!(shared.written.notified());
            written.as_mut().enable();
            shared.check_poisoned()?;
            if shared.lock().is_written(index) {
                return Ok(());
            }
            written.await;
        }
    }

    /// The pace of this node's own writes, for those who send its log to others.
    pub fn pace(&self) -> BatchWindow {
        BatchWindow::new(self.inner.shared.batches.subscribe())
    }

    /// The entries of a range that the log has, from the first on: as many as are worth `bytes_max`,
    /// but at least one. May read the disk: blocking.
    pub fn entries(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        reader::read(&self.inner.shared, &self.inner.tree, range, bytes_max)
    }

    /// The same without blocking: entries in memory are returned at once, and the disk is read on another
    /// thread, because the runtime's few threads also send heartbeats and run Raft.
    pub async fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        if let Some(entries) = reader::cached(&self.inner.shared, range.clone(), bytes_max) {
            return Ok(entries);
        }
        let store = self.clone();
        let reading = spawn_blocking(move || store.entries(range, bytes_max));
        reading.await.map_err(io::Error::other)?
    }

    /// What there is of the log.
    pub fn extent(&self) -> Extent {
        let state = self.inner.shared.lock();
        let State { purged, first, last, committed, .. } = *state;
        Extent { purged, first, last, committed }
    }

    /// The highest term of a vote that was passed to be stored, whether or not it is on disk yet. This node has told
    /// no other node of a vote in a later term (Raft stores a vote before it takes effect).
    pub fn voted_term(&self) -> u64 {
        self.inner.shared.voted_term.load(Ordering::SeqCst)
    }

    /// How many bytes of entries have been appended since the store was opened.
    pub fn appended_bytes(&self) -> u64 {
        self.inner.shared.appended_bytes.load(Ordering::Relaxed)
    }

    /// The bytes of the entries after `index`, about.
    pub fn bytes_after(&self, index: u64) -> u64 {
        self.inner.shared.lock().sizes.after(index)
    }

    /// The bytes of all entries that the log has, about.
    pub fn live_bytes(&self) -> u64 {
        let state = self.inner.shared.lock();
        state.sizes.after(state.first.saturating_sub(1))
    }

    /// The lowest index from which on the entries have at most so many bytes, about. The index after the last
    /// entry if the last few have more.
    pub fn first_within(&self, bytes_max: u64) -> u64 {
        let state = self.inner.shared.lock();
        let next = state.next().unwrap_or(state.first);
        state.sizes.first_within(bytes_max).unwrap_or(next)
    }

    /// The tree's size on disk, with what sled has yet to reclaim.
    pub fn disk_bytes(&self) -> u64 {
        self.inner.tree.disk_bytes()
    }

    /// Keeps a small record under a name, or removes it. Readable at once; on disk with the next
    /// batch, for which it does not wait. Names are not sealed: nothing secret belongs there.
    pub fn put_record(&self, name: &str, value: Option<Vec<u8>>) -> io::Result<()> {
        let length = value.as_ref().map_or(0, Vec::len);
        if name.len() > RECORD_NAME_BYTES_MAX || length > RECORD_BYTES_MAX {
            let reason = format!("record {name:.256}: {length} bytes, {RECORD_BYTES_MAX} allowed");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let value = value.map(Bytes::from);
        self.leave_lazy(|state| {
            match &value {
                Some(value) => state.records.insert(name.to_owned(), value.clone()),
                None => state.records.remove(name),
            };
            state.lazy.records.insert(name.to_owned(), value);
        })
    }

    /// Writes the records that were put, and syncs them, as soon as the batch before is written. Does not wait for it.
    pub fn sync_records(&self) -> io::Result<()> {
        self.inner.send(Op::Sync)
    }

    /// A record's value.
    pub fn get_record(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.inner.shared.lock().records.get(name).map(|value| value.to_vec()))
    }

    /// The records whose names begin with a prefix, in the order of their names.
    pub fn list_records(&self, prefix: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
        let state = self.inner.shared.lock();
        let from = state.records.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        let listed = from.take_while(|(name, _)| name.starts_with(prefix));
        Ok(listed.map(|(name, value)| (name.clone(), value.to_vec())).collect())
    }

    /// Why the store accepts nothing any more.
    pub fn poisoned(&self) -> Option<String> {
        self.inner.shared.poisoned().map(str::to_owned)
    }

    /// How long the storage thread's current step (a sync, for example) has taken so far; zero while it waits for work.
    pub fn busy_for(&self) -> Duration {
        self.inner.shared.progress.elapsed()
    }

    /// The message of a panic of the storage thread, with every change. Nothing is stored after one.
    pub fn panicked(&self) -> watch::Receiver<Option<String>> {
        self.inner.shared.panic.subscribe()
    }

    /// Writes what is left, syncs, and ends the storage thread. Whatever is written later is refused.
    pub fn shutdown(&self) {
        self.inner.shutdown();
    }

    /// Drops the log if the newest snapshot contradicts it. A snapshot from a leader replaces what this
    /// node has of another leader's entries, and may be on disk before their truncation is: then the log
    /// still ends in entries that are behind the snapshot's in index, and before it in term. What the
    /// snapshot covers was committed, so it is the log that gives way; up to the snapshot, nothing of
    /// it is needed.
    pub(super) fn give_way(&self, snapshot: LogId) -> io::Result<()> {
        let entries = self.entries(snapshot.index..snapshot.index.saturating_add(1), 1)?;
        match entries.first() {
            Some(entry) if entry.log_id != snapshot => {
                tracing::warn!(entry = %entry.log_id, %snapshot, "the log is dropped for a snapshot");
                let purged = self.inner.shared.lock().purged;
                self.truncate(purged)
            }
            _ => Ok(()),
        }
    }

    fn truncate(&self, after: Option<LogId>) -> io::Result<()> {
        self.inner.shared.check_poisoned()?;
        let mut state = self.inner.shared.lock();
        state.truncate(after);
        self.inner.send(Op::Truncate(after.map(|log_id| log_id.index)))
    }

    fn leave_lazy(&self, leave: impl FnOnce(&mut State)) -> io::Result<()> {
        self.inner.shared.check_poisoned()?;
        let mut state = self.inner.shared.lock();
        leave(&mut state);
        if std::mem::take(&mut state.parked) {
            self.inner.send(Op::Wake)?;
        }
        Ok(())
    }
}

impl Inner {
    fn send(&self, op: Op) -> io::Result<()> {
        self.queue.send(op).map_err(|_| io::Error::other("the store was shut down"))
    }

    fn shutdown(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        // A thread that is gone already needs no telling.
        let _ = self.send(Op::Shutdown);
        // The last handle may go with a callback that the storage thread itself runs.
        if thread.thread().id() != thread::current().id() {
            // It guards itself against panics.
            let _ = thread.join();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.read(bounds(&range), usize::MAX).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.inner.shared.lock().vote)
    }

    /// A few entries at a time: they go to a peer in one message.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start..end, READ_BYTES_MAX).await
    }

    /// A few entries at a time: after a restart the range is the whole log since the last snapshot.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl futures::Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let batches = stream::unfold((self.clone(), bounds(&range)), next_batch);
        let batches = batches.map(|batch| {
            batch.map_or_else(|error| vec![Err(error)], |batch| batch.into_iter().map(Ok).collect())
        });
        Box::pin(batches.flat_map(stream::iter))
    }
}

/// Reads the next batch of a range; the range ends with itself, the log, or an error.
async fn next_batch(
    (store, range): (LogStore, Range<u64>),
) -> Option<(io::Result<Vec<Entry>>, (LogStore, Range<u64>))> {
    if range.is_empty() {
        return None;
    }
    let batch = store.read(range.clone(), READ_BYTES_MAX).await;
    let next = match &batch {
        Ok(batch) => batch.last()?.log_id.index + 1,
        Err(_) => range.end,
    };
    Some((batch, (store, next..range.end)))
}

fn bounds(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.inner.shared.lock();
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: state.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (done, saved) = oneshot::channel();
        self.inner.shared.check_poisoned()?;
        // Before anything that depends on the vote.
        self.inner.shared.voted_term.fetch_max(vote.leader_id.term, Ordering::SeqCst);
        self.inner.send(Op::Vote(*vote, done))?;
        saved.await.unwrap_or_else(|_| Err(io::Error::other("the store was shut down")))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.leave_lazy(|state| {
            state.committed = committed;
            state.lazy.committed = Some(committed);
        })
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.inner.shared.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        loop {
            let written = self.inner.shared.written.notified();
            let mut written = std::pin::pin!(written);
            // Enlisted before looking, so that no notice is missed.
            written.as_mut().enable();
            self.inner.shared.check_poisoned()?;
            if self.inner.shared.lock().unwritten_bytes < UNWRITTEN_BYTES_MAX {
                break;
            }
            written.await;
        }
        let mut state = self.inner.shared.lock();
        let bytes = state.append(&entries)?;
        self.inner.shared.count_appended(bytes);
        let epoch = state.epoch;
        self.inner.send(Op::Append { entries, bytes, epoch, flushed })
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        self.truncate(last_log_id)
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.inner.shared.check_poisoned()?;
        let mut state = self.inner.shared.lock();
        if state.purge(log_id) { self.inner.send(Op::Purge(log_id)) } else { Ok(()) }
    }
}

impl Debug for LogStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.inner.shared.lock();
        f.debug_struct("LogStore").field("last", &state.last).finish_non_exhaustive()
    }
}
