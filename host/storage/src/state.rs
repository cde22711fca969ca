//! State of the log store in memory: the ends of the log, its recent entries, and the data that the
//! storage thread has not written yet.

use std::{
    any::Any,
    collections::{BTreeMap, VecDeque},
    io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    check::Recovered,
    sizes::{Sizes, entry_bytes},
    watermark::record_sum,
};
use crate::raft_types::{Entry, LogId, Vote};
use conclave_types::{error::chain, panic_message};

/// The bytes of written entries that stay in memory. Nearly all reads of replication and apply are
/// served from them.
const CACHE_BYTES_MAX: usize = 8 << 20;

/// The state shared by the handles and the storage thread.
pub(super) struct Shared {
    state: Mutex<State>,
    poisoned: OnceLock<Arc<io::Error>>,
    pub(super) appended_bytes: AtomicU64,
    /// Notified whenever entries have been written, for tasks that wait for room.
    pub(super) written: tokio::sync::Notify,
    /// Published whenever the storage thread starts a batch: whether it was delayed because of load.
    pub(super) batches: watch::Sender<bool>,
    pub(super) progress: Progress,
    /// The highest term of a vote that openraft has passed for storing.
    pub(super) voted_term: AtomicU64,
    /// The message of the storage thread's panic, if it panicked.
    pub(super) panic: watch::Sender<Option<String>>,
}

/// The start of the storage thread's current step: staging, syncing, or writing the watermark.
///
/// A hung disk raises no event, so the start is published and read by a watchdog.
pub(super) struct Progress {
    opened: Instant,
    /// Nanoseconds after `opened`, at least 1; 0 while the thread waits for work.
    began: AtomicU64,
}

impl Progress {
    fn new() -> Self {
        Self { opened: Instant::now(), began: AtomicU64::new(0) }
    }

    pub(super) fn begin(&self) {
        let since = self.opened.elapsed().as_nanos();
        self.began.store(u64::try_from(since).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.began.store(0, Ordering::Relaxed);
    }

    /// The duration of the current step so far. Zero if there is none.
    pub(super) fn elapsed(&self) -> Duration {
        match self.began.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            began => self.opened.elapsed().saturating_sub(Duration::from_nanos(began)),
        }
    }
}

