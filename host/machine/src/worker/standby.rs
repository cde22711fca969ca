//! The standby: the thread that follows the primary, answers queries and writes snapshots.
//!
//! Its loop does a little of each kind of work per turn, so that none waits until another is
//! finished: a promotion, snapshots to begin, some entries, queries, one piece of one snapshot.
//!
//! After entries it naps for a few milliseconds, unless there is other work, so that one wake-up of
//! its thread serves several entries. A query, a subscription, a snapshot or a promotion wakes it.

mod absence;
mod activation;
mod questions;
mod streams;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
};

use wasmtime::component::ResourceAny;

use super::{
    digest::OutcomeHash,
    inbox::{Finished, Prepared, Promotion, Question, Queue, ReadRequest, SnapshotRequest, Step},
    shared::{Restore, Shared},
    status::{End, end_of},
};
use crate::{
    clock::Clock,
    component::Component,
    entry_context::EntryContext,
    entry_source::{Entry, Work},
    error::{EntrySourceError, FatalError, QueryError},
    instance::Instance,
    trap::Broken,
};
use conclave_types::{Call, Outcome, Trap, TrapKind, limits::ClusterLimits};

/// The number of entries and queries per turn. Each kind takes a millisecond or two, about as long
/// as a piece of a snapshot, so that none starves the others.
const TURN_COUNT: usize = 256;
/// The number of consecutive builds that may fail because the log was purged meanwhile.
const GAPS_MAX: u32 = 5;

pub(super) struct Standby {
    shared: Arc<Shared>,
    /// `None` after a trap or a promotion, until a new one has been built.
    instance: Option<Instance>,
    /// The component of the instance.
    component: Component,
    clock: Clock,
    streams: HashMap<u64, OpenStream>,
    next_stream: u64,
    gaps: u32,
    /// The index of the last adopted state of another node. Snapshots up to that index are obsolete.
    adopted_at: u64,
    /// The replaced instance, to be dropped outside of the lock.
    retired: Option<Instance>,
    /// Whether the last turn had entries, so that more may follow soon.
    followed: bool,
}

/// A snapshot that is being read.
#[derive(Clone, Copy)]
struct OpenStream {
    snapshot: ResourceAny,
    /// The number of bytes read so far.
    bytes: usize,
}

/// The work of one turn, as taken from the queue.
#[derive(Default)]
struct Turn {
    promotion: Option<Promotion>,
    snapshots: Vec<SnapshotRequest>,
    closed: Vec<u64>,
    queries: VecDeque<Question>,
    read: Option<ReadRequest>,
    entries: Vec<Finished>,
    /// The index up to which the entry source must be read.
    gap: Option<u64>,
}

impl Turn {
    fn is_empty(&self) -> bool {
        self.promotion.is_none()
            && self.snapshots.is_empty()
            && self.closed.is_empty()
            && self.queries.is_empty()
            && self.read.is_none()
            && self.entries.is_empty()
            && self.gap.is_none()
    }
}

impl Standby {
    pub(super) fn new(shared: Arc<Shared>, prepared: Prepared) -> Self {
        let Prepared { instance, component, clock } = prepared;
        Self {
            shared,
            instance: Some(instance),
            component,
            adopted_at: clock.index(),
            clock,
            streams: HashMap::new(),
            next_stream: 0,
            gaps: 0,
            retired: None,
            followed: false,
        }
    }

    pub(super) fn run(mut self) {
        let end = loop {
            let done = self.turn().or_else(|end| match end {
                // The primary works without a standby.
                End::Fatal(fatal_error) if self.shared.status.fatal_error().is_none() => {
                    self.rest(fatal_error)
                }
                end => Err(end),
            });
            if let Err(end) = done {
                break end;
            }
        };
        if let End::Fatal(fatal_error) = end {
            self.shared.fail(fatal_error);
        }
    }

