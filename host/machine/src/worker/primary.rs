//! The primary: the thread that applies committed entries, in the order of the log.

mod activation;
mod queries;

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{RecvTimeoutError, sync_channel},
    },
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use self::queries::Queries;
use super::{
    BatchItem,
    digest::{Digests, OutcomeHash},
    inbox::Wait,
    job::{Commit, Job},
    queue::NotQueued,
    requests::{Finished, Prepared, Promotion, Step},
    restored::Restored,
    shared::Shared,
};
use crate::{
    clock::Clock,
    component::Component,
    entry_context::EntryContext,
    entry_source::{Entry, Work},
    error::{Broken, Ended, FatalError},
    instance::Instance,
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
    digest_requests: Vec<(u64, oneshot::Sender<Option<Digest>>)>,
    finished: Vec<Finished>,
    finished_bytes: usize,
}

impl Primary {
    pub(super) fn new(shared: Arc<Shared>, prepared: Prepared, digests: Digests) -> Self {
        let Prepared { instance, component, clock } = prepared;
        let (instance, finished) = (Some(instance), Vec::new());
        let digest_requests = Vec::new();
        Self {
            shared,
            instance,
            component,
            clock,
            digests,
            digest_requests,
            finished,
            finished_bytes: 0,
        }
    }

    pub(super) fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut queries = Queries::Done;
        loop {
            let job = match queries {
                Queries::Done => jobs.blocking_recv(),
                Queries::Left => match jobs.try_recv() {
                    Ok(job) => Some(job),
                    Err(mpsc::error::TryRecvError::Empty) => Some(Job::AnswerQueries),
                    Err(mpsc::error::TryRecvError::Disconnected) => None,
                },
            };
            let Some(job) = job else { return };
            let done = self.shared.status.check().and_then(|()| self.carry_out(job));
            match done.and_then(|()| self.answer_queries()) {
                Ok(left) => queries = left,
                Err(Ended::Stopped) => return,
                Err(Ended::Fatal(fatal_error)) => return self.shared.fail(fatal_error),
            }
        }
    }

    fn carry_out(&mut self, job: Job) -> Result<(), Ended> {
        match job {
            Job::Apply { batch, _room } => return self.apply_batch(batch),
            Job::Adopt { restored, commit, reply } => {
                // The caller may have given up.
                let _ = reply.send(self.adopt(*restored, commit));
            }
            Job::Digest { index, reply } => {
                self.digest_requests.retain(|(_, reply)| !reply.is_closed());
                self.digest_requests.push((index, reply));
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

    fn apply_batch(&mut self, batch: Vec<BatchItem>) -> Result<(), Ended> {
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
            if !self.digest_requests.is_empty() {
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
            self.shared.metrics.primary_memory_bytes.set(instance.memory_bytes() as i64);
        }
        Ok(())
    }

    fn apply_entry(&mut self, entry: Entry) -> Result<(Step, Outcome), Ended> {
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
    ) -> Result<(Step, Outcome), Ended> {
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
    ) -> Result<(Step, Outcome), Ended> {
        let index = context.index;
        let trap = match self.shared.entry_source.trapped(index) {
            Some(trap) => {
                self.shared.metrics.traps_replayed.inc();
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
                self.shared.metrics.fuel.inc_by(instance.fuel_used());
                match result {
                    Ok(outcome) => {
                        self.shared.metrics.outcome(&outcome);
                        self.shared.note_wake_up(&outcome);
                        return Ok((Step::Apply { context, call }, outcome));
                    }
                    Err(broken @ Broken::Ended(_)) => {
                        return Err(broken.ended(&format!("applying entry {index}")));
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
        self.shared.metrics.outcome(&outcome);
        Ok((Step::Skip { time_ms: context.time_ms }, outcome))
    }

    /// Rolls back entry `index`, which trapped: continues with the standby's instance, in its state
    /// after the previous entry.
    fn roll_back(&mut self, before: &Clock, index: u64, trap: &Trap) -> Result<(), Ended> {
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
    fn promote(&mut self, index: u64) -> Result<(), Ended> {
        let (reply, promoted) = sync_channel(1);
        let promotion = Promotion { index, reply, broken: self.instance.take() };
        let requested = self.shared.inbox.with(|queue| queue.request_promotion(promotion));
        requested.map_err(|_| self.ended())?;
        // The standby either answers or ends, which drops the request with the queue.
        let instance = loop {
            match promoted.recv_timeout(Duration::from_millis(100)) {
                Ok(instance) => break instance,
                Err(RecvTimeoutError::Timeout) => self.shared.status.check()?,
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended()),
            }
        };
        self.instance = Some(instance);
        self.shared.metrics.promotions.inc();
        Ok(())
    }

    /// Feeds the finished entries to the standby. Waits for room, unless the standby is catching up.
    fn hand_over(&mut self) -> Result<(), Ended> {
        if self.finished.is_empty() {
            return Ok(());
        }
        let bytes_max = self.shared.engine.limits().queue_bytes_max;
        let bytes = std::mem::take(&mut self.finished_bytes);
        let shared = Arc::clone(&self.shared);
        let pushed = shared.inbox.until(|queue| {
            let is_watched = shared.events.is_watched();
            match queue.push(&mut self.finished, bytes, bytes_max, is_watched) {
                Err(NotQueued::Full) => match shared.status.check() {
                    Ok(()) => ControlFlow::Continue(Wait::ForRoom),
                    Err(end) => ControlFlow::Break(Err(end)),
                },
                pushed => {
                    let bytes = queue.finished_bytes() as i64;
                    shared.metrics.standby_queue_bytes.set(bytes);
                    ControlFlow::Break(Ok(pushed))
                }
            }
        });
        pushed?.map_err(|_| self.ended())
    }

    /// Answers the requests for digests that the primary has reached.
    fn answer_digests(&mut self) {
        let reached = self.clock.index();
        for (index, reply) in self.digest_requests.extract_if(.., |(index, _)| *index <= reached) {
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
            FatalError::caused_by(format!("the state at index {index} cannot be installed"), error)
        })?;
        let standby =
            Prepared { instance: standby, component: component.clone(), clock: clock.clone() };
        let adopted = self.shared.inbox.with(|queue| queue.adopt(index, standby));
        adopted.map_err(|_| self.shared.status.end())?;
        self.instance = Some(primary);
        self.become_of(component);
        self.clock = clock;
        self.shared.keeps_digest.store(digests.is_kept(), Ordering::Release);
        self.digests = digests;
        self.shared.applied.store(index, Ordering::Release);
        self.answer_digests();
        self.shared.wake_at.send_replace(Some(0));
        self.shared.metrics.restores.inc();
        Ok(())
    }

    /// Sets the component of the instance and publishes it.
    fn become_of(&mut self, component: Component) {
        self.component = component;
        self.shared.active.send_if_modified(|active| {
            std::mem::replace(active, self.component.clone()) != self.component
        });
    }

    fn ended(&self) -> Ended {
        match self.shared.status.check() {
            Err(end) => end,
            Ok(()) => FatalError::new("the standby has ended").into(),
        }
    }
}
