//! openraft's state machine: hands committed entries to the machine, and snapshots both ways.
//!
//! The machine lives in memory. After a restart openraft installs the newest snapshot and applies the
//! log again up to the committed index that was saved.
//!
//! A snapshot from a leader arrives here restored: both instances have accepted its state before openraft
//! is told of it ([`snapshot::accept`]), so a turn of openraft's is no longer than a hand-over, and a
//! snapshot that the machine refuses replaces nothing. Its file becomes the newest one on disk when the
//! head has applied all entries before it: until then an instance that is rebuilt must not skip the
//! entries that are still on their way to the head.

mod agreement;
mod building;

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::{
    OptionalSend,
    storage::{ApplyResponder, EntryResponder, RaftStateMachine},
};
use tokio::{sync::oneshot, task::spawn_blocking};

use self::agreement::Repair;
pub(super) use self::building::{Building, FinishedSnapshot};
use super::{
    components::{Components, part_to_wire},
    divergence::Divergence,
    limits::LimitsInForce,
    snapshot::{self, Accepted, OpenSnapshot, SnapshotData, Transfers},
    time::Time,
};
use crate::registry::Registry;
use conclave_machine as machine;
use conclave_machine::{BatchItem, Component, Done, Restored, Work, Worker};
use conclave_storage::{
    Identity, LogStore, SnapshotFile, SnapshotStore,
    raft_types::{LogId, Payload, SnapshotMeta, StoredMembership, TypeConfig},
};
use conclave_types as types;
use conclave_types::{
    Command, CommandKind, ComponentId, ConsistencyCheck, Outcome, Reply,
    components::{Activation, ComponentCommand, ComponentPart},
    limits::LimitsChange,
};

/// Entries handed to the machine at once. One hand-over costs two thread switches, so a few hundred
/// make it negligible; more would only delay the first answers.
const BATCH_ENTRIES_MAX: usize = 256;

/// What has been applied: handed to the machine, and done by the host itself.
#[derive(Clone, Debug)]
pub(super) struct HostState {
    /// How far, and who the members are.
    pub(super) meta: SnapshotMeta,
    /// What the log says of components, up to there.
    pub(super) registry: Registry,
    /// The limits that hold there.
    pub(super) limits: LimitsInForce,
}

/// openraft's view of the machine.
pub(super) struct StateMachine {
    worker: Worker,
    log: LogStore,
    snapshots: SnapshotStore,
    identity: Identity,
    components: Arc<Components>,
    applied: Arc<Mutex<HostState>>,
    building: Arc<Building>,
    divergence: Arc<Divergence>,
    time: Arc<Time>,
    /// The limits of this node's configuration.
    configured: LimitsChange,
    transfers: Arc<Transfers>,
    /// Applies entries although the machine is in quarantine: they follow on a healthy state.
    replays: bool,
    /// A healthy state that has yet to reach the entry that openraft takes the machine to stand at.
    repair: Option<Repair>,
}

/// What becomes of an entry.
enum Step {
    /// The machine's work, or nothing but that its index has passed.
    Work(BatchItem),
    /// Another component may go on from here. What comes next has to wait for it.
    Activate(PendingActivation),
    /// The machine's digest is compared with the majority's.
    Compare(PendingEntry, ConsistencyCheck),
    /// The machine's state is hashed.
    Verify(PendingEntry),
}

/// An entry that the host deals with at its place among the machine's, and who waits for it.
struct PendingEntry {
    index: u64,
    time_ms: u64,
    responder: Option<Responder>,
}

struct PendingActivation {
    log_id: LogId,
    time_ms: u64,
    activation: Activation,
    responder: Option<Responder>,
}

type Responder = ApplyResponder<TypeConfig>;

