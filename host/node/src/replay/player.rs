//! Applies the log up to a requested index.
//!
//! Entries are handled as in `raft/state_machine.rs`, but there is no proposer to answer and no
//! disk to wait for.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use tokio::{sync::oneshot, task::spawn_blocking};

use super::{
    entry_source::ReplayEntrySource,
    error::Error,
    seen::{Kind, Seen},
    source::{Begun, Source, Start},
};
use conclave_machine as machine;
use conclave_machine::{Answered, BatchItem, Component, Done, FatalError, Work, Worker};
use conclave_raft::{registry::Registry, skipped_entries};
use conclave_storage::{
    Extent,
    raft_types::{Entry, Payload},
};
use conclave_types::{
    Call, Command, CommandKind, NodeId, Outcome, Reply,
    components::{Activation, ComponentCommand, ComponentPart},
};

/// Maximum size of the entries read and applied together. All of them and their outcomes are in memory.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Maximum number of these entries, so that callers get results soon.
const BATCH_ENTRIES_MAX: u64 = 4096;

/// A replay. Dropping it ends its threads.
pub struct Player {
    entry_source: Arc<ReplayEntrySource>,
    worker: Worker,
    registry: Registry,
    voters: BTreeSet<NodeId>,
    /// The active component.
    component: Component,
    /// The last applied index.
    index: u64,
    /// The next index to read.
    next: u64,
}

impl Drop for Player {
    /// Stops reading the log, which may be removed next.
    fn drop(&mut self) {
        self.worker.shutdown();
    }
}

/// Entries to be applied to the state machine.
#[derive(Default)]
struct Batch {
    items: Vec<BatchItem>,
    waiting: Vec<(Seen, Option<oneshot::Receiver<Outcome>>)>,
}

impl Player {
    /// Begins at `start`, with the component that was active then, or with `other` in place of
    /// every component in the log.
    ///
    /// # Errors
    /// The state cannot be read or restored, or the other component does not accept it.
    pub async fn start(
        source: &Source,
        start: Start,
        other: Option<Component>,
    ) -> Result<Self, Error> {
        let Begun { mut saved, registry, voters, component } = source.begin(&start)?;
        if let (Some(saved), Some(other)) = (&mut saved, &other) {
            let description = other.description();
            if !description.restores.contains(&saved.state_version) {
                return Err(Error::StateVersion {
                    index: saved.index,
                    found: saved.state_version,
                    name: description.name.clone(),
                    restores: description.restores.clone(),
                });
            }
            saved.component = other.clone();
        }
        let component = other.clone().unwrap_or(component);
        let index = start.index();
        let next = match &start {
            // The first entry has index 0 and is not applied to the state machine. An empty log has
            // nothing to read.
            Start::InitialComponent => match source.parts.log.extent() {
                Extent { last: Some(_), first, .. } => first,
                Extent { last: None, .. } => 1,
            },
            Start::Snapshot(_) => index + 1,
        };
        let initial = other.clone().unwrap_or_else(|| source.parts.initial_component.clone());
        let entry_source = Arc::new(ReplayEntrySource {
            log: source.parts.log.clone(),
            components: source.parts.components.clone(),
            start,
            other,
            // Only skipped entries are known in advance. Other traps happen again.
            traps: Mutex::new(skipped_entries(&source.parts.log)?),
            trap_report: Mutex::new(BTreeMap::new()),
        });
        let (seed, of_worker) = (source.parts.seed, entry_source.clone());
        let worker =
            spawn_blocking(move || Worker::start(initial, seed, of_worker, saved, Arc::default()))
                .await;
        let worker = worker?.map_err(|fatal_error| Error::Fatal { index, fatal_error })?;
        Ok(Self { entry_source, worker, registry, voters, component, index, next })
    }

    /// Returns the last applied index.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Returns the active component.
    pub fn component(&self) -> &Component {
        &self.component
    }

    /// Applies some of the next entries up to `to`, and returns them with their outcomes. Empty if
    /// there are no more.
    ///
    /// # Errors
    /// The log cannot be read, or the state machine stops with a fatal error, as it would on a node.
    pub async fn advance(&mut self, to: u64) -> Result<Vec<Seen>, Error> {
        if self.next > to {
            return Ok(Vec::new());
        }
        let end = to.min(self.next.saturating_add(BATCH_ENTRIES_MAX - 1));
        let entries = self.entry_source.log.entries(self.next..end + 1, BATCH_BYTES_MAX)?;
        if entries.first().is_none_or(|first| first.log_id.index != self.next) {
            return Err(Error::Gap(self.next));
        }
        let mut seen = Vec::with_capacity(entries.len());
        let mut batch = Batch::default();
        for entry in entries {
            self.next = entry.log_id.index + 1;
            match self.prepare(entry, &mut batch) {
                None => {}
                Some((pending, activation)) => {
                    self.flush(&mut batch, &mut seen).await?;
                    self.activate(pending, activation, &mut batch).await?;
                    self.flush(&mut batch, &mut seen).await?;
                    self.component = self.worker.component();
                }
            }
        }
        self.flush(&mut batch, &mut seen).await?;
        Ok(seen)
    }

    /// Queries the state machine in its state after the last applied entry.
    ///
    /// # Errors
    /// The query failed. A failure returned by the state machine is a result.
    pub async fn query(&self, call: Call) -> Result<Answered, Error> {
        Ok(self.worker.query(call, self.index).await?)
    }

