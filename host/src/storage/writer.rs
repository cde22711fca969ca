//! The storage thread: the one writer, and group commit.
//!
//! It takes everything that waits in its queue, applies it to the tree as one batch, syncs once, and
//! then answers everybody. While it syncs, the next batch gathers. What nobody waits for (the
//! committed index, records) lies in [`super::state::Lazy`] and rides along with the next batch, or is
//! applied without a sync after [`LINGER`].
//!
//! Order: the queue is the order in which votes and log changes were made, and sled recovers a prefix
//! of what it was given; so a vote and the log never change places. What rides along comes after what
//! it rides with, because the committed index may speak of it.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    check::Recovered,
    crowd::Crowd,
    format::{self, Pack, PackBuilder},
    mark::{Mark, MarkFile},
    ops::{Op, Waiting, Work},
    reader,
    state::{Lazy, Shared, change_record_sum},
    tree::{Batch, Tree},
};
use crate::types::{
    convert,
    raft::{Entry, LogId},
};

/// How long something lazy waits for a batch to ride along with. The committed index, which moves with
/// every batch and only spares a restart some questions, is written no more often than this.
const LINGER: Duration = Duration::from_millis(200);

/// How many bytes of entries go into one batch. What is left in the queue makes the next one: this
/// bounds how long a vote can wait behind entries.
const BATCH_BYTES_MAX: usize = 8 << 20;

/// How many packs one batch removes: each costs some 10 µs, and somebody waits for the batch.
const PURGED_PACKS_MAX: usize = 64;