impl StateMachine {
    /// With nothing applied.
    #[allow(clippy::too_many_arguments, reason = "the parts of a node, put together in one place")]
    pub(super) fn new(
        worker: Worker,
        log: LogStore,
        snapshots: SnapshotStore,
        identity: Identity,
        components: Arc<Components>,
        building: Arc<Building>,
        divergence: Arc<Divergence>,
        time: Arc<Time>,
        configured: LimitsChange,
    ) -> Self {
        let applied = HostState {
            meta: SnapshotMeta::default(),
            registry: components.begin(),
            limits: LimitsInForce::default(),
        };
        let applied = Arc::new(Mutex::new(applied));
        Self {
            worker,
            log,
            snapshots,
            identity,
            components,
            applied,
            building,
            divergence,
            time,
            configured,
            transfers: Arc::default(),
            replays: false,
            repair: None,
        }
    }

    /// What has been applied, also for those who only look.
    pub(super) fn shared(&self) -> Arc<Mutex<HostState>> {
        self.applied.clone()
    }

    /// The snapshots that are being sent.
    pub(super) fn transfers(&self) -> Arc<Transfers> {
        self.transfers.clone()
    }

    fn applied(&self) -> MutexGuard<'_, HostState> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what the host itself does of an entry and turns the rest into work for the machine.
    fn prepare(&self, (entry, responder): EntryResponder<TypeConfig>) -> Step {
        let (log_id, index) = (entry.log_id, entry.log_id.index);
        let mut applied = self.applied();
        let (outcome, work) = match entry.payload {
            Payload::Blank => (None, None),
            Payload::Membership(membership) => {
                let stored = StoredMembership::new(Some(log_id), membership);
                applied.meta.last_membership = stored;
                (None, None)
            }
            Payload::Normal(Command { time_ms, kind }) => {
                self.time.observe(time_ms);
                match kind {
                    CommandKind::Call(call) => {
                        if applied.limits.index == 0 {
                            applied.limits.note_call(index);
                            self.note_limits(&applied.limits);
                        }
                        (None, Some((time_ms, Work::Call(call))))
                    }
                    CommandKind::SetLimits(limits) => {
                        applied.limits = LimitsInForce { limits, index };
                        self.note_limits(&applied.limits);
                        (None, Some((time_ms, Work::SetLimits(limits))))
                    }
                    CommandKind::Tick | CommandKind::SetTime => (None, Some((time_ms, Work::Tick))),
                    CommandKind::Component(ComponentCommand::Part(part)) => {
                        (Some(self.part(&mut applied.registry, index, &part)), None)
                    }
                    CommandKind::Component(ComponentCommand::Activate(activation)) => {
                        return Step::Activate(PendingActivation {
                            log_id,
                            time_ms,
                            activation,
                            responder,
                        });
                    }
                    CommandKind::ConsistencyCheck(consistency_check) => {
                        applied.meta.last_log_id = Some(log_id);
                        let pending = PendingEntry { index, time_ms, responder };
                        return Step::Compare(pending, consistency_check);
                    }
                    CommandKind::Verify => {
                        applied.meta.last_log_id = Some(log_id);
                        return Step::Verify(PendingEntry { index, time_ms, responder });
                    }
                }
            }
        };
        applied.meta.last_log_id = Some(log_id);
        drop(applied);
        Step::Work(match work {
            Some((time_ms, work)) => {
                let done = responder.map(|responder| -> Done {
                    Box::new(move |outcome| {
                        responder.send(types::Receipt { index, outcome: Some(outcome) });
                    })
                });
                (index, Some(machine::Entry { index, time_ms, work }), done)
            }
            None => {
                if let Some(responder) = responder {
                    responder.send(types::Receipt { index, outcome });
                }
                (index, None, None)
            }
        })
    }

    /// Says under which limits the state machine works from here on, and that they are not those of the
    /// configuration.
    fn note_limits(&self, in_force: &LimitsInForce) {
        let LimitsInForce { limits, index } = in_force;
        tracing::info!(index, limits = ?limits.by_name(), "the cluster's limits");
        if let Some(difference) = in_force.difference(&self.configured) {
            tracing::warn!("{difference}");
        }
    }

