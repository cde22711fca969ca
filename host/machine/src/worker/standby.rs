//! The standby: the thread that follows the primary, answers queries and writes snapshots.
//!
//! The queue decides what the thread does next ([`Next`]). A turn does a little of each kind of work,
//! so that none waits until another is finished: a promotion, snapshots to begin, some entries,
//! queries, one piece of one snapshot.
//!
//! After entries it naps for a few milliseconds, unless there is other work, so that one wake-up of
//! its thread serves several entries. A query, a subscription, a snapshot or a promotion wakes it.

mod absence;
mod activation;
mod questions;
mod streams;

use std::{collections::HashMap, ops::ControlFlow, sync::Arc};

use wasmtime::component::ResourceAny;

use super::{
    digest::OutcomeHash,
    inbox::Wait,
    queue::{Next, Position, Queue, Unanswered},
    requests::{Finished, Prepared, Promotion, Step},
    shared::Shared,
};
use crate::{
    clock::Clock,
    component::Component,
    entry_context::EntryContext,
    entry_source::{Entry, Work},
    error::{Broken, Ended, EntrySourceError, FatalError, QueryError},
    instance::Instance,
};
use conclave_types::{Call, Outcome, Trap, TrapKind, limits::ClusterLimits};

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
    /// The way in which it waits for the next step. After entries it naps, because more may follow soon.
    wait: Wait,
}

/// A snapshot that is being read.
#[derive(Clone, Copy)]
struct OpenStream {
    snapshot: ResourceAny,
    /// The number of bytes read so far.
    bytes: usize,
}

impl Standby {
    pub(super) fn new(shared: Arc<Shared>, prepared: Prepared) -> Self {
        let Prepared { instance, component, clock } = prepared;
        Self {
            shared,
            instance: Some(instance),
            component,
            clock,
            streams: HashMap::new(),
            next_stream: 0,
            gaps: 0,
            wait: Wait::ForWork,
        }
    }

    pub(super) fn run(mut self) {
        let end = loop {
            let done = self.turn().or_else(|end| match end {
                // The primary works without a standby.
                Ended::Fatal(fatal_error) if self.shared.status.fatal_error().is_none() => {
                    self.rest(fatal_error)
                }
                end => Err(end),
            });
            if let Err(end) = done {
                break end;
            }
        };
        if let Ended::Fatal(fatal_error) = end {
            self.shared.fail(fatal_error);
        }
    }

    fn turn(&mut self) -> Result<(), Ended> {
        self.shared.status.check()?;
        if self.instance.is_none() {
            self.shared.inbox.with(Queue::standby_lost);
        }
        match self.next()? {
            Next::Adopt(replacement) => self.adopt(replacement),
            Next::Succeed(successor) => self.succeed(successor),
            Next::Build => self.build()?,
            Next::Promote(promotion, requests) => {
                self.promote(promotion)?;
                let read = self.begin_requests(requests)?;
                self.read(read)?;
            }
            Next::Fail { promotion } => {
                return Err(FatalError::new(format!(
                    "the entry after {promotion} trapped, and the newest snapshot is already at {}: restart the node \
                     to continue from it",
                    self.clock.index()
                ))
                .into());
            }
            Next::CatchUp { to, requests } => {
                let read = self.begin_requests(requests)?;
                self.catch_up(to)?;
                self.read(read)?;
            }
            Next::Follow { entries, questions, requests } => {
                let read = self.begin_requests(requests)?;
                if !entries.is_empty() {
                    self.wait = Wait::Nap;
                }
                for finished in entries {
                    self.follow(finished)?;
                }
                self.answer_some(questions)?;
                self.read(read)?;
            }
            Next::Wait => {}
        }
        Ok(())
    }

    /// Waits until there is a next step.
    fn next(&mut self) -> Result<Next, Ended> {
        let at = Position {
            applied: self.clock.index(),
            has_instance: self.instance.is_some(),
            is_read: !self.streams.is_empty(),
        };
        let shared = Arc::clone(&self.shared);
        // A nap ends the time in which more entries may follow soon.
        let mut take_wait = || std::mem::replace(&mut self.wait, Wait::ForWork);
        let next = shared.inbox.until(|queue| {
            if let Err(end) = shared.status.check() {
                return ControlFlow::Break(Err(end));
            }
            let next = queue.next(at);
            let bytes = queue.finished_bytes() as i64;
            shared.metrics.standby_queue_bytes.set(bytes);
            match next {
                Next::Wait => ControlFlow::Continue(take_wait()),
                next => ControlFlow::Break(Ok(next)),
            }
        });
        self.wait = Wait::ForWork;
        next
    }