pub(super) struct Writer {
    shared: Arc<Shared>,
    tree: Arc<Tree>,
    mark_file: MarkFile,
    queue: Receiver<Op>,
    crowd: Crowd,
    /// What the tree will have once the staged batch is applied.
    mark: Mark,
    packs: VecDeque<Pack>,
    records: BTreeMap<String, u64>,
    purged: Option<LogId>,
    /// When the committed index was staged last.
    committed_at: Option<Instant>,
    /// Small values are sealed under data keys that are not active any more.
    reseals: bool,
    /// The batch in the making.
    batch: Batch,
    pack: PackBuilder,
    encoded: Vec<u8>,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        tree: Arc<Tree>,
        mark_file: MarkFile,
        recovered: Recovered,
        queue: Receiver<Op>,
    ) -> Self {
        let records = recovered.records;
        let active = tree.active_key();
        let reseals = recovered.small_key_ids.iter().any(|key_id| *key_id != active);
        Self {
            shared,
            tree,
            mark_file,
            queue,
            crowd: Crowd::default(),
            mark: recovered.mark,
            packs: recovered.packs,
            records: records.into_iter().map(|(name, (sequence, _))| (name, sequence)).collect(),
            purged: recovered.purged,
            committed_at: None,
            reseals,
            batch: Batch::default(),
            pack: PackBuilder::default(),
            encoded: Vec::new(),
        }
    }

    /// Runs until [`Op::Shutdown`], or until all senders are dropped.
    pub(super) fn run(mut self) {
        loop {
            let (ops, ends) = self.gather();
            self.shared.progress.begin();
            self.shared.batches.send_replace(self.crowd.is_there());
            let (began, entries) = (Instant::now(), ops.iter().map(Op::entries).sum());
            let lazy = std::mem::take(&mut self.shared.lock().lazy);
            let urgent =
                ops.iter().any(|op| !matches!(op, Op::Purge(_) | Op::Wake | Op::Shutdown)) || ends;
            let mut waiting = Vec::with_capacity(ops.len());
            let result = match self.shared.check_poisoned() {
                Err(error) => {
                    waiting.extend(ops.into_iter().filter_map(Waiting::of));
                    Err(error)
                }
                Ok(()) => {
                    let commit = || self.commit(ops, lazy, urgent, ends, &mut waiting);
                    let result = catch_unwind(AssertUnwindSafe(commit))
                        .unwrap_or_else(|panic| Err(self.shared.panicked(&*panic)));
                    result.inspect_err(|error| self.shared.poison(error))
                }
            };
            self.crowd.note(entries, began.elapsed());
            self.answer(waiting, &result);
            if result.is_ok() && urgent {
                self.write_mark(ends);
            }
            self.shared.progress.end();
            if ends {
                return;
            }
        }
    }

    /// Waits for work and takes what there is. True: this is the end.
    fn gather(&mut self) -> (Vec<Op>, bool) {
        let mut ops = Vec::new();
        let mut bytes = 0;
        let mut ends = false;
        let mut next = self.wait();
        if let Ok(Op::Append { entries, .. }) = &next {
            thread::sleep(self.crowd.pause(entries.len()));
        }
        loop {
            match next {
                Ok(Op::Shutdown) | Err(RecvTimeoutError::Disconnected) => ends = true,
                Ok(op) => {
                    if let Op::Append { bytes: more, .. } = &op {
                        bytes += more;
                    }
                    ops.push(op);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if ends || bytes >= BATCH_BYTES_MAX {
                return (ops, ends);
            }
            match self.queue.try_recv() {
                Ok(op) => next = Ok(op),
                Err(_) => return (ops, ends),
            }
        }
    }

    fn wait(&mut self) -> Result<Op, RecvTimeoutError> {
        match self.queue.recv_timeout(LINGER) {
            Err(RecvTimeoutError::Timeout) => {}
            received => return received,
        }
        {
            let mut state = self.shared.lock();
            let purges = self.purgeable() && self.shared.poisoned().is_none();
            if !state.lazy.is_empty() || purges {
                return Err(RecvTimeoutError::Timeout);
            }
            state.parked = true;
        }
        let received = self.queue.recv().map_err(|_| RecvTimeoutError::Disconnected);
        self.shared.lock().parked = false;
        // Woken for something lazy: let it linger, somebody urgent may come.
        match received {
            Ok(Op::Wake) => self.queue.recv_timeout(LINGER),
            received => received,
        }
    }

    fn commit(
        &mut self,
        ops: Vec<Op>,
        lazy: Lazy,
        urgent: bool,
        ends: bool,
        waiting: &mut Vec<Waiting>,
    ) -> io::Result<()> {
        // Whatever happens below, everybody who waits is answered.
        let mut work = Vec::with_capacity(ops.len());
        for op in ops {
            match op {
                Op::Append { entries, bytes, epoch, flushed } => {
                    let to = entries.last().map(|entry| entry.log_id.index + 1);
                    waiting.push(Waiting::Append { bytes, epoch, to, flushed });
                    work.push(Work::Append(entries));
                }
                Op::Vote(vote, done) => {
                    waiting.push(Waiting::Vote(vote, done));
                    work.push(Work::Vote(vote));
                }
                Op::Truncate(after) => work.push(Work::Truncate(after)),
                Op::Purge(to) => work.push(Work::Purge(to)),
                Op::Wake | Op::Sync | Op::Shutdown => {}
            }
        }
        if std::mem::take(&mut self.reseals) {
            self.reseal()?;
        }
        for work in work {
            match work {
                Work::Append(entries) => self.stage_entries(&entries)?,
                Work::Vote(vote) => {
                    let vote = prost::Message::encode_to_vec(&convert::vote_to_wire(&vote));
                    self.mark.vote = self.stage_value(format::VOTE.to_vec(), &vote)?;
                }
                Work::Truncate(after) => self.stage_truncation(after)?,
                Work::Purge(to) => {
                    // An entry that follows a purge beyond the end does not follow those before it.
                    self.stage_pack()?;
                    self.purged = Some(to);
                    self.stage_purged()?;
                }
            }
        }
        self.stage_pack()?;
        self.stage_lazy(lazy, urgent && !ends)?;
        self.stage_purge()?;
        self.apply()?;
        if urgent {
            self.shared.progress.begin();
            self.tree.sync()?;
        }
        Ok(())
    }

    /// Writes the mark after the answers, which do not wait for it: an older mark promises less.
    fn write_mark(&mut self, ends: bool) {
        let mut written = self.mark_file.write(&self.mark);
        if ends {
            written = written.and_then(|()| self.mark_file.sync());
        }
        if let Err(error) = written {
            self.shared.poison(error);
        }
    }

    fn answer(&self, waiting: Vec<Waiting>, result: &io::Result<()>) {
        if result.is_ok() {
            let mut state = self.shared.lock();
            let now = state.epoch;
            for waiting in &waiting {
                match waiting {
                    // After a truncation the end means nothing; what comes next tells.
                    Waiting::Append { bytes, epoch, to, .. } => {
                        state.written(to.filter(|_| *epoch == now), *bytes);
                    }
                    Waiting::Vote(vote, _) => state.vote = Some(*vote),
                }
            }
        }
        self.shared.written.notify_waiters();
        // The newest first: it completes the older ones too, and openraft's forwarder sleeps for a timer tick
        // after each further completion.
        for waiting in waiting.into_iter().rev() {
            let result = match result {
                Ok(()) => Ok(()),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            };
            match waiting {
                Waiting::Append { flushed, .. } => flushed.io_completed(result),
                // Whoever asked may have gone.
                Waiting::Vote(_, done) => drop(done.send(result)),
            }
        }
    }

    /// Stages one value and gives its sequence number.
    fn stage_value(&mut self, key: Vec<u8>, body: &[u8]) -> io::Result<u64> {
        self.mark.sequence += 1;
        let sealed = self.tree.seal(&key, &format::value(self.mark.sequence, body))?;
        self.batch.insert(key, sealed);
        Ok(self.mark.sequence)
    }

    fn stage_entries(&mut self, entries: &[Entry]) -> io::Result<()> {
        for entry in entries {
            let mut encoded = std::mem::take(&mut self.encoded);
            format::encode_entry(entry, &mut encoded);
            if !self.pack.push(&encoded, entry.log_id.index) {
                self.stage_pack()?;
                assert!(
                    self.pack.push(&encoded, entry.log_id.index),
                    "an empty pack took no entry"
                );
            }
            // One huge entry must not keep its buffer for ever.
            encoded.shrink_to(format::PACK_BYTES_MAX);
            self.encoded = encoded;
        }
        Ok(())
    }

    fn stage_pack(&mut self) -> io::Result<()> {
        if self.pack.is_empty() {
            return Ok(());
        }
        let (pack, values) = self.pack.finish(self.mark.last_pack, &mut self.mark.sequence);
        for (part, value) in (0..pack.parts).zip(values) {
            let key = format::part_key(pack.first, part);
            let sealed = self.tree.seal(&key, &value)?;
            self.batch.insert(key, sealed);
        }
        self.mark.last_pack = pack.sequence;
        self.packs.push_back(pack);
        Ok(())
    }

    /// Removes the packs after `after`, and writes anew the one that it cuts through.
    fn stage_truncation(&mut self, after: Option<u64>) -> io::Result<()> {
        // What is staged must be in the tree, to be read back.
        self.stage_pack()?;
        self.apply()?;
        let next = after.map_or(0, |after| after + 1);
        let mut cut = None;
        while let Some(pack) = self.packs.pop_back_if(|pack| pack.last >= next) {
            self.stage_removal(pack);
            cut = (pack.first < next).then_some(pack);
        }
        self.mark.last_pack = self.packs.back().map_or(0, |pack| pack.sequence);
        if let Some(pack) = cut {
            let entries = reader::read_pack(&self.tree, pack.first)?;
            let kept = entries.iter().take_while(|entry| entry.log_id.index < next);
            self.stage_entries(&kept.cloned().collect::<Vec<_>>())?;
            self.stage_pack()?;
        }
        self.mark.truncated = self.stage_value(format::TRUNCATED.to_vec(), &next.to_be_bytes())?;
        // As one: a crash leaves the log as it was before, or as it should be now.
        self.apply()
    }

    fn stage_removal(&mut self, pack: Pack) {
        for part in 0..pack.parts {
            self.batch.remove(format::part_key(pack.first, part));
        }
    }

    fn purgeable(&self) -> bool {
        let purged = self.purged.map(|purged| purged.index);
        self.packs.front().is_some_and(|pack| Some(pack.last) <= purged)
    }

    /// Removes some of the packs that are purged, if there are any.
    fn stage_purge(&mut self) -> io::Result<()> {
        if !self.purgeable() {
            return Ok(());
        }
        for _ in 0..PURGED_PACKS_MAX {
            if !self.purgeable() {
                break;
            }
            if let Some(pack) = self.packs.pop_front() {
                self.stage_removal(pack);
            }
        }
        if self.packs.is_empty() {
            self.mark.last_pack = 0;
        }
        // Again, so that the note is never older than a removal.
        self.stage_purged()
    }

    fn stage_purged(&mut self) -> io::Result<()> {
        let purged = format::encode_log_id(self.purged.as_ref());
        self.mark.purged = self.stage_value(format::PURGED.to_vec(), &purged)?;
        Ok(())
    }

    /// `hurried`: somebody waits for the batch, and a single value needs no batch of sled's.
    fn stage_lazy(&mut self, lazy: Lazy, hurried: bool) -> io::Result<()> {
        let recent = self.committed_at.is_some_and(|at| at.elapsed() < LINGER);
        if let Some(committed) = lazy.committed {
            if hurried && recent {
                self.shared.lock().lazy.committed.get_or_insert(committed);
            } else {
                self.committed_at = Some(Instant::now());
                self.stage_committed(committed)?;
            }
        }
        self.stage_records(lazy.records)
    }

    fn stage_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let committed = format::encode_log_id(committed.as_ref());
        self.mark.committed = self.stage_value(format::COMMITTED.to_vec(), &committed)?;
        Ok(())
    }

    fn stage_records(&mut self, records: BTreeMap<String, Option<Bytes>>) -> io::Result<()> {
        for (name, value) in records {
            let key = format::record_key(&name);
            let old = self.records.get(&name).copied();
            let new = match value {
                Some(value) => Some(self.stage_value(key, &value)?),
                None => {
                    self.batch.remove(key);
                    self.stage_value(format::REMOVED.to_vec(), b"")?;
                    None
                }
            };
            self.mark.records = change_record_sum(self.mark.records, &name, old, new);
            match new {
                Some(sequence) => self.records.insert(name, sequence),
                None => self.records.remove(&name),
            };
        }
        Ok(())
    }

    /// Seals the small values anew under the active key, so that older keys come out of use.
    fn reseal(&mut self) -> io::Result<()> {
        let malformed = |reason| io::Error::new(io::ErrorKind::InvalidData, reason);
        for key in format::METAS {
            let Some(plaintext) = self.tree.get(key)? else { continue };
            let (_, body) = format::split_value(plaintext).map_err(malformed)?;
            let sequence = self.stage_value(key.to_vec(), &body)?;
            match key {
                format::VOTE => self.mark.vote = sequence,
                format::COMMITTED => self.mark.committed = sequence,
                format::PURGED => self.mark.purged = sequence,
                format::TRUNCATED => self.mark.truncated = sequence,
                _ => {}
            }
        }
        for (name, old) in std::mem::take(&mut self.records) {
            let key = format::record_key(&name);
            let Some(plaintext) = self.tree.get(&key)? else { continue };
            let (_, body) = format::split_value(plaintext).map_err(malformed)?;
            let new = self.stage_value(key, &body)?;
            self.mark.records = change_record_sum(self.mark.records, &name, Some(old), Some(new));
            self.records.insert(name, new);
        }
        Ok(())
    }

    fn apply(&mut self) -> io::Result<()> {
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() { Ok(()) } else { self.tree.apply(batch) }
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
