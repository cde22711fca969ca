//! openraft's state machine: feeds committed entries to the worker, and saves and installs snapshots.
//!
//! The state lives in memory. After a restart openraft installs the newest snapshot and applies the
//! log again up to the saved commit index.
//!
//! A snapshot from a leader is restored before it arrives here: both instances have accepted
//! its state before openraft receives it ([`snapshot::accept`]). So openraft's task waits only
//! while work is fed to the worker, and a snapshot that the state machine rejects replaces
//! nothing. Its file becomes the newest on disk only after the primary has applied all entries
//! before it. Until then, an instance that is rebuilt must not skip the entries that are still
//! queued for the primary.

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
    divergence::{Divergence, StateHashes},
    host_state::HostState,
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

/// The maximum number of entries that are fed to the worker at once. Each batch costs
/// two thread switches, and a few hundred entries make that negligible. More would only
/// delay the first responses.
const BATCH_ENTRIES_MAX: usize = 256;

/// The state machine as openraft sees it.
pub(super) struct StateMachine {
    worker: Worker,
    log: LogStore,
    snapshots: SnapshotStore,
    identity: Identity,
    components: Arc<Components>,
    applied: Arc<Mutex<HostState>>,
    building: Arc<Building>,
    divergence: Arc<Divergence>,
    state_hashes: Arc<StateHashes>,
    time: Arc<Time>,
    /// The limits in this node's configuration.
    configured: LimitsChange,
    transfers: Arc<Transfers>,
    /// Apply entries although the replica is in quarantine, because they follow a healthy state.
    replays: bool,
    /// A healthy state that has not yet reached the position that openraft assumes for the state machine.
    repair: Option<Repair>,
}

/// The type of openraft's handle.
pub(super) type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// The way in which an entry is applied.
enum Step {
    /// Work for the worker. An entry without work only advances the applied index.
    Work(BatchItem),
    /// Activate another component. Later entries wait for the outcome.
    Activate(PendingActivation),
    /// Compare the digest with the majority's.
    Compare(PendingEntry, ConsistencyCheck),
    /// Hash the state.
    Verify(PendingEntry),
}

/// An entry that the host applies itself, in order with the worker's entries, and its proposer.
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
    /// Creates a state machine that has applied nothing.
    #[allow(clippy::too_many_arguments, reason = "the parts of a node, put together in one place")]
    pub(super) fn new(
        worker: Worker,
        log: LogStore,
        snapshots: SnapshotStore,
        identity: Identity,
        components: Arc<Components>,
        building: Arc<Building>,
        divergence: Arc<Divergence>,
        state_hashes: Arc<StateHashes>,
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
            state_hashes,
            time,
            configured,
            transfers: Arc::default(),
            replays: false,
            repair: None,
        }
    }

    /// Returns the replicated host state, shared with the readers.
    pub(super) fn shared(&self) -> Arc<Mutex<HostState>> {
        self.applied.clone()
    }

    /// Returns the snapshots that are being sent.
    pub(super) fn transfers(&self) -> Arc<Transfers> {
        self.transfers.clone()
    }

    fn applied(&self) -> MutexGuard<'_, HostState> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies the host's part of an entry and returns the rest as work for the worker.
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

    /// Logs the limits that are in force from here on, and warns if the configuration differs from them.
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
                    self.components.note_change();
                }
                Outcome::Reply(Reply { response: part_to_wire(applied), ..Reply::default() })
            }
            Err(failure) => Outcome::Failure(failure),
        }
    }

    /// Applies consecutive entries, or skips them while the replica is in quarantine.
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

    /// Feeds entries to the worker once they are on this node's own disk. The other nodes'
    /// disks may have committed an entry earlier, but a client of this node must be able
    /// to rely on this disk too.
    async fn hand_over(&self, work: Vec<BatchItem>) -> io::Result<()> {
        if let Some((index, ..)) = work.last() {
            self.log.synced(*index).await?;
        }
        self.worker.apply(work).await.map_err(io::Error::other)
    }

    /// Activates a component. The applied index advances only once the outcome is known, because a
    /// snapshot at that index belongs to either the old or the new component.
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
                    // The receiver is in this function, and stops waiting only if the worker ends.
                    let _ = done.send(outcome);
                });
                self.hand_over(vec![(index, Some(entry), Some(done))]).await?;
                outcome.await.map_err(|_| {
                    let why = self
                        .worker
                        .fatal_error()
                        .unwrap_or_else(|| "it is shutting down".to_owned());
                    io::Error::other(format!(
                        "the state machine stopped during an activation: {why}"
                    ))
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
        self.components.note_change();
        Ok(())
    }

    /// Compiles a component that the cluster has activated. Every voter had compiled it when the
    /// activation was proposed, so a failure here is a fault of this node. A node that was
    /// restarted since compiles it now, and applies nothing meanwhile.
    async fn compiled(&self, id: ComponentId, bytes: Bytes) -> io::Result<Component> {
        let components = self.components.clone();
        let compiling = spawn_blocking(move || components.compile(id, &bytes));
        compiling.await.map_err(io::Error::other)?.map_err(|error| {
            io::Error::other(format!(
                "component {id}, which the cluster has activated, cannot run on this node: {error}; start this \
                 node with the version of Conclave that the others have"
            ))
        })
    }

    /// Continues from an accepted snapshot, whose file becomes the newest on disk. Takes as long as
    /// the primary needs for the entries that are still queued.
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
            // At a start the snapshot is this node's own newest one, which is not restored yet.
            None => snapshot::accept(&file, &self.worker, &self.components).await?,
        };
        self.adopt(file, state).await?;
        self.repair = None;
        let index = meta.last_log_id.map_or(0, |log_id| log_id.index);
        *self.applied() = HostState { meta: meta.clone(), registry, limits };
        self.note_limits(&limits);
        self.divergence.restored(snapshot::origin(&header), index);
        self.time.observe(header.time_ms);
        // At a start the snapshot is this node's own, and may be older than the divergence.
        if self.divergence.quarantine().is_some_and(|quarantine| index >= quarantine.at) {
            self.divergence.resume();
            self.divergence.repaired(index);
        }
        self.components.note_change();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<OpenSnapshot>> {
        let purged = self.log.extent().purged.map_or(0, |log_id| log_id.index);
        // A follower that has a part of this snapshot can resume, if the log still
        // holds the entries after it.
        let resumable = self.transfers.resumable().filter(|file| file.index() >= purged);
        if let Some(file) = resumable {
            return snapshot::opened(file).map(Some);
        }
        let snapshots = self.snapshots.clone();
        let latest = spawn_blocking(move || snapshots.latest()).await.map_err(io::Error::other)?;
        let file = match (latest, self.snapshots.known()) {
            // openraft stops the node on an error here. This node has a healthy state and builds
            // a new snapshot instead.
            (Err(error), Some(known)) => {
                self.transfers.damaged(&known, &error);
                Some(known)
            }
            (latest, _) => latest.map_err(io::Error::other)?,
        };
        file.map(snapshot::opened).transpose()
    }
}
