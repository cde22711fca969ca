//! The replica: openraft, connected to the log on disk, the state machine and the peers.
//!
//! [`Replica`] is the interface for the layers above. Below it, [`state_machine`] applies committed
//! entries, [`read`] serves linearizable reads, [`snapshot`] and [`network`] exchange data with the
//! peers, [`divergence`] finds and repairs diverged replicas, and [`components`] upgrades them.
//!
//! Contract: a command is answered only after a majority has it on stable storage and the state
//! machine has applied it, here or on the leader. A linearizable query on any node observes every
//! command that was acknowledged before the query was sent.
//!
//! Caveats: without exactly-once sessions (Raft thesis, section 6.3), a command that is sent again
//! after a lost response is applied again; see [`Error::is_unknown_outcome`]. Members are fixed.

mod boot_time;
mod bootstrap;
mod command;
mod components;
mod confirmation;
mod disk;
mod divergence;
mod entry_source;
mod forward;
#[doc(hidden)]
pub mod fuzz;
mod health;
mod host_state;
mod leadership;
mod lease;
mod limits;
pub mod network;
mod options;
mod read;
mod recover;
pub mod registry;
pub mod settings;
mod snapshot;
mod state_machine;
mod status;
pub mod supervise;
mod ticks;
mod time;
pub mod timing;
mod trap_limiter;
mod vote_holdoff;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize},
    },
    thread,
    time::{Duration, Instant},
};

use openraft::{RaftLogReader, async_runtime::WatchReceiver};
use tokio::sync::{oneshot, watch};

pub use self::read::watch_ended;
pub use self::{
    components::{Components, KeptCode},
    entry_source::LocalEntrySource,
    options::Options,
    recover::{NotRecovered, Replaced, Skipped, replace_component, skip_entry, skipped_entries},
    snapshot::{saved_state, voters},
};
use self::{
    confirmation::Confirmation,
    disk::DiskWatch,
    divergence::Divergence,
    host_state::HostState,
    leadership::Leadership,
    lease::Lease,
    network::{
        NetworkFactory, OwnReplica, heartbeats,
        local::{self, Local},
        peers::Peers,
        service::PeerService,
        standing::Standing,
    },
    read::{ReadIndex, ReadRequests},
    settings::{Limits, Member as InitialMember, SnapshotPolicy},
    snapshot::{Admission, Receiving, Transfers},
    state_machine::{Building, Raft, StateMachine},
    supervise::Supervisor,
    time::Time,
    timing::Timing,
    trap_limiter::TrapLimiter,
    vote_holdoff::VoteHoldoff,
};
use conclave_machine::{Component, Worker};
use conclave_proto::raft::raft_server::RaftServer;
use conclave_storage::{
    LogStore, SnapshotStore,
    raft_types::{Member, TypeConfig},
};
use conclave_types::{
    NodeId,
    error::Error,
    status::{ClockStatus, Health, Leader, NotServing},
};

/// The time that a stop waits for entries that are being applied.
const STATE_MACHINE_TIME_MAX: Duration = Duration::from_secs(1);

/// One node's part of the cluster. A clone is another handle to the same node.
#[derive(Clone)]
pub struct Replica(Arc<Inner>);

struct Inner {
    raft: Raft,
    worker: Worker,
    components: Arc<Components>,
    applied: Arc<Mutex<HostState>>,
    entry_source: Arc<LocalEntrySource>,
    local: Arc<Local>,
    peers: Arc<Peers>,
    log: LogStore,
    disk: DiskWatch,
    snapshots: SnapshotStore,
    building: Arc<Building>,
    transfers: Arc<Transfers>,
    receiving: Receiving,
    admission: Admission,
    divergence: Arc<Divergence>,
    time: Arc<Time>,
    members: Vec<InitialMember>,
    timing: Timing,
    limits: Limits,
    /// Set once the log has limits, or once this node has no limits to put there.
    limits_settled: AtomicBool,
    /// Held while limits are changed: one change at a time.
    limits_turn: Arc<tokio::sync::Mutex<()>>,
    reads: ReadIndex,
    confirmation: Confirmation,
    lease: Arc<Lease>,
    hold: VoteHoldoff,
    leadership: Leadership,
    supervisor: Supervisor,
    health: watch::Sender<Health>,
    leader_heard: Mutex<Instant>,
    commands_in_flight: Arc<AtomicUsize>,
    command_limiter: Arc<TrapLimiter>,
    query_limiter: TrapLimiter,
}