    fn part(&self, registry: &mut Registry, index: u64, part: &ComponentPart) -> Outcome {
        match registry.apply_part(index, part) {
            Ok(applied) => {
                if applied.whole {
                    self.components.changed.notify_waiters();
                }
                Outcome::Reply(Reply { response: part_to_wire(applied), ..Reply::default() })
            }
            Err(failure) => Outcome::Failure(failure),
        }
    }

    /// Applies entries that follow on each other, or passes them over.
    async fn run(
        &self,
        entries: impl IntoIterator<Item = io::Result<EntryResponder<TypeConfig>>>,
    ) -> io::Result<()> {
        let mut work = Vec::with_capacity(BATCH_ENTRIES_MAX);
        for item in entries {
            let item = item?;
            if self.divergence.is_stopped() && !self.replays {
                self.pass_over(item);
                continue;
            }
            let step = self.prepare(item);
            if let Step::Work(item) = step {
                work.push(item);
                continue;
            }
            self.hand_over(std::mem::take(&mut work)).await?;
            match step {
                Step::Work(_) => {}
                Step::Activate(pending) => self.activate(pending).await?,
                Step::Compare(pending, consistency_check) => {
                    self.compare(pending, consistency_check).await?
                }
                Step::Verify(pending) => self.verify(pending).await?,
            }
        }
        self.hand_over(work).await
    }

    /// An entry may be committed by the others' disks. Whoever is answered by this node, or reads from it,
    /// may count on its own as well.
    async fn hand_over(&self, work: Vec<BatchItem>) -> io::Result<()> {
        if let Some((index, ..)) = work.last() {
            self.log.synced(*index).await?;
        }
        self.worker.apply(work).await.map_err(io::Error::other)
    }

    /// The log counts as applied up to the activation only once it is known what came of it: a snapshot of
    /// that index is of the one component or the other.
    async fn activate(&self, pending: PendingActivation) -> io::Result<()> {
        let PendingActivation { log_id, time_ms, activation, responder } = pending;
        let index = log_id.index;
        let found = {
            let applied = self.applied();
            let voters = applied.meta.last_membership.membership().voter_ids().collect();
            applied.registry.check(&activation, &voters).map(|known| known.bytes.clone())
        };
        let component = activation.component;
        let outcome = match found {
            Err(failure) => {
                self.hand_over(vec![(index, None, None)]).await?;
                Outcome::Failure(failure)
            }
            Ok(bytes) => {
                let compiled = self.compiled(component, bytes).await?;
                self.components.note_activation(index, compiled.clone());
                let entry = machine::Entry { index, time_ms, work: Work::Activate(compiled) };
                let (done, outcome) = oneshot::channel();
                let done: Done = Box::new(move |outcome| {
                    // Who waits for it is this function.
                    let _ = done.send(outcome);
                });
                self.hand_over(vec![(index, Some(entry), Some(done))]).await?;
                outcome.await.map_err(|_| {
                    let why =
                        self.worker.fatal_error().unwrap_or_else(|| "it shuts down".to_owned());
                    io::Error::other(format!("the machine stopped over an activation: {why}"))
                })?
            }
        };
        {
            let mut applied = self.applied();
            applied.meta.last_log_id = Some(log_id);
            if matches!(outcome, Outcome::Reply(_)) {
                applied.registry.activate(index, component);
            }
        }
        match &outcome {
            Outcome::Reply(_) => tracing::info!(index, %component, "a component is active"),
            Outcome::Failure(failure) => tracing::warn!(index, %component, why = failure.message),
            Outcome::Trap(trap) => tracing::warn!(index, %component, why = trap.message),
        }
        if let Some(responder) = responder {
            responder.send(types::Receipt { index, outcome: Some(outcome) });
        }
        self.components.changed.notify_waiters();
        Ok(())
    }

