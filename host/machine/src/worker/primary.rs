//! The primary: the thread that applies committed entries, in the order of the log.

mod activation;
mod queries;

use std::sync::{
    Arc,
    atomic::Ordering,
    mpsc::{RecvTimeoutError, sync_channel},
};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::{
    BatchItem,
    digest::{Digests, OutcomeHash},
    inbox::{Finished, Prepared, Promotion, Step},
    job::{Commit, Job},
    restored::Restored,
    shared::Shared,
    status::End,
};
use crate::{
    clock::Clock,
    component::Component,
    entry_context::EntryContext,
    entry_source::{Entry, Work},
    error::FatalError,
    instance::Instance,
    trap::Broken,
};
use conclave_types::{Call, Digest, Outcome, Reply, Trap, limits::ClusterLimits};

/// The number of finished entries after which they are fed to the standby, so that both threads
/// work in parallel.
const HANDOVER_COUNT: usize = 64;
/// The size of finished entries after which they are fed to the standby.
const HANDOVER_BYTES: usize = 1 << 20;

pub(super) struct Primary {
    shared: Arc<Shared>,
    /// `None` only between a trap and the promotion of the standby.
    instance: Option<Instance>,
    /// The component of the instance.
    component: Component,
    clock: Clock,
    digests: Digests,
    /// Requests for the digest at an index that the primary may not have reached yet.
    asked: Vec<(u64, oneshot::Sender<Option<Digest>>)>,
    finished: Vec<Finished>,
    finished_bytes: usize,
}

impl Primary {
    pub(super) fn new(shared: Arc<Shared>, prepared: Prepared, digests: Digests) -> Self {
        let Prepared { instance, component, clock } = prepared;
        let (instance, finished) = (Some(instance), Vec::new());
        let asked = Vec::new();
        Self { shared, instance, component, clock, digests, asked, finished, finished_bytes: 0 }
    }

