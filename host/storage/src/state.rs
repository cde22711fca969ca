//! What the log store knows in memory: the ends of the log, its recent entries, and what the storage
//! thread has yet to write.

use std::{
    any::Any,
    collections::{BTreeMap, VecDeque},
    io,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::watch;

use super::{check::Recovered, sizes::Sizes, watermark::record_sum};
use crate::raft_types::{Entry, LogId, Payload, Vote};
use conclave_types::panic_message;

/// How many bytes of entries stay in memory once they are written: what replication and apply
/// read is nearly always among them.
const CACHE_BYTES_MAX: usize = 8 << 20;

/// What an entry takes in memory beside its payload, roughly.
const ENTRY_OVERHEAD_BYTES: usize = 128;

/// Shared by the handles and the storage thread.
pub(super) struct Shared {
    state: Mutex<State>,
    poisoned: OnceLock<String>,
    pub(super) appended_bytes: AtomicU64,
    /// Told whenever entries have been written, for those who wait for room.
    pub(super) written: tokio::sync::Notify,
    /// Told whenever the storage thread begins a batch: whether it was held open for a crowd.
    pub(super) batches: watch::Sender<bool>,
    pub(super) progress: Progress,
    /// The highest term of a vote that was passed to be stored.
    pub(super) voted_term: AtomicU64,
    /// Set if the storage thread panicked, with the panic's message.
    pub(super) panic: watch::Sender<Option<String>>,
}

/// When the storage thread began its current step: staging, syncing, or writing the watermark.
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

    /// How long the current step has taken so far; zero while there is none.
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
        // Nothing panics in the middle of a change; and the storage thread guards itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on nothing is accepted. The first reason stays.
    pub(super) fn poison(&self, reason: impl ToString) {
        let reason = reason.to_string();
        // A later reason is a consequence.
        let _ = self.poisoned.set(reason.clone());
        self.written.notify_waiters();
        tracing::error!(%reason, "the store accepts nothing any more");
    }

    /// Poisons the store after a panic of the storage thread, and publishes it.
    pub(super) fn panicked(&self, panic: &(dyn Any + Send)) -> io::Error {
        let message = format!("the storage thread panicked: {}", panic_message(panic));
        self.poison(&message);
        self.panic.send_replace(Some(message.clone()));
        io::Error::other(message)
    }

    pub(super) fn poisoned(&self) -> Option<&str> {
        self.poisoned.get().map(String::as_str)
    }

    /// The error for whoever comes after the failure.
    pub(super) fn check_poisoned(&self) -> io::Result<()> {
        self.poisoned()
            .map_or(Ok(()), |reason| Err(super::Error::Poisoned(reason.to_owned()).into()))
    }

    pub(super) fn count_appended(&self, bytes: usize) {
        self.appended_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Invariants: the cache holds consecutive entries and ends with the last one; every entry that is
/// neither purged nor in the cache is in the tree; nothing unwritten is evicted.
pub(super) struct State {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    /// Entries below are not there. A log that was never purged begins where it was begun.
    pub(super) first: u64,
    /// The last entry's id; the purged one's if there is none.
    pub(super) last: Option<LogId>,
    /// Grows with every truncation: what was read across one is read again.
    pub(super) epoch: u64,
    /// The cache's first index; one beyond the last entry if the cache is empty.
    pub(super) cache_first: u64,
    pub(super) sizes: Sizes,
    cache: VecDeque<(Entry, usize)>,
    cache_bytes: usize,
    /// Entries below are in the tree.
    written_to: u64,
    pub(super) unwritten_bytes: usize,
    pub(super) records: BTreeMap<String, Bytes>,
    pub(super) lazy: Lazy,
    /// The storage thread sleeps without a deadline: who leaves something lazy must wake it.
    pub(super) parked: bool,
}

/// What the storage thread writes along with the next batch, or soon.
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

    /// The index after the last entry's.
    pub(super) fn next(&self) -> Option<u64> {
        self.last.map(|last| last.index + 1)
    }

    /// Takes entries, readable from now on, and says how many bytes they have; or refuses a hole.
    pub(super) fn append(&mut self, entries: &[Entry]) -> io::Result<usize> {
        let Some(first) = entries.first() else { return Ok(0) };
        for (due, entry) in (self.next().unwrap_or(first.log_id.index)..).zip(entries) {
            if entry.log_id.index != due {
                let reason = format!("entry {} appended where {due} is due", entry.log_id.index);
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
        Ok(bytes)
    }

    /// Forgets the entries after `after`.
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
    }

    /// Forgets the entries up to and with `to`. False: they were gone already.
    pub(super) fn purge(&mut self, to: LogId) -> bool {
        if self.purged.is_some_and(|purged| purged.index >= to.index) {
            return false;
        }
        self.purged = Some(to);
        self.first = to.index + 1;
        self.sizes.purge(self.first);
        // By index: a tail of a later leader's entries that ends before `to` is gone as well, and the log
        // continues after `to`.
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
        true
    }

    /// Whether the entry at `index`, and so all before it, is on disk.
    pub(super) fn is_written(&self, index: u64) -> bool {
        self.written_to > index
    }

    /// Notes that entries have reached the tree. `to` is their end, unless a truncation came between.
    pub(super) fn written(&mut self, to: Option<u64>, bytes: usize) {
        self.unwritten_bytes = self.unwritten_bytes.saturating_sub(bytes);
        self.written_to = self.written_to.max(to.unwrap_or(0));
        while self.cache_bytes > CACHE_BYTES_MAX && self.cache_first < self.written_to {
            let Some((_, bytes)) = self.cache.pop_front() else { break };
            self.cache_bytes -= bytes;
            self.cache_first += 1;
        }
    }

    /// Copies cached entries from `from` on, at most `bytes_max` of them but for the first.
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

/// How far the log that was found is surely committed. The note on that is written lazily and may
/// come before what it speaks of: then it says nothing of entries that another leader appended, even
/// if there are as many.
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

/// What an entry takes in memory, roughly.
pub(super) fn entry_bytes(entry: &Entry) -> usize {
    let payload = match &entry.payload {
        Payload::Blank => 0,
        Payload::Normal(command) => command.kind.bytes(),
        Payload::Membership(membership) => 128 * membership.nodes().count(),
    };
    payload + ENTRY_OVERHEAD_BYTES
}

/// How the sum over all records changes with one of them.
pub(super) fn change_record_sum(sum: u64, name: &str, old: Option<u64>, new: Option<u64>) -> u64 {
    let part = |sequence: Option<u64>| sequence.map_or(0, |sequence| record_sum(name, sequence));
    sum.wrapping_sub(part(old)).wrapping_add(part(new))
}