    fn turn(&mut self) -> Result<(), End> {
        self.shared.status.check()?;
        if self.instance.is_none() {
            self.begin_absence();
            if !self.replaced() {
                self.build()?;
            }
        }
        let turn = self.take()?;
        if let Some(promotion) = turn.promotion {
            self.promote(promotion)?;
        }
        for stream in turn.closed {
            self.close(stream)?;
        }
        for request in turn.snapshots {
            self.begin_snapshot(request)?;
        }
        if let Some(to) = turn.gap {
            self.catch_up(to)?;
        }
        self.followed = !turn.entries.is_empty();
        for finished in turn.entries {
            self.follow(finished)?;
        }
        self.answer_some(turn.queries)?;
        if let Some(request) = turn.read {
            self.read(request)?;
        }
        Ok(())
    }

    /// Waits for work and takes some.
    fn take(&mut self) -> Result<Turn, End> {
        let shared = Arc::clone(&self.shared);
        let mut queue = shared.inbox.lock();
        loop {
            shared.status.check()?;
            self.adopt(&mut queue);
            if self.succeed(&mut queue) {
                // Releasing a large memory takes long.
                drop(queue);
                self.retired = None;
                queue = shared.inbox.lock();
                continue;
            }
            let turn = self.take_now(&mut queue)?;
            if !turn.is_empty() {
                return Ok(turn);
            }
            let naps = std::mem::take(&mut self.followed);
            queue = shared.inbox.wait_for_work(queue, naps);
        }
    }

    fn take_now(&mut self, queue: &mut Queue) -> Result<Turn, End> {
        let mut turn = Turn::default();
        let applied = self.clock.index();
        queue.serve(applied);
        turn.closed = std::mem::take(&mut queue.closed);
        turn.read = queue.reads.pop_front();
        if !queue.snapshots.is_empty() {
            // A request whose caller has given up would hold the standby at its index.
            queue.snapshots.retain(|request| !request.reply.is_closed());
            let due = |request: &mut SnapshotRequest| request.index <= applied;
            turn.snapshots = queue.snapshots.extract_if(.., due).collect();
        }
        if let Some(promotion) = &queue.promotion {
            if applied > promotion.index {
                return Err(FatalError::new(format!(
                    "the entry after {} trapped, and the newest snapshot is already at {applied}: restart the node to continue from it",
                    promotion.index
                ))
                .into());
            }
            if applied == promotion.index {
                turn.promotion = queue.promotion.take();
                return Ok(turn);
            }
        }
        turn.gap = queue.gap(applied).map(|to| to.min(queue.boundary()));
        queue.catching_up = turn.gap.is_some();
        self.end_absence(queue);
        // No caller may observe an older state than was served before. All writes wait for a
        // promotion, so no query is answered before it.
        if applied >= queue.serving && queue.promotion.is_none() && !queue.primary_answers {
            let count = queue.ready.len().min(TURN_COUNT);
            turn.queries = queue.ready.drain(..count).collect();
        }
        if turn.gap.is_none() && turn.snapshots.is_empty() {
            queue.take(applied, TURN_COUNT, &mut turn.entries);
            let counters = &self.shared.counters;
            counters.standby_queue_bytes.store(queue.finished_bytes as u64, Ordering::Relaxed);
            self.shared.inbox.made_room();
        }
        queue.assert_invariants();
        Ok(turn)
    }

    /// Continues with the instance that a restore has prepared.
    fn adopt(&mut self, queue: &mut Queue) -> bool {
        let Some(prepared) = queue.replacement.take() else { return false };
        self.streams.clear();
        self.instance = Some(prepared.instance);
        self.component = prepared.component;
        self.clock = prepared.clock;
        self.shared.events.reset(self.clock.index());
        self.adopted_at = self.clock.index();
        queue.successor = None;
        self.shared.absence.replaced();
        queue.catching_up = false;
        queue.assert_invariants();
        true
    }

    fn replaced(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut queue = shared.inbox.lock();
        self.adopt(&mut queue) || self.succeed(&mut queue)
    }