    pub(super) fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        // Whether queries are left. If so, the thread must not block on the next job.
        let mut queries_left = false;
        loop {
            let job = if queries_left {
                match jobs.try_recv() {
                    Ok(job) => job,
                    Err(mpsc::error::TryRecvError::Empty) => Job::AnswerQueries,
                    Err(mpsc::error::TryRecvError::Disconnected) => return,
                }
            } else {
                let Some(job) = jobs.blocking_recv() else { return };
                job
            };
            let done = self.shared.status.check().and_then(|()| self.carry_out(job));
            match done.and_then(|()| self.answer_queries()) {
                Ok(more) => queries_left = more,
                Err(End::Stopped) => return,
                Err(End::Fatal(fatal_error)) => return self.shared.fail(fatal_error),
            }
        }
    }

    fn carry_out(&mut self, job: Job) -> Result<(), End> {
        match job {
            Job::Apply { batch, _room } => return self.apply_batch(batch),
            Job::Adopt { restored, commit, reply } => {
                // The caller may have given up.
                let _ = reply.send(self.adopt(*restored, commit));
            }
            Job::Digest { index, reply } => {
                self.asked.retain(|(_, reply)| !reply.is_closed());
                self.asked.push((index, reply));
                self.answer_digests();
            }
            Job::BeginDigest { index, digest } => {
                self.digests = Digests::new(index, digest);
                self.shared.keeps_digest.store(true, Ordering::Release);
            }
            Job::AnswerQueries | Job::Stop => {}
        }
        Ok(())
    }

    fn apply_batch(&mut self, batch: Vec<BatchItem>) -> Result<(), End> {
        for (index, entry, done) in batch {
            self.shared.status.check()?;
            let after = self.clock.index();
            if index < after || (index == after && index > 0) {
                return Err(FatalError::new(format!(
                    "entry {index} reached the state machine after entry {after}"
                ))
                .into());
            }
            let (step, outcome, hash) = match entry {
                None => {
                    self.clock.skip_to(index);
                    (Step::Skip { time_ms: self.clock.time_ms() }, None, None)
                }
                Some(entry) => {
                    let activated = match &entry.work {
                        Work::Activate(component) => Some(component.id()),
                        Work::Call(_) | Work::Tick | Work::SetLimits(_) => None,
                    };
                    let (step, outcome) = self.apply_entry(entry)?;
                    let hash = match activated {
                        Some(component) => OutcomeHash::of_activation(
                            component,
                            matches!(outcome, Outcome::Reply(_)),
                        ),
                        None => OutcomeHash::of(&outcome),
                    };
                    (step, Some(outcome), Some(hash))
                }
            };
            if let Some(hash) = hash {
                self.digests.push(index, hash);
            }
            let finished = Finished { after, index, step, outcome: hash };
            self.finished_bytes += finished.bytes();
            self.finished.push(finished);
            self.shared.applied.store(index, Ordering::Release);
            if !self.asked.is_empty() {
                self.answer_digests();
            }
            if let (Some(outcome), Some(done)) = (outcome, done) {
                done(outcome);
            }
            if self.finished.len() >= HANDOVER_COUNT || self.finished_bytes >= HANDOVER_BYTES {
                self.hand_over()?;
                self.answer_queries()?;
            }
        }
        self.hand_over()?;
        if let Some(instance) = &self.instance {
            self.shared
                .counters
                .primary_memory_bytes
                .store(instance.memory_bytes() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn apply_entry(&mut self, entry: Entry) -> Result<(Step, Outcome), End> {
        let Entry { index, time_ms, work } = entry;
        let before = self.clock.clone();
        let context = self.clock.advance(index, time_ms);
        match work {
            Work::Call(call) => self.apply_call(&before, context, Some(call)),
            Work::Tick => self.apply_call(&before, context, None),
            Work::Activate(component) => self.activate(&before, context, component),
            Work::SetLimits(limits) => self.set_limits(context, limits),
        }
    }

    /// Sets the limits that apply from the next entry on. The state machine does not see the entry.
    fn set_limits(
        &mut self,
        context: EntryContext,
        limits: ClusterLimits,
    ) -> Result<(Step, Outcome), End> {
        let Some(instance) = &mut self.instance else {
            return Err(FatalError::new("the primary has no instance").into());
        };
        instance.set_cluster_limits(limits);
        let outcome = Outcome::Reply(Reply { response: limits.to_bytes(), ..Reply::default() });
        Ok((Step::SetLimits { context, limits }, outcome))
    }

    /// Applies a call, or a tick if `call` is `None`.
    fn apply_call(
        &mut self,
        before: &Clock,
        context: EntryContext,
        call: Option<Call>,
    ) -> Result<(Step, Outcome), End> {
        let index = context.index;
        let trap = match self.shared.entry_source.trapped(index) {
            Some(trap) => {
                self.shared.counters.traps_replayed.fetch_add(1, Ordering::Relaxed);
                trap
            }
            None => {
                let Some(instance) = &mut self.instance else {
                    return Err(FatalError::new("the primary has no instance").into());
                };
                // Discards an error line of earlier calls, so that it does not appear in this
                // call's trap report.
                instance.take_error();
                let result = instance.run(context, call.as_ref());
                self.shared.counters.fuel.fetch_add(instance.fuel_used(), Ordering::Relaxed);
                match result {
                    Ok(outcome) => {
                        self.shared.counters.outcome(&outcome);
                        self.shared.note_wake_up(&outcome);
                        return Ok((Step::Apply { context, call }, outcome));
                    }
                    Err(Broken::Interrupted) => return Err(End::Stopped),
                    Err(Broken::Fatal(fatal_error)) => {
                        return Err(FatalError::new(format!(
                            "applying entry {index}: {fatal_error}"
                        ))
                        .into());
                    }
                    Err(Broken::Trap(trap)) => {
                        if let Some(call) = &call {
                            self.shared.absence.note_trapped(&call.method);
                        }
                        self.roll_back(before, index, &trap)?;
                        trap
                    }
                }
            }
        };
        let outcome = Outcome::Trap(trap);
        self.shared.counters.outcome(&outcome);
        Ok((Step::Skip { time_ms: context.time_ms }, outcome))
    }

    /// Rolls back entry `index`, which trapped: continues with the standby's instance, in its state
    /// after the previous entry.
    fn roll_back(&mut self, before: &Clock, index: u64, trap: &Trap) -> Result<(), End> {
        tracing::warn!(
            index,
            kind = trap.kind.name(),
            message = trap.message,
            "an entry trapped and is rolled back"
        );
        if let Some(instance) = &mut self.instance {
            self.shared.entry_source.record_trap_report(index, instance.trap_report());
        }
        self.shared.entry_source.record_trap(index, trap);
        self.hand_over()?;
        self.promote(before.index())
    }

    /// Replaces the instance, which trapped, by the standby's, in its state after `index`.
    fn promote(&mut self, index: u64) -> Result<(), End> {
        let (reply, promoted) = sync_channel(1);
        {
            let mut queue = self.shared.inbox.lock();
            if queue.ended {
                return Err(self.ended());
            }
            queue.promotion = Some(Promotion { index, reply, broken: self.instance.take() });
            self.shared.inbox.wake_standby(&mut queue);
            queue.assert_invariants();
        }
        // The standby either answers or ends, which drops the request with the queue.
        let instance = loop {
            match promoted.recv_timeout(Duration::from_millis(100)) {
                Ok(instance) => break instance,
                Err(RecvTimeoutError::Timeout) => self.shared.status.check()?,
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended()),
            }
        };
        self.instance = Some(instance);
        self.shared.counters.promotions.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Feeds the finished entries to the standby. Waits for room, unless the standby is catching up.
    fn hand_over(&mut self) -> Result<(), End> {
        if self.finished.is_empty() {
            return Ok(());
        }
        let bytes_max = self.shared.engine.limits().queue_bytes_max;
        let inbox = &self.shared.inbox;
        let mut queue = inbox.lock();
        while !queue.catching_up && queue.finished_bytes > bytes_max && !queue.ended {
            self.shared.status.check()?;
            inbox.wake_standby(&mut queue);
            queue = inbox.wait_for_room(queue);
        }
        if queue.ended {
            drop(queue);
            return Err(self.ended());
        }
        queue.push(&mut self.finished, self.finished_bytes, bytes_max);
        self.finished_bytes = 0;
        self.shared
            .counters
            .standby_queue_bytes
            .store(queue.finished_bytes as u64, Ordering::Relaxed);
        inbox.wake_for_entries(&mut queue, self.shared.events.is_watched());
        Ok(())
    }

    /// Answers the requests for digests that the primary has reached.
    fn answer_digests(&mut self) {
        let reached = self.clock.index();
        for (index, reply) in self.asked.extract_if(.., |(index, _)| *index <= reached) {
            // The caller may have given up.
            let _ = reply.send(self.digests.at(index));
        }
    }

    /// Replaces both instances, or neither. `commit` makes the state the one from which a rebuild
    /// begins. It runs here, so that a rebuild does not skip earlier entries that are still queued.
    fn adopt(&mut self, restored: Restored, commit: Commit) -> Result<(), FatalError> {
        let Restored { primary, standby, component, clock, digest } = restored;
        let (index, applied) = (clock.index(), self.clock.index());
        let digests = Digests::of(index, digest);
        if index < applied {
            return Err(FatalError::new(format!(
                "the state at index {index} is older than the state machine's state at index {applied}"
            )));
        }
        commit().map_err(|error| {
            FatalError::new(format!("the state at index {index} cannot be installed: {error}"))
        })?;
        let mut queue = self.shared.inbox.lock();
        if queue.ended {
            return Err(self.shared.status.end());
        }
        let (standby_component, standby_clock) = (component.clone(), clock.clone());
        queue.adopt(Prepared {
            instance: standby,
            component: standby_component,
            clock: standby_clock,
        });
        self.shared.inbox.wake_standby(&mut queue);
        drop(queue);
        self.instance = Some(primary);
        self.become_of(component);
        self.clock = clock;
        self.shared.keeps_digest.store(digests.is_kept(), Ordering::Release);
        self.digests = digests;
        self.shared.applied.store(index, Ordering::Release);
        self.answer_digests();
        self.shared.wake_at.send_replace(Some(0));
        self.shared.counters.restores.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Sets the component of the instance and publishes it.
    fn become_of(&mut self, component: Component) {
        self.component = component;
        self.shared.active.send_if_modified(|active| {
            std::mem::replace(active, self.component.clone()) != self.component
        });
    }

    fn ended(&self) -> End {
        match self.shared.status.check() {
            Err(end) => end,
            Ok(()) => FatalError::new("the standby has ended").into(),
        }
    }
}