impl Replica {
    /// Restores the state machine from the newest snapshot and the log, and joins the cluster.
    /// Requests are served only once the peer service listens.
    #[allow(clippy::too_many_lines, reason = "the parts of a replica, one per line")]
    pub async fn start(options: Options) -> Result<Self, Error> {
        let Options { identity, timing, limits, snapshot, members, log, snapshots, .. } = options;
        let disk = DiskWatch::new(log.clone(), timing.election_max);
        let supervisor = Supervisor::default();
        let building = Arc::new(Building::new(supervisor.clone()));
        let consistency_checks = options.consistency_check_interval;
        let unreadable = |error| Error::fatal("cannot start from the log").with_source(error);
        let vote = log.clone().read_vote().await.map_err(unreadable)?;
        let standing =
            Standing::new(vote, snapshot::last_log_id(&log, &snapshots).map_err(unreadable)?);
        let local =
            Local::open(identity, options.engine, timing, standing, log.clone(), disk.clone());
        let local = Arc::new(local.map_err(unreadable)?);
        let peers = Arc::new(Peers::new(local.clone(), supervisor.clone()));
        let divergence =
            Divergence::open(log.clone(), local.identity.node_id, consistency_checks.is_some())
                .map_err(unreadable)?;
        let divergence = Arc::new(divergence);
        let time = Arc::new(Time::new(local.identity.node_id));
        let machine = StateMachine::new(
            options.worker.clone(),
            log.clone(),
            snapshots.clone(),
            local.identity.clone(),
            options.components.clone(),
            building.clone(),
            divergence.clone(),
            time.clone(),
            limits.cluster,
        );
        let (applied, transfers) = (machine.shared(), machine.transfers());
        let longest = vote_holdoff::longest_lease(&log, timing.lease()).map_err(unreadable)?;
        let hold = VoteHoldoff::new(vote, local.identity.node_id, longest);
        let own_replica = OwnReplica::default();
        let lease = Arc::new(Lease::new(timing.lease_used()));
        let raft = openraft::Raft::new(
            local.identity.node_id,
            options::raft_config(&local.identity.cluster_id, timing, snapshot)?,
            NetworkFactory {
                peers: peers.clone(),
                lease: lease.clone(),
                transfers: transfers.clone(),
                replica: own_replica.clone(),
            },
            log.clone(),
            machine,
        )
        .await
        .map_err(|error| Error::fatal("cannot start from the log").with_source(error))?;

        let (reads, read_requests) = ReadIndex::new();
        let (health, _) = watch::channel(Health::NotServing(NotServing::Starting));
        let replica = Self(Arc::new(Inner {
            raft,
            worker: options.worker,
            components: options.components,
            applied,
            entry_source: options.entry_source.clone(),
            local,
            peers,
            log,
            disk,
            snapshots,
            building,
            transfers: transfers.clone(),
            receiving: Receiving::default(),
            admission: Admission::default(),
            divergence,
            time,
            members,
            timing,
            limits,
            limits_settled: AtomicBool::new(false),
            limits_turn: Arc::default(),
            reads,
            confirmation: Confirmation::new(supervisor.clone()),
            lease,
            hold,
            leadership: Leadership::new(),
            supervisor,
            health,
            leader_heard: Mutex::new(Instant::now()),
            commands_in_flight: Arc::default(),
            command_limiter: Arc::default(),
            query_limiter: TrapLimiter::default(),
        }));
        let _ = own_replica.set(Arc::downgrade(&replica.0));
        replica.0.connect_to_members();
        replica.run_tasks(
            read_requests,
            snapshot,
            options.entry_source,
            consistency_checks,
            transfers,
        );
        Ok(replica)
    }