    /// Builds a new instance from the newest snapshot. The next turns apply the entries after it.
    fn build(&mut self) -> Result<(), End> {
        self.streams.clear();
        self.shared.inbox.lock().catching_up = true;
        self.shared.inbox.made_room();
        self.shared.counters.standby_builds.fetch_add(1, Ordering::Relaxed);
        let unreadable = |error: EntrySourceError| {
            FatalError::new(format!("the standby cannot be rebuilt: {error}"))
        };
        let (instance, component, clock) =
            match self.shared.entry_source.snapshot().map_err(unreadable)? {
                None => {
                    let instance = self
                        .shared
                        .fresh("standby")
                        .map_err(|broken| end_of(broken, "starting a standby"))?;
                    (instance, self.shared.initial.clone(), self.shared.clock())
                }
                Some(saved) => {
                    let (index, component) = (saved.index, saved.component.clone());
                    match self.shared.restored(["standby"], saved) {
                        Ok(([instance], clock)) => (instance, component, clock),
                        Err(Restore::Stopped) => return Err(End::Stopped),
                        // A newer snapshot replaced it while it was read.
                        Err(Restore::EntrySource(EntrySourceError::Gap(_), _)) => {
                            return self.gap(index);
                        }
                        Err(other) => return Err(other.into_fatal().into()),
                    }
                }
            };
        tracing::info!(index = clock.index(), "a new standby was built from the newest snapshot");
        self.instance = Some(instance);
        self.component = component;
        self.clock = clock;
        self.shared.events.skip_to(self.clock.index());
        Ok(())
    }

    /// Handles a purge of the log during a build: starts again, from the newer snapshot.
    fn gap(&mut self, index: u64) -> Result<(), End> {
        self.instance = None;
        self.gaps += 1;
        if self.gaps > GAPS_MAX {
            return Err(FatalError::new(format!(
                "the standby cannot be rebuilt: the log after {index} is gone"
            ))
            .into());
        }
        Ok(())
    }

    /// Applies entries of the entry source, up to `to` or as many as it returns at once.
    fn catch_up(&mut self, to: u64) -> Result<(), End> {
        let from = self.clock.index() + 1;
        let entries = match self.shared.entry_source.entries(from, to) {
            Ok(entries) => entries,
            Err(EntrySourceError::Gap(index)) => return self.gap(index),
            Err(error) => {
                return Err(
                    FatalError::new(format!("the standby cannot be rebuilt: {error}")).into()
                );
            }
        };
        self.gaps = 0;
        if entries.is_empty() {
            self.clock.skip_to(to);
        }
        for Entry { index, time_ms, work } in entries {
            self.shared.status.check()?;
            if index <= self.clock.index() || index > to {
                return Err(FatalError::new(format!(
                    "the entry source returned entry {index} for the range {from} to {to}"
                ))
                .into());
            }
            let context = self.clock.advance(index, time_ms);
            self.replay(context, work)?;
        }
        self.publish(None);
        Ok(())
    }

    /// Replays an entry of the entry source, as the primary did it.
    fn replay(&mut self, context: EntryContext, work: Work) -> Result<(), End> {
        let call = match work {
            Work::Call(call) => Some(call),
            Work::Tick => None,
            Work::Activate(component) => {
                let known = self.shared.not_activated(context.index, &self.component, &component);
                return if known.is_none() {
                    self.activate(context.index, component)
                } else {
                    Ok(())
                };
            }
            Work::SetLimits(limits) => {
                self.set_limits(limits);
                return Ok(());
            }
        };
        if self.shared.entry_source.trapped(context.index).is_none() {
            self.apply(context, call.as_ref(), None)?;
        }
        Ok(())
    }

    /// Follows the primary over one entry.
    fn follow(&mut self, finished: Finished) -> Result<(), End> {
        match finished.step {
            Step::Apply { context, call } => {
                self.clock.follow(context.index, context.time_ms);
                return self.apply(context, call.as_ref(), finished.outcome);
            }
            Step::Activate { context, component } => {
                self.clock.follow(context.index, context.time_ms);
                self.activate(context.index, component)?;
            }
            Step::SetLimits { context, limits } => {
                self.clock.follow(context.index, context.time_ms);
                self.set_limits(limits);
            }
            Step::Skip { time_ms } => self.clock.follow(finished.index, time_ms),
        }
        self.publish(None);
        Ok(())
    }

    /// Sets other limits. An instance that was lost in this turn gets them from the entry source.
    fn set_limits(&mut self, limits: ClusterLimits) {
        if let Some(instance) = &mut self.instance {
            instance.set_cluster_limits(limits);
        }
    }