    /// Adds an entry to the batch. Returns an activation instead, since later entries have to wait for it.
    fn prepare(&mut self, entry: Entry, batch: &mut Batch) -> Option<(Seen, Activation)> {
        let (index, term) = (entry.log_id.index, entry.log_id.leader_id.term);
        let component = self.component.clone();
        let seen = |kind, time_ms, outcome| Seen {
            index,
            term,
            kind,
            time_ms,
            component,
            outcome,
            trap_report: None,
        };
        match entry.payload {
            Payload::Blank => batch.pass(seen(Kind::Blank, None, None)),
            Payload::Membership(membership) => {
                self.voters = membership.voter_ids().collect();
                let voters = self.voters.iter().copied().collect();
                batch.pass(seen(Kind::Membership { voters }, None, None));
            }
            Payload::Normal(Command { time_ms, kind }) => {
                let time = Some(time_ms);
                match kind {
                    CommandKind::Call(call) => {
                        let seen = seen(Kind::Call(call.clone()), time, None);
                        batch.work(seen, time_ms, Work::Call(call));
                    }
                    CommandKind::Tick => {
                        batch.work(seen(Kind::Tick, time, None), time_ms, Work::Tick)
                    }
                    CommandKind::SetTime => {
                        batch.work(seen(Kind::SetTime, time, None), time_ms, Work::Tick)
                    }
                    CommandKind::SetLimits(limits) => {
                        let seen = seen(Kind::SetLimits(limits), time, None);
                        batch.work(seen, time_ms, Work::SetLimits(limits));
                    }
                    CommandKind::Component(ComponentCommand::Part(part)) => {
                        let outcome = self.part(index, &part);
                        batch.pass(seen(kind_of(&part), time, Some(outcome)));
                    }
                    CommandKind::Component(ComponentCommand::Activate(activation)) => {
                        let kind = Kind::Activation { component: activation.component };
                        return Some((seen(kind, time, None), activation));
                    }
                    CommandKind::ConsistencyCheck(_) => {
                        batch.pass(seen(Kind::ConsistencyCheck, time, None))
                    }
                    CommandKind::Verify => batch.pass(seen(Kind::Verify, time, None)),
                }
            }
        }
        None
    }

    fn part(&mut self, index: u64, part: &ComponentPart) -> Outcome {
        match self.registry.apply_part(index, part) {
            Ok(_) => Outcome::Reply(Reply::default()),
            Err(failure) => Outcome::Failure(failure),
        }
    }

    /// Adds an activation to the empty batch, and records a failed one.
    async fn activate(
        &mut self,
        mut pending: Seen,
        activation: Activation,
        batch: &mut Batch,
    ) -> Result<(), Error> {
        if self.entry_source.other.is_some() {
            batch.pass(pending);
            return Ok(());
        }
        let (index, id) = (pending.index, activation.component);
        let bytes = match self.registry.check(&activation, &self.voters) {
            Ok(known) => known.bytes.clone(),
            Err(failure) => {
                pending.outcome = Some(Outcome::Failure(failure));
                batch.pass(pending);
                return Ok(());
            }
        };
        let components = self.entry_source.components.clone();
        let compiled = spawn_blocking(move || components.compile(id, &bytes)).await?;
        let component = compiled.map_err(|source| Error::Component {
            index,
            component: id.to_string(),
            source,
        })?;
        self.entry_source.components.note_activation(index, component.clone());
        let time_ms = pending.time_ms.unwrap_or_default();
        batch.work(pending, time_ms, Work::Activate(component));
        Ok(())
    }

    /// Applies the batch, and waits for its outcomes.
    async fn flush(&mut self, batch: &mut Batch, seen: &mut Vec<Seen>) -> Result<(), Error> {
        let Batch { items, waiting } = std::mem::take(batch);
        let stopped = |index, fatal_error: Option<FatalError>, worker: &Worker| {
            let why = || worker.fatal_error().unwrap_or_else(|| "it shut down".to_owned());
            Error::Fatal {
                index,
                fatal_error: fatal_error.unwrap_or_else(|| FatalError::new(why())),
            }
        };
        if let Err(fatal_error) = self.worker.apply(items).await {
            return Err(stopped(self.index, Some(fatal_error), &self.worker));
        }
        for (mut one, outcome) in waiting {
            if let Some(outcome) = outcome {
                let outcome = outcome.await.map_err(|_| stopped(self.index, None, &self.worker))?;
                one.trap_report = self.entry_source.take_trap_report(one.index);
                if let (Kind::Activation { component }, Outcome::Reply(_)) = (&one.kind, &outcome) {
                    self.registry.activate(one.index, *component);
                }
                one.outcome = Some(outcome);
            }
            self.index = one.index;
            seen.push(one);
        }
        Ok(())
    }
}

fn kind_of(part: &ComponentPart) -> Kind {
    Kind::ComponentPart {
        component: part.component,
        at: part.at,
        bytes: part.bytes.len() as u64,
        total_bytes: part.total_bytes,
    }
}

impl Batch {
    /// Adds an entry that only advances the state machine's index.
    fn pass(&mut self, seen: Seen) {
        self.items.push((seen.index, None, None));
        self.waiting.push((seen, None));
    }

    fn work(&mut self, seen: Seen, time_ms: u64, work: Work) {
        let index = seen.index;
        let (sender, outcome) = oneshot::channel();
        let done: Done = Box::new(move |outcome| {
            // The caller may have stopped waiting.
            let _ = sender.send(outcome);
        });
        self.items.push((index, Some(machine::Entry { index, time_ms, work }), Some(done)));
        self.waiting.push((seen, Some(outcome)));
    }
}
