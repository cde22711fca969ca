//! The log store: openraft's log storage on the tree, with extensions for the layers above.

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

/// The largest amount of entries that is read at once, for a peer or for apply.
const READ_BYTES_MAX: usize = 1 << 20;

/// The number of unwritten bytes at which `append` waits for the disk.
const UNWRITTEN_BYTES_MAX: usize = 64 << 20;

/// The largest value and the longest name of a metadata entry. A metadata entry is one sealed value
/// of the tree.
const RECORD_BYTES_MAX: usize = 128 << 10;
const RECORD_NAME_BYTES_MAX: usize = 256;

/// The log, the vote, and metadata entries. Clones share the store. Dropping the last clone writes
/// the remaining data, as [`LogStore::shutdown`] does.
#[derive(Clone)]
pub struct LogStore {
    inner: Arc<Inner>,
}

/// The extent of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The last purged entry. A snapshot covers it.
    pub purged: Option<LogId>,
    /// The index of the first entry, if the log has entries.
    pub first: u64,
    /// The last entry, or the last purged entry if the log has no entries.
    pub last: Option<LogId>,
    /// The last entry known to be committed. Later entries may also be committed.
    pub committed: Option<LogId>,
}

struct Inner {
    shared: Arc<Shared>,
    tree: Arc<Tree>,
    /// Used only with the state locked, so that the queue has the same order as the changes of the state.
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
            // Register before the check, so that no notification is missed.
            let mut written = pin!(shared.written.notified());
            written.as_mut().enable();
            shared.check_poisoned()?;
            if shared.lock().is_written(index) {
                return Ok(());
            }
            written.await;
        }
    }

    /// Returns the batch window of this node's writes, for replication to the peers.
    pub fn pace(&self) -> BatchWindow {
        BatchWindow::new(self.inner.shared.batches.subscribe())
    }

    /// Returns the entries of a range that the log has, in order: at most `bytes_max` bytes of
    /// them, but at least one entry. May read the disk, and then blocks.
    pub fn entries(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        reader::read(&self.inner.shared, &self.inner.tree, range, bytes_max)
    }

    /// The same as [`Self::entries`] without blocking. Entries in memory are returned at once. The
    /// disk is read on another thread, because the runtime's few threads also send heartbeats and
    /// run Raft.
    pub async fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        if let Some(entries) = reader::cached(&self.inner.shared, range.clone(), bytes_max) {
            return Ok(entries);
        }
        let store = self.clone();
        let reading = spawn_blocking(move || store.entries(range, bytes_max));
        reading.await.map_err(io::Error::other)?
    }

    /// Returns the extent of the log.
    pub fn extent(&self) -> Extent {
        let state = self.inner.shared.lock();
        let State { purged, first, last, committed, .. } = *state;
        Extent { purged, first, last, committed }
    }

    /// Returns the highest term of a vote that openraft has passed for storing, durable or not.
    /// This node has sent no other node a vote in a later term, because Raft stores a vote before
    /// it takes effect (Raft thesis, section 3.8).
    pub fn voted_term(&self) -> u64 {
        self.inner.shared.voted_term.load(Ordering::SeqCst)
    }

    /// The total bytes of entries appended since the store was opened.
    pub fn appended_bytes(&self) -> u64 {
        self.inner.shared.appended_bytes.load(Ordering::Relaxed)
    }

    /// The approximate bytes of the entries after `index`.
    pub fn bytes_after(&self, index: u64) -> u64 {
        self.inner.shared.lock().sizes.after(index)
    }

    /// The approximate bytes of all entries in the log.
    pub fn live_bytes(&self) -> u64 {
        let state = self.inner.shared.lock();
        state.sizes.after(state.first.saturating_sub(1))
    }

    /// Returns the lowest index from which the entries have at most about `bytes_max` bytes. If the
    /// last few entries already have more, returns the index after the last entry.
    pub fn first_within(&self, bytes_max: u64) -> u64 {
        let state = self.inner.shared.lock();
        let next = state.next().unwrap_or(state.first);
        state.sizes.first_within(bytes_max).unwrap_or(next)
    }

    /// The tree's size on disk, including space that sled has not reclaimed yet.
    pub fn disk_bytes(&self) -> u64 {
        self.inner.tree.disk_bytes()
    }

    /// Stores a metadata entry under a name, or removes it. It is readable at once, and becomes
    /// durable with the next batch, without waiting for it. Names are not sealed, and must not
    /// contain secrets.
    pub fn put_record(&self, name: &str, value: Option<Vec<u8>>) -> io::Result<()> {
        let length = value.as_ref().map_or(0, Vec::len);
        if name.len() > RECORD_NAME_BYTES_MAX || length > RECORD_BYTES_MAX {
            let reason = format!(
                "metadata entry {name:.256}: {length} bytes; at most {RECORD_BYTES_MAX} are allowed"
            );
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

    /// Requests that changed metadata entries are written and synced right after the current batch.
    /// Does not wait for it.
    pub fn sync_records(&self) -> io::Result<()> {
        self.inner.send(Op::Sync)
    }

    /// Returns the value of a metadata entry.
    pub fn get_record(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.inner.shared.lock().records.get(name).map(|value| value.to_vec()))
    }

    /// Returns the metadata entries whose names begin with a prefix, ordered by name.
    pub fn list_records(&self, prefix: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
        let state = self.inner.shared.lock();
        let from = state.records.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        let listed = from.take_while(|(name, _)| name.starts_with(prefix));
        Ok(listed.map(|(name, value)| (name.clone(), value.to_vec())).collect())
    }

    /// The failure because of which the store rejects all operations, if any.
    pub fn poisoned(&self) -> Option<Arc<io::Error>> {
        self.inner.shared.poisoned().cloned()
    }

    /// The duration of the storage thread's current step (for example a sync) so far. Zero while
    /// the thread waits for work.
    pub fn busy_for(&self) -> Duration {
        self.inner.shared.progress.elapsed()
    }

    /// Publishes the message of a panic of the storage thread. After a panic nothing is stored.
    pub fn panicked(&self) -> watch::Receiver<Option<String>> {
        self.inner.shared.panic.subscribe()
    }

    /// Writes and syncs the remaining data, and ends the storage thread. Later writes are rejected.
    pub fn shutdown(&self) {
        self.inner.shutdown();
    }

    /// Discards the log if it contradicts the newest snapshot. A snapshot from a leader replaces
    /// entries of an older leader, and may become durable before their truncation. The log then
    /// still contains entries with higher indexes but lower terms than the snapshot. Everything
    /// that the snapshot covers was committed, so the log must be discarded (Raft paper, extended
    /// version, section 7). No entry up to the snapshot is needed any more.
    pub(super) fn give_way(&self, snapshot: LogId) -> io::Result<()> {
        let entries = self.entries(snapshot.index..snapshot.index.saturating_add(1), 1)?;
        match entries.first() {
            Some(entry) if entry.log_id != snapshot => {
                tracing::warn!(
                    entry = %entry.log_id,
                    %snapshot,
                    "discarding the log, because it contradicts the newest snapshot"
                );
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
        self.queue.send(op).map_err(|_| io::Error::other("the store is shut down"))
    }

    fn shutdown(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        // Sending fails if the thread has already ended, which is fine.
        let _ = self.send(Op::Shutdown);
        // A callback on the storage thread itself may drop the last handle.
        if thread.thread().id() != thread::current().id() {
            // The thread catches its own panics.
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

    /// Limits the batch, because its entries are sent to a peer in one message.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start..end, READ_BYTES_MAX).await
    }

    /// Reads in small batches. After a restart, the range is the whole log since the last snapshot.
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

/// Reads the next batch of a range. Ends at the end of the range or of the log, or after an error.
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
        // Must precede everything that depends on the vote.
        self.inner.shared.voted_term.fetch_max(vote.leader_id.term, Ordering::SeqCst);
        self.inner.send(Op::Vote(*vote, done))?;
        saved.await.unwrap_or_else(|_| Err(io::Error::other("the store is shut down")))
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
            // Register before the check, so that no notification is missed.
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