    /// Starts the background tasks. A panic in one is a fatal error of the node.
    fn run_tasks(
        &self,
        reads: ReadRequests,
        snapshot: SnapshotPolicy,
        entry_source: Arc<LocalEntrySource>,
        consistency_checks: Option<Duration>,
        transfers: Arc<Transfers>,
    ) {
        let weak = || Arc::downgrade(&self.0);
        let tasks = &self.0.supervisor;
        tasks.spawn("heartbeats", heartbeats::run(weak()));
        let local = Arc::downgrade(&self.0.local);
        tasks.spawn("acknowledgements", local::write_acknowledged(local));
        tasks.spawn("read rounds", read::serve(weak(), reads));
        tasks.spawn("vote hold-off", vote_holdoff::release(weak()));
        tasks.spawn("leadership", leadership::run(weak()));
        tasks.spawn("health", health::watch(weak()));
        tasks.spawn("snapshot offers", snapshot::hand_over(weak()));
        tasks.spawn("damaged snapshots", snapshot::replace_damaged(weak(), transfers));
        tasks.spawn("kept log", snapshot::keep_log(weak(), snapshot));
        tasks.spawn("snapshot policy", snapshot::watch_growth(weak(), snapshot, entry_source));
        tasks.spawn("clocks", time::run(weak()));
        tasks.spawn("ticks", ticks::run(weak(), self.0.worker.wake_at()));
        if let Some(interval) = consistency_checks {
            tasks.spawn("consistency checks", divergence::run_consistency_checks(weak(), interval));
        }
        tasks.spawn("repair", divergence::run_repair(weak()));
        tasks.spawn("components", components::run(weak()));
        tasks.spawn("bootstrap", bootstrap::run(self.clone()));
        tasks.spawn("panics", watch_panics(weak()));
    }

    /// Waits for a fatal error of this node: a panic in a task, in Raft's core or on a worker thread.
    pub async fn failed(&self) -> Error {
        Error::fatal(self.0.supervisor.failed().await)
    }

    /// Returns the supervisor of this node's background tasks.
    pub fn supervisor(&self) -> &Supervisor {
        &self.0.supervisor
    }

    /// Returns for how long the disk has hung, if it does, and the number of leadership transfers.
    pub fn fitness(&self) -> (Duration, u64) {
        (self.0.disk.hung_for().unwrap_or_default(), self.0.transfers())
    }

    /// Returns the number of entries that this node knows to be committed but has not applied.
    pub fn lag(&self) -> u64 {
        let (committed, applied) = self.0.progress();
        committed.saturating_sub(applied)
    }

    /// Returns how many components this node compiled, and how many it loaded as kept code.
    pub fn compilations(&self) -> [u64; 2] {
        self.0.components.compilations()
    }

    /// Returns the size of the entries in the log, in bytes.
    pub fn log_live_bytes(&self) -> u64 {
        self.0.log.live_bytes()
    }

    /// Returns the service for the peer port.
    pub fn peer_service(&self) -> RaftServer<PeerService> {
        RaftServer::new(PeerService::new(self.clone(), self.0.local.clone()))
            .max_decoding_message_size(network::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(network::MESSAGE_BYTES_MAX)
    }

    /// Returns the component that this node runs, and its changes.
    pub fn machine(&self) -> watch::Receiver<Component> {
        self.0.worker.components()
    }

    /// Returns the state machine's worker, for its counters.
    pub fn worker(&self) -> &Worker {
        &self.0.worker
    }

    /// Returns the counters of [`divergence`], and whether this node is in quarantine.
    pub fn agreement(&self) -> ([u64; 5], bool) {
        (self.0.divergence.counted(), self.0.divergence.quarantine().is_some())
    }

    /// Returns this node's clock compared with the members' clocks.
    pub fn clock(&self) -> ClockStatus {
        self.0.time.status()
    }

    /// Returns whether this node serves, and its changes.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.0.health.subscribe()
    }

    /// Returns the leader known here; `None` on a leader without a majority or with a hung disk.
    pub fn leader(&self) -> Option<Leader> {
        let (node_id, member) = self.0.leader()?;
        if node_id == self.0.node_id() && !self.0.leads() {
            return None;
        }
        Some(Leader { node_id, client_address: Arc::from(member.client_address) })
    }