    /// Continues from the state that the primary has adopted.
    fn adopt(&mut self, replacement: Prepared) {
        self.streams.clear();
        self.instance = Some(replacement.instance);
        self.component = replacement.component;
        self.clock = replacement.clock;
        self.shared.events.reset(self.clock.index());
        self.shared.absence.replaced();
    }

    /// Builds a new instance from the newest snapshot. The next turns apply the entries after it.
    fn build(&mut self) -> Result<(), Ended> {
        self.streams.clear();
        self.shared.metrics.standby_builds.inc();
        let unreadable = |error| FatalError::caused_by("the standby cannot be rebuilt", error);
        let (instance, component, clock) =
            match self.shared.entry_source.snapshot().map_err(unreadable)? {
                None => {
                    let instance = self
                        .shared
                        .fresh("standby")
                        .map_err(|broken| broken.ended("starting a standby"))?;
                    (instance, self.shared.initial.clone(), self.shared.clock())
                }
                Some(saved) => {
                    let (index, component) = (saved.index, saved.component.clone());
                    match self.shared.restored(["standby"], saved) {
                        Ok(([instance], clock)) => (instance, component, clock),
                        // A newer snapshot replaced it while it was read.
                        Err(Ended::Fatal(error))
                            if matches!(error.cause(), Some(EntrySourceError::Gap(_))) =>
                        {
                            return self.gap(index);
                        }
                        Err(ended) => return Err(ended),
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
    fn gap(&mut self, index: u64) -> Result<(), Ended> {
        self.lose_instance();
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
    fn catch_up(&mut self, to: u64) -> Result<(), Ended> {
        let from = self.clock.index() + 1;
        let entries = match self.shared.entry_source.entries(from, to) {
            Ok(entries) => entries,
            Err(EntrySourceError::Gap(index)) => return self.gap(index),
            Err(error) => {
                return Err(FatalError::caused_by("the standby cannot be rebuilt", error).into());
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
    fn replay(&mut self, context: EntryContext, work: Work) -> Result<(), Ended> {
        let call = match work {
            Work::Call(call) => Some(call),
            Work::Tick => None,
            Work::Activate(component) => {
                let refuses = component.refuses(self.component.state_version()).is_some();
                if refuses || self.shared.entry_source.trapped(context.index).is_some() {
                    return Ok(());
                }
                return self.activate(context.index, component);
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
    fn follow(&mut self, finished: Finished) -> Result<(), Ended> {
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
        self.shared.metrics.standby_applied.set(self.clock.index() as i64);
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
    ) -> Result<(), Ended> {
        let Some(instance) = &mut self.instance else {
            // The instance was lost in this turn. The entry source returns the entry again.
            return Ok(());
        };
        instance.mute(true);
        let result = instance.run(context, call);
        instance.mute(false);
        self.shared.metrics.standby_memory_bytes.set(instance.memory_bytes() as i64);
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
                self.lose_instance();
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
            Err(broken) => Err(broken.ended(&format!("applying entry {index} on the standby"))),
        }
    }

    /// Drops the instance, which has trapped or cannot be brought up to date, with its snapshots.
    fn lose_instance(&mut self) {
        self.instance = None;
        self.streams.clear();
    }

    /// Gives the instance to the primary, which has lost its own.
    fn promote(&mut self, promotion: Promotion) -> Result<(), Ended> {
        // Snapshots would hold their memory for as long as the primary lives.
        self.close_all()?;
        match self.instance.take() {
            Some(mut instance) => {
                instance.set_role("primary");
                // First, so that no caller that got the trap's outcome finds a standby that is gone.
                self.shared.inbox.with(Queue::standby_lost);
                // If the primary no longer waits, it is ending.
                let _ = promotion.reply.send(instance);
                // Writes continue meanwhile.
                drop(promotion.broken);
            }
            // The instance trapped while a snapshot was released. The next one is promoted. The
            // queue ends only with this thread.
            None => _ = self.shared.inbox.with(|queue| queue.request_promotion(promotion)),
        }
        Ok(())
    }
}

impl Drop for Standby {
    /// Fails all waiting requests, however the thread ends.
    fn drop(&mut self) {
        let Unanswered { questions, snapshots, reads } = self.shared.inbox.with(Queue::end);
        let status = &self.shared.status;
        for question in questions {
            question.ask.fail(QueryError::stopped(status.fatal_error()));
        }
        for request in snapshots {
            let _ = request.reply.send(Err(status.snapshot_end()));
        }
        for request in reads {
            let _ = request.reply.send(Err(status.snapshot_end()));
        }
        self.shared.inbox.wake_all();
    }
}