impl Shared {
    pub(super) fn new(recovered: &Recovered) -> Self {
        Self {
            state: Mutex::new(State::new(recovered)),
            poisoned: OnceLock::new(),
            appended_bytes: AtomicU64::new(0),
            written: tokio::sync::Notify::new(),
            batches: watch::Sender::new(false),
            progress: Progress::new(),
            voted_term: AtomicU64::new(recovered.vote.map_or(0, |vote| vote.leader_id.term)),
            panic: watch::Sender::new(None),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A change of the state can panic only in the assertions at its end. The storage thread
        // catches its own panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rejects all operations from now on. Only the first failure is kept.
    pub(super) fn poison(&self, failure: Arc<io::Error>) {
        tracing::error!(reason = chain(&failure), "the store rejects all further operations");
        // A later failure is a consequence of the first.
        let _ = self.poisoned.set(failure);
        self.written.notify_waiters();
    }

    /// Poisons the store after a panic of the storage thread, and publishes the panic.
    pub(super) fn panicked(&self, panic: &(dyn Any + Send)) -> Arc<io::Error> {
        let message = format!("the storage thread panicked: {}", panic_message(panic));
        let failure = Arc::new(io::Error::other(message.clone()));
        self.poison(Arc::clone(&failure));
        self.panic.send_replace(Some(message));
        failure
    }

    pub(super) fn poisoned(&self) -> Option<&Arc<io::Error>> {
        self.poisoned.get()
    }

    /// Returns an error if the store is poisoned.
    pub(super) fn check_poisoned(&self) -> io::Result<()> {
        self.poisoned()
            .map_or(Ok(()), |failure| Err(super::Error::Poisoned(Arc::clone(failure)).into()))
    }

    pub(super) fn count_appended(&self, bytes: usize) {
        self.appended_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// The log as the handles see it.
///
/// Invariants:
/// - The cache holds consecutive entries and ends with the last one.
/// - Every entry that is neither purged nor in the cache is in the tree: unwritten entries are never
///   evicted.
/// - After a purge, the oldest retained index follows the purged entry.
pub(super) struct State {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    /// The oldest retained index. In a log that was never purged, the index of its first entry.
    pub(super) first: u64,
    /// The id of the last entry, or of the purged entry if there are no entries.
    pub(super) last: Option<LogId>,
    /// Increases with every truncation. A read during which it changes is repeated.
    pub(super) epoch: u64,
    /// The first index of the cache. If the cache is empty, the index after the last entry.
    pub(super) cache_first: u64,
    pub(super) sizes: Sizes,
    cache: VecDeque<(Entry, usize)>,
    cache_bytes: usize,
    /// Entries below this index are in the tree.
    written_to: u64,
    pub(super) unwritten_bytes: usize,
    pub(super) records: BTreeMap<String, Bytes>,
    pub(super) lazy: Lazy,
    /// Whether the storage thread sleeps without a deadline. A handle that adds lazy data must then
    /// wake it.
    pub(super) parked: bool,
}

/// Data that the storage thread writes with the next batch, or after a short delay.
#[derive(Default)]
pub(super) struct Lazy {
    pub(super) committed: Option<Option<LogId>>,
    pub(super) records: BTreeMap<String, Option<Bytes>>,
}

impl Lazy {
    pub(super) fn is_empty(&self) -> bool {
        self.committed.is_none() && self.records.is_empty()
    }
}

impl State {
    fn new(recovered: &Recovered) -> Self {
        let next = recovered.last.map_or(0, |last| last.index + 1);
        Self {
            vote: recovered.vote,
            committed: committed_hint(recovered),
            purged: recovered.purged,
            first: match recovered.purged {
                Some(purged) => purged.index + 1,
                None => recovered.blocks.front().map_or(0, |block| block.first),
            },
            last: recovered.last,
            epoch: 0,
            cache_first: next,
            sizes: recovered.sizes.clone(),
            cache: VecDeque::new(),
            cache_bytes: 0,
            written_to: next,
            unwritten_bytes: 0,
            records: recovered
                .records
                .iter()
                .map(|(name, (_, value))| (name.clone(), value.clone()))
                .collect(),
            lazy: Lazy::default(),
            parked: false,
        }
    }

    /// The index after the last entry.
    pub(super) fn next(&self) -> Option<u64> {
        self.last.map(|last| last.index + 1)
    }

    /// Appends entries, which are readable at once. Returns their bytes. A gap is an error.
    pub(super) fn append(&mut self, entries: &[Entry]) -> io::Result<usize> {
        let Some(first) = entries.first() else { return Ok(0) };
        for (due, entry) in (self.next().unwrap_or(first.log_id.index)..).zip(entries) {
            if entry.log_id.index != due {
                let reason = format!(
                    "entry {} was appended, but entry {due} is expected",
                    entry.log_id.index
                );
                return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
            }
        }
        if self.last.is_none() {
            self.first = first.log_id.index;
        }
        if self.cache.is_empty() {
            self.cache_first = first.log_id.index;
        }
        let mut bytes = 0;
        for entry in entries {
            let entry_bytes = entry_bytes(entry);
            bytes += entry_bytes;
            self.sizes.append(entry.log_id.index, entry_bytes as u64);
            self.cache.push_back((entry.clone(), entry_bytes));
            self.last = Some(entry.log_id);
        }
        self.cache_bytes += bytes;
        self.unwritten_bytes += bytes;
        self.assert_invariants();
        Ok(bytes)
    }

    /// Removes the entries after `after`.
    pub(super) fn truncate(&mut self, after: Option<LogId>) {
        if after >= self.last {
            return;
        }
        let next = after.map_or(0, |after| after.index + 1);
        while let Some((_, bytes)) = self.cache.pop_back_if(|(entry, _)| entry.log_id.index >= next)
        {
            self.cache_bytes -= bytes;
        }
        self.sizes.truncate(next);
        self.cache_first = self.cache_first.min(next);
        self.written_to = self.written_to.min(next);
        self.last = after.max(self.purged);
        self.epoch += 1;
        self.assert_invariants();
    }

    /// Removes the entries up to and including `to`. Returns false if they were already removed.
    pub(super) fn purge(&mut self, to: LogId) -> bool {
        if self.purged.is_some_and(|purged| purged.index >= to.index) {
            return false;
        }
        self.purged = Some(to);
        self.first = to.index + 1;
        self.sizes.purge(self.first);
        // Compare by index: a later leader's entries that end before `to` are also removed, and the
        // log continues after `to`.
        if self.last.is_none_or(|last| last.index <= to.index) {
            self.last = Some(to);
        }
        while let Some((_, bytes)) =
            self.cache.pop_front_if(|(entry, _)| entry.log_id.index <= to.index)
        {
            self.cache_bytes -= bytes;
        }
        self.cache_first = self.cache_first.max(to.index + 1);
        self.written_to = self.written_to.max(to.index + 1);
        self.assert_invariants();
        true
    }

    /// Whether the entry at `index`, and therefore every entry before it, is on disk.
    pub(super) fn is_written(&self, index: u64) -> bool {
        self.written_to > index
    }

    /// Records that entries are in the tree. `to` is the index after them, or `None` after a truncation.
    pub(super) fn written(&mut self, to: Option<u64>, bytes: usize) {
        self.unwritten_bytes = self.unwritten_bytes.saturating_sub(bytes);
        self.written_to = self.written_to.max(to.unwrap_or(0));
        while self.cache_bytes > CACHE_BYTES_MAX && self.cache_first < self.written_to {
            let Some((_, bytes)) = self.cache.pop_front() else { break };
            self.cache_bytes -= bytes;
            self.cache_first += 1;
        }
        self.assert_invariants();
    }

    /// Asserts the invariants as far as the ends of the cache show them. Entries are appended without
    /// a gap, so the number of entries between the ends shows that they are consecutive.
    fn assert_invariants(&self) {
        if let (Some((front, _)), Some((back, _))) = (self.cache.front(), self.cache.back()) {
            let (front, back) = (front.log_id.index, back.log_id.index);
            assert_eq!(front, self.cache_first, "the first entry of the cache");
            assert_eq!(Some(back), self.last.map(|last| last.index), "the last entry of the cache");
            assert_eq!(self.cache.len() as u64 - 1, back - front, "the entries of the cache");
        } else {
            assert_eq!(self.cache_bytes, 0, "the bytes of an empty cache");
        }
        let evictable_to = self.written_to.max(self.first);
        assert!(self.cache_first <= evictable_to, "an unwritten entry was evicted");
        if let Some(purged) = self.purged {
            assert_eq!(self.first, purged.index + 1, "the index after the purged entry");
        }
    }

    /// Copies cached entries from `from` on: at most `bytes_max` bytes, but at least one if `out` is empty.
    pub(super) fn copy_cached(&self, from: u64, to: u64, bytes_max: usize, out: &mut Vec<Entry>) {
        let skipped = from.saturating_sub(self.cache_first) as usize;
        let mut bytes = 0;
        for (entry, entry_bytes) in self.cache.iter().skip(skipped) {
            bytes += entry_bytes;
            if entry.log_id.index >= to || (!out.is_empty() && bytes > bytes_max) {
                break;
            }
            out.push(entry.clone());
        }
    }
}

/// Returns the last entry of the recovered log that is certainly committed. The stored committed id
/// is written lazily, and may precede the entries that it refers to. In that case it must not be
/// applied to entries of another leader at the same indexes.
fn committed_hint(recovered: &Recovered) -> Option<LogId> {
    let Recovered { committed, last, purged, holds_committed, .. } = recovered;
    match (committed, last) {
        (Some(committed), Some(last)) if committed.leader_id == last.leader_id => {
            Some(*committed.min(last))
        }
        (committed, _) if *holds_committed => *committed,
        _ => *purged,
    }
}

/// Returns the sum over all metadata entries after a change of one of them.
pub(super) fn change_record_sum(sum: u64, name: &str, old: Option<u64>, new: Option<u64>) -> u64 {
    let part = |sequence: Option<u64>| sequence.map_or(0, |sequence| record_sum(name, sequence));
    sum.wrapping_sub(part(old)).wrapping_add(part(new))
}