    /// Leaves the cluster. Everything that was acknowledged is on disk already.
    pub async fn shutdown(&self) {
        self.0.set_stopping();
        self.close_peers();
        self.0.components.stop();
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::warn!(%error, "Raft did not stop cleanly");
        }
        // openraft's state machine task outlives its core until it has finished its work.
        let until = Instant::now() + STATE_MACHINE_TIME_MAX;
        while Arc::strong_count(&self.0.applied) > 1 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.0.peers.stop();
        if let Err(error) = self.0.local.write_acknowledged() {
            tracing::warn!(%error, "cannot write the acknowledgements of the peers");
        }
        // Both wait for threads, which may wait for a disk that hangs.
        let (worker, log) = (self.0.worker.clone(), self.0.log.clone());
        let (done, stopped) = oneshot::channel::<()>();
        let stop = move || {
            worker.shutdown();
            log.shutdown();
            drop(done);
        };
        match thread::Builder::new().name("stop".to_owned()).spawn(stop) {
            Ok(_) => drop(stopped.await),
            Err(error) => tracing::warn!(%error, "cannot start the stop thread"),
        }
    }

    fn hear_leader(&self) {
        self.0.hear_leader();
    }

    fn raft(&self) -> &Raft {
        &self.0.raft
    }

    /// Returns once this node may grant votes.
    async fn votes_freely(&self) {
        self.0.hold.over().await;
        self.0.peers.settled().await;
    }

    fn log(&self) -> &LogStore {
        &self.0.log
    }

    fn peers(&self) -> &Peers {
        &self.0.peers
    }

    /// Returns whether the node is a member, or is configured as an initial member.
    fn is_member(&self, node_id: NodeId) -> bool {
        let metrics = self.0.raft.metrics();
        let known = metrics.borrow_watched().membership_config.get_node(&node_id).is_some();
        known || self.0.members.iter().any(|member| member.node_id == node_id)
    }

    async fn is_initialized(&self) -> bool {
        // In a separate task: openraft logs an error if the response of its core is not awaited.
        let raft = self.0.raft.clone();
        let asked = tokio::spawn(async move { raft.is_initialized().await.unwrap_or(true) });
        asked.await.unwrap_or(true)
    }
}

impl Inner {
    fn node_id(&self) -> NodeId {
        self.local.identity.node_id
    }

    /// Starts connecting to every other member, so that each learns at once of this node's start.
    fn connect_to_members(&self) {
        let mut members: BTreeMap<NodeId, Member> = bootstrap::initial_members(&self.members);
        {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let nodes = metrics.membership_config.nodes();
            members.extend(nodes.map(|(node_id, member)| (*node_id, member.clone())));
        }
        members.remove(&self.node_id());
        for (node_id, member) in &members {
            self.peers.peer(*node_id, member);
        }
    }

    fn hear_leader(&self) {
        *self.leader_heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn leader_silence(&self) -> Duration {
        self.leader_heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn applied(&self) -> MutexGuard<'_, HostState> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether this node leads and its disk is not hung.
    fn is_leader(&self) -> bool {
        self.raft.is_leader() && !self.disk.is_hung()
    }

    fn leader(&self) -> Option<(NodeId, Member)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let node_id = metrics.current_leader?;
        let member = metrics.membership_config.get_node(&node_id)?;
        Some((node_id, member.clone()))
    }
}

/// Reports panics outside the supervised tasks, until the first one or until the replica is gone.
async fn watch_panics(replica: Weak<Inner>) {
    let Some(inner) = replica.upgrade() else { return };
    let (mut metrics, mut storage) = (inner.raft.server_metrics(), inner.log.panicked());
    let mut machine = inner.worker.panicked();
    drop(inner);
    let reason = tokio::select! {
        // The sender is dropped with Raft's core.
        () = async { while metrics.changed().await.is_ok() {} } => {
            let Some(inner) = replica.upgrade() else { return };
            if inner.is_stopping() {
                return;
            }
            match inner.raft.with_raft_state(|_| ()).await {
                Err(fatal @ openraft::error::Fatal::Panicked) => format!("Raft's core: {fatal}"),
                // Raft was shut down, or the store failed, which health and status report.
                _ => return,
            }
        }
        reason = first(&mut storage) => reason,
        reason = first(&mut machine) => reason,
    };
    if let Some(inner) = replica.upgrade() {
        inner.supervisor.report(reason);
    }
}

async fn first(panicked: &mut watch::Receiver<Option<String>>) -> String {
    match panicked.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
        Ok(Some(reason)) => reason,
        _ => std::future::pending().await,
    }
}
