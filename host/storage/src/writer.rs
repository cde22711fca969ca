//! The storage thread: the only writer, which implements group commit.
//!
//! The thread takes all operations from its queue, applies them to the tree as one batch, syncs
//! once, and then completes all waiting callers. During the sync, the queue collects the next batch.
//! Values for which no caller waits (the committed id, metadata entries) stay in
//! [`super::state::Lazy`]. They are written with the next batch, or without a sync after [`LINGER`].
//!
//! Order: the queue has the order in which votes and log changes were made, and sled recovers a prefix
//! of the applied changes. A crash therefore never reorders a vote and the log. Lazy values are
//! applied after the rest of their batch, because the committed id may refer to entries of the batch.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    check::Recovered,
    group_commit::GroupCommit,
    ops::{Op, Waiting, Work},
    reader,
    staging::{Changes, Staging, Target},
    state::{Lazy, Shared},
    tree::{Batch, Tree},
    watermark::WatermarkFile,
};
use crate::raft_types::Entry;

/// The time that lazy values wait for a batch. It is also the least interval between two writes of
/// the committed id, which changes with every batch. That id only saves a restart some requests.
const LINGER: Duration = Duration::from_millis(200);

/// The largest batch of entries, in bytes. Further operations wait for the next batch. This limits
/// the time that a vote waits behind entries.
const BATCH_BYTES_MAX: usize = 8 << 20;

pub(super) struct Writer {
    shared: Arc<Shared>,
    tree: Arc<Tree>,
    watermark_file: WatermarkFile,
    queue: Receiver<Op>,
    group_commit: GroupCommit,
    staging: Staging,
    /// The time when the committed id was last staged.
    committed_at: Option<Instant>,
    /// Whether small values are sealed under inactive data keys.
    reseals: bool,
}

impl Target for Tree {
    fn apply(&self, changes: Changes) -> io::Result<()> {
        let mut batch = Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => {
                    let sealed = self.seal(&key, &value)?;
                    batch.insert(key, sealed);
                }
                None => batch.remove(key),
            }
        }
        Tree::apply(self, batch)
    }

    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Tree::get(self, key)
    }

    fn read_pack(&self, first: u64) -> io::Result<Vec<Entry>> {
        reader::read_pack(self, first)
    }
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        tree: Arc<Tree>,
        watermark_file: WatermarkFile,
        recovered: Recovered,
        queue: Receiver<Op>,
    ) -> Self {
        let active = tree.active_key();
        let reseals = recovered.small_key_ids.iter().any(|key_id| *key_id != active);
        Self {
            shared,
            tree,
            watermark_file,
            queue,
            group_commit: GroupCommit::default(),
            staging: Staging::new(recovered),
            committed_at: None,
            reseals,
        }
    }

    /// Runs until [`Op::Shutdown`], or until all senders are dropped.
    pub(super) fn run(mut self) {
        loop {
            let (ops, ends) = self.gather();
            self.shared.progress.begin();
            self.shared.batches.send_replace(self.group_commit.is_there());
            let (began, entries) = (Instant::now(), ops.iter().map(Op::entries).sum());
            let lazy = std::mem::take(&mut self.shared.lock().lazy);
            let urgent =
                ops.iter().any(|op| !matches!(op, Op::Purge(_) | Op::Wake | Op::Shutdown)) || ends;
            let mut waiting = Vec::with_capacity(ops.len());
            let result = match self.shared.check_poisoned() {
                Err(error) => {
                    waiting.extend(ops.into_iter().filter_map(Waiting::of));
                    Err(Arc::new(error))
                }
                Ok(()) => {
                    let commit = || self.commit(ops, lazy, urgent, ends, &mut waiting);
                    match catch_unwind(AssertUnwindSafe(commit)) {
                        Ok(result) => result
                            .map_err(Arc::new)
                            .inspect_err(|error| self.shared.poison(Arc::clone(error))),
                        Err(panic) => Err(self.shared.panicked(&*panic)),
                    }
                }
            };
            self.group_commit.note(entries, began.elapsed());
            self.answer(waiting, &result);
            if result.is_ok() && urgent {
                self.write_watermark(ends);
            }
            self.shared.progress.end();
            if ends {
                return;
            }
        }
    }

    /// Waits for operations and takes all that are queued. The flag is true if the thread must end.
    fn gather(&mut self) -> (Vec<Op>, bool) {
        let mut ops = Vec::new();
        let mut bytes = 0;
        let mut ends = false;
        let mut next = self.wait();
        if let Ok(Op::Append { entries, .. }) = &next {
            thread::sleep(self.group_commit.pause(entries.len()));
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
            let purges = self.staging.purgeable() && self.shared.poisoned().is_none();
            if !state.lazy.is_empty() || purges {
                return Err(RecvTimeoutError::Timeout);
            }
            state.parked = true;
        }
        let received = self.queue.recv().map_err(|_| RecvTimeoutError::Disconnected);
        self.shared.lock().parked = false;
        // After a wake-up for a lazy value, wait a little, because an urgent operation may follow.
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
        // Record all waiting callers first, so that each is completed even after an error.
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
        let tree = &*self.tree;
        if std::mem::take(&mut self.reseals) {
            self.staging.reseal(tree)?;
        }
        for work in work {
            self.staging.stage(work, tree)?;
        }
        self.stage_lazy(lazy, urgent && !ends);
        self.staging.finish(&*self.tree)?;
        if urgent {
            self.shared.progress.begin();
            self.tree.sync()?;
        }
        Ok(())
    }

    /// Writes the watermark after completing the callers. They need not wait for it, because an
    /// older watermark only requires less.
    fn write_watermark(&mut self, ends: bool) {
        let mut written = self.watermark_file.write(self.staging.watermark());
        if ends {
            written = written.and_then(|()| self.watermark_file.sync());
        }
        if let Err(error) = written {
            self.shared.poison(Arc::new(error.into()));
        }
    }

    fn answer(&self, waiting: Vec<Waiting>, result: &Result<(), Arc<io::Error>>) {
        if result.is_ok() {
            let mut state = self.shared.lock();
            let now = state.epoch;
            for waiting in &waiting {
                match waiting {
                    // After a truncation the end of this append is meaningless. Later appends
                    // report the end.
                    Waiting::Append { bytes, epoch, to, .. } => {
                        state.written(to.filter(|_| *epoch == now), *bytes);
                    }
                    Waiting::Vote(vote, _) => state.vote = Some(*vote),
                }
            }
        }
        self.shared.written.notify_waiters();
        // Complete the newest append first. It completes the older ones too, and openraft's
        // forwarder sleeps for a timer tick after each further completion.
        for waiting in waiting.into_iter().rev() {
            let result = match result {
                Ok(()) => Ok(()),
                Err(error) => Err(io::Error::new(error.kind(), Arc::clone(error))),
            };
            match waiting {
                Waiting::Append { flushed, .. } => flushed.io_completed(result),
                // The receiver may be gone.
                Waiting::Vote(_, done) => drop(done.send(result)),
            }
        }
    }

    /// Stages lazy values. `hurried`: a caller waits for the batch, and without the committed id
    /// the batch may be a single value, which sled writes faster.
    fn stage_lazy(&mut self, lazy: Lazy, hurried: bool) {
        let recent = self.committed_at.is_some_and(|at| at.elapsed() < LINGER);
        if let Some(committed) = lazy.committed {
            if hurried && recent {
                self.shared.lock().lazy.committed.get_or_insert(committed);
            } else {
                self.committed_at = Some(Instant::now());
                self.staging.stage_committed(committed);
            }
        }
        self.staging.stage_records(lazy.records);
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