    /// Every voter had compiled it when the activation was proposed, so that it does not compile here is this
    /// node's own fault. One that was restarted since compiles it now, and applies nothing meanwhile.
    async fn compiled(&self, id: ComponentId, bytes: Bytes) -> io::Result<Component> {
        let components = self.components.clone();
        let compiling = spawn_blocking(move || components.compile(id, &bytes));
        compiling.await.map_err(io::Error::other)?.map_err(|error| {
            io::Error::other(format!(
                "component {id}, which the cluster has activated, cannot be run here: {error}; start this \
                 node with the version of Conclave that the others have"
            ))
        })
    }

    /// Continues from an accepted snapshot, whose file becomes the newest on disk. No longer than what the
    /// head still has to apply.
    async fn adopt(&self, file: SnapshotFile, state: Restored) -> io::Result<()> {
        let snapshots = self.snapshots.clone();
        let commit = move || snapshots.install(&file).map(drop).map_err(io::Error::other);
        self.worker.adopt(state, commit).await.map_err(io::Error::other)
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = FinishedSnapshot;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let applied = self.applied();
        Ok((applied.meta.last_log_id, applied.meta.last_membership.clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut batches = entries.ready_chunks(BATCH_ENTRIES_MAX);
        while let Some(batch) = batches.next().await {
            self.run(batch).await?;
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<FinishedSnapshot> {
        if force {
            return Some(self.get_snapshot_builder().await);
        }
        if self.divergence.is_stopped() || self.divergence.holds_snapshots() {
            return None;
        }
        match self.building.take_or_begin() {
            Ok(file) => Some(FinishedSnapshot(Some(file), self.snapshots.clone())),
            Err(begin) => {
                if begin {
                    self.build();
                }
                None
            }
        }
    }

    async fn get_snapshot_builder(&mut self) -> FinishedSnapshot {
        FinishedSnapshot(None, self.snapshots.clone())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        data: SnapshotData,
    ) -> io::Result<()> {
        let SnapshotData { file, accepted } = data;
        let header = snapshot::header(&file)?;
        snapshot::check_header(&header, &self.identity).map_err(io::Error::other)?;
        let limits = LimitsInForce::read(&header).map_err(io::Error::other)?;
        let Accepted { state, registry } = match accepted {
            Some(accepted) => *accepted,
            // At a start it is this node's own newest one.
            None => snapshot::accept(&file, &self.worker, &self.components).await?,
        };
        self.adopt(file, state).await?;
        self.repair = None;
        let index = meta.last_log_id.map_or(0, |log_id| log_id.index);
        *self.applied() = HostState { meta: meta.clone(), registry, limits };
        self.note_limits(&limits);
        self.divergence.restored(snapshot::origin(&header), index);
        self.time.observe(header.time_ms);
        // At a start it is this node's own, from before it was found to have diverged.
        if self.divergence.quarantine().is_some_and(|quarantine| index >= quarantine.at) {
            self.divergence.resume();
            self.divergence.repaired(index);
        }
        self.components.changed.notify_waiters();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<OpenSnapshot>> {
        let purged = self.log.extent().purged.map_or(0, |log_id| log_id.index);
        // A follower that has a part of it continues with it, if the log after it is still there.
        let resumable = self.transfers.resumable().filter(|file| file.index() >= purged);
        if let Some(file) = resumable {
            return snapshot::opened(file).map(Some);
        }
        let snapshots = self.snapshots.clone();
        let latest = spawn_blocking(move || snapshots.latest()).await.map_err(io::Error::other)?;
        let file = match (latest, self.snapshots.known()) {
            // For openraft an error here ends the node, which has a healthy state and builds a new snapshot.
            (Err(error), Some(known)) => {
                self.transfers.damaged(&known, &error);
                Some(known)
            }
            (latest, _) => latest.map_err(io::Error::other)?,
        };
        file.map(snapshot::opened).transpose()
    }
}