    /// Publishes the position of the standby, and the events of the entry there.
    fn publish(&self, outcome: Option<Outcome>) {
        self.shared.counters.standby_applied.store(self.clock.index(), Ordering::Relaxed);
        // If the instance was lost in this turn, these entries are applied again.
        if self.instance.is_some() {
            self.shared.events.note(self.clock.index(), outcome);
        }
    }

    /// Applies an entry that the primary has applied. A different outcome means that the state
    /// machine is not a function of the log.
    fn apply(
        &mut self,
        context: EntryContext,
        call: Option<&Call>,
        expected: Option<OutcomeHash>,
    ) -> Result<(), End> {
        let Some(instance) = &mut self.instance else {
            // The instance was lost in this turn. The entry source returns the entry again.
            return Ok(());
        };
        instance.mute(true);
        let result = instance.run(context, call);
        instance.mute(false);
        self.shared
            .counters
            .standby_memory_bytes
            .store(instance.memory_bytes() as u64, Ordering::Relaxed);
        let index = context.index;
        match result {
            Ok(outcome)
                if expected.is_none_or(|expected| OutcomeHash::of(&outcome) == expected) =>
            {
                self.publish(Some(outcome));
                Ok(())
            }
            Ok(_) => Err(self.diverged(index, "answered otherwise").into()),
            // A snapshot that is being read keeps data that entries overwrite, which costs memory and
            // fuel that the primary does not need. Without snapshots the entry gets a second try.
            Err(Broken::Trap(Trap {
                kind: TrapKind::MemoryExhausted | TrapKind::FuelExhausted,
                message,
            })) if !self.streams.is_empty() => {
                tracing::warn!(
                    index,
                    message,
                    "an entry exhausted the standby while a snapshot was read from it: the snapshot is \
                     lost, and a new standby is built"
                );
                self.streams.clear();
                self.instance = None;
                Ok(())
            }
            // The heap differs from the primary's after queries and snapshots. A new standby has had none.
            Err(Broken::Trap(Trap {
                kind: TrapKind::MemoryExhausted | TrapKind::FuelExhausted,
                message,
            })) => Err(FatalError::new(format!(
                "entry {index} exhausted the standby and not the primary ({message}): such entries are near a limit"
            ))
            .into()),
            Err(Broken::Trap(trap)) => {
                Err(self.diverged(index, &format!("trapped ({})", trap.message)).into())
            }
            Err(broken) => Err(end_of(broken, &format!("applying entry {index} on the standby"))),
        }
    }

    /// Gives the instance to the primary, which has lost its own.
    fn promote(&mut self, promotion: Promotion) -> Result<(), End> {
        // Snapshots would hold their memory for as long as the primary lives.
        self.close_all()?;
        match self.instance.take() {
            Some(mut instance) => {
                instance.set_role("primary");
                // First, so that no caller that got the trap's outcome finds a standby that is gone.
                self.begin_absence();
                // If the primary no longer waits, it is ending.
                let _ = promotion.reply.send(instance);
                // Writes continue meanwhile.
                drop(promotion.broken);
            }
            // The instance trapped while a snapshot was released. The next one is promoted.
            None => self.shared.inbox.lock().promotion = Some(promotion),
        }
        Ok(())
    }
}

impl Drop for Standby {
    /// Fails all waiting requests, however the thread ends.
    fn drop(&mut self) {
        let mut queue = self.shared.inbox.lock();
        queue.ended = true;
        let fatal_error = self.shared.status.fatal_error().cloned();
        let why = || fatal_error.clone().map_or(QueryError::Stopped, QueryError::Fatal);
        let questions: Vec<Question> = queue.ready.drain(..).collect();
        for question in questions.into_iter().chain(std::mem::take(&mut queue.waiting)) {
            question.ask.fail(why());
        }
        for request in std::mem::take(&mut queue.snapshots) {
            let _ = request.reply.send(Err(self.shared.status.snapshot_end()));
        }
        for request in std::mem::take(&mut queue.reads) {
            let _ = request.reply.send(Err(self.shared.status.snapshot_end()));
        }
        queue.promotion = None;
        queue.finished.clear();
        queue.finished_bytes = 0;
        drop(queue);
        self.shared.inbox.wake_all();
    }
}
