//! The replica: openraft, bound to the log on disk, the machine and the peers.
//!
//! [`Replica`] is what the layers above see: commands, queries, status, health. Below it:
//! [`state_machine`] hands committed entries to the machine, [`snapshot`] moves snapshots,
//! [`network`] speaks with the peers, [`read`] finds out how far a linearizable read must wait, by
//! [`confirmation`] or [`lease`],
//! [`health`] watches, [`ticks`] wakes the machine, [`bootstrap`] initializes a new cluster, [`hold`] keeps a restarted node from
//! electing too early, [`divergence`] finds and heals a machine that the others disagree with, [`history`] is what the machine is rebuilt from, [`modules`] brings, tries and
//! activates others.
//!
//! Contract: a command is answered only after a majority has it on stable storage and the machine has
//! applied it here or on the leader. A linearizable query sees every command that was acknowledged
//! before it was sent, whichever node answers it.
//!
//! Caveats: without exactly-once sessions a command that is sent again after a lost answer is applied
//! again; [`crate::error::Error::is_unknown_outcome`] tells. Membership does not change after
//! the cluster has been initialized.

mod bootstrap;
mod command;
mod confirmation;
mod divergence;
mod forward;
mod health;
mod history;
mod hold;
mod lease;
mod modules;
pub mod network;
mod options;
mod read;
mod snapshot;
mod state_machine;
mod status;
mod ticks;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use openraft::{RaftLogReader, async_runtime::WatchReceiver};
use tokio::sync::watch;

pub(crate) use self::read::watch_ended;
use self::{
    command::Brake,
    confirmation::Confirmation,
    divergence::Divergence,
    hold::Hold,
    lease::Lease,
    network::{
        NetworkFactory,
        peer::{Local, Peers},
        service::PeerService,
    },
    read::ReadIndex,
    snapshot::{Admission, Raft, Receiving, Transfers},
    state_machine::{Applied, Building, StateMachine},
};
pub use self::{
    history::LocalHistory,
    modules::Modules,
    options::Options,
    snapshot::{saved_state, voters},
};
use crate::{
    config::{Limits, Member as InitialMember, Timing},
    error::Error,
    machine::{Module, Worker},
    proto::raft::raft_server::RaftServer,
    storage::{LogStore, SnapshotStore},
    types::{
        NodeId,
        raft::Member,
        status::{Health, Leader},
    },
};

/// One node's part of the cluster. Cloning it gives another handle to the same.
#[derive(Clone)]
pub struct Replica(Arc<Inner>);

struct Inner {
    raft: Raft,
    worker: Worker,
    modules: Arc<Modules>,
    applied: Arc<Mutex<Applied>>,
    history: Arc<LocalHistory>,
    local: Arc<Local>,
    peers: Arc<Peers>,
    log: LogStore,
    snapshots: SnapshotStore,
    building: Arc<Building>,
    transfers: Arc<Transfers>,
    receiving: Receiving,
    admission: Admission,
    divergence: Arc<Divergence>,
    members: Vec<InitialMember>,
    timing: Timing,
    limits: Limits,
    reads: ReadIndex,
    confirmation: Confirmation,
    lease: Arc<Lease>,
    hold: Hold,
    health: watch::Sender<Health>,
    /// When a leader was last heard of.
    leader_heard: Mutex<Instant>,
    commands_in_flight: AtomicUsize,
    brake: Brake,
}

impl Replica {
    /// Restores the machine from the newest snapshot and the log, and joins the cluster. Nothing is
    /// served until the peer service listens.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let Options { identity, timing, limits, snapshot, members, log, snapshots, .. } = options;
        let local = Arc::new(Local::new(identity, options.engine, log.clone()));
        let peers = Arc::new(Peers::new(local.clone()));
        let building = Arc::<Building>::default();
        let checkpoints = options.checkpoint_interval;
        let unreadable = |error| Error::fault(format!("cannot start from the log: {error}"));
        let divergence =
            Divergence::open(log.clone(), checkpoints.is_some()).map_err(unreadable)?;
        let divergence = Arc::new(divergence);
        let machine = StateMachine::new(
            options.worker.clone(),
            log.clone(),
            snapshots.clone(),
            local.identity.clone(),
            options.modules.clone(),
            building.clone(),
            divergence.clone(),
        );
        let (applied, transfers) = (machine.shared(), machine.transfers());
        let vote = log.clone().read_vote().await.map_err(unreadable)?;
        let hold = Hold::new(vote, local.identity.node_id, options::lease(timing));
        let lease = Arc::new(Lease::new(options::lease(timing)));
        let raft = openraft::Raft::new(
            local.identity.node_id,
            options::raft_config(&local.identity.cluster_id, timing, snapshot, hold.is_over())?,
            NetworkFactory {
                peers: peers.clone(),
                lease: lease.clone(),
                transfers: transfers.clone(),
            },
            log.clone(),
            machine,
        )
        .await
        .map_err(|error| Error::fault(format!("cannot start from the log: {error}")))?;

        let (reads, read_requests) = ReadIndex::new();
        let (health, _) = watch::channel(Health::NotServing("starting".to_owned()));
        let replica = Self(Arc::new(Inner {
            raft,
            worker: options.worker,
            modules: options.modules,
            applied,
            history: options.history.clone(),
            local,
            peers,
            log,
            snapshots,
            building,
            transfers: transfers.clone(),
            receiving: Receiving::default(),
            admission: Admission::default(),
            divergence,
            members,
            timing,
            limits,
            reads,
            confirmation: Confirmation::new(),
            lease,
            hold,
            health,
            leader_heard: Mutex::new(Instant::now()),
            commands_in_flight: AtomicUsize::new(0),
            brake: Brake::default(),
        }));
        tokio::spawn(read::serve(Arc::downgrade(&replica.0), read_requests));
        tokio::spawn(hold::release(Arc::downgrade(&replica.0)));
        tokio::spawn(health::watch(Arc::downgrade(&replica.0)));
        tokio::spawn(snapshot::hand_over(Arc::downgrade(&replica.0)));
        tokio::spawn(snapshot::replace_damaged(Arc::downgrade(&replica.0), transfers));
        tokio::spawn(snapshot::watch_growth(Arc::downgrade(&replica.0), snapshot, options.history));
        tokio::spawn(snapshot::keep_log(Arc::downgrade(&replica.0), snapshot));
        tokio::spawn(ticks::run(Arc::downgrade(&replica.0), replica.0.worker.wish()));
        if let Some(interval) = checkpoints {
            tokio::spawn(divergence::run_checkpoints(Arc::downgrade(&replica.0), interval));
        }
        tokio::spawn(divergence::run_healing(Arc::downgrade(&replica.0)));
        tokio::spawn(modules::run(Arc::downgrade(&replica.0)));
        tokio::spawn(bootstrap::run(replica.clone()));
        Ok(replica)
    }

    /// The service for the peer port.
    pub fn peer_service(&self) -> RaftServer<PeerService> {
        RaftServer::new(PeerService::new(self.clone(), self.0.local.clone()))
            .max_decoding_message_size(network::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(network::MESSAGE_BYTES_MAX)
    }

    /// The machine that this node runs, with every change.
    pub fn machine(&self) -> watch::Receiver<Module> {
        self.0.worker.modules()
    }

    /// The machine's worker, for its counters.
    pub fn worker(&self) -> &Worker {
        &self.0.worker
    }

    /// Checkpoints that were equal, divergences, those that were healed, and digests without a majority,
    /// since this node started; and whether it is in quarantine now.
    pub fn agreement(&self) -> ([u64; 4], bool) {
        (self.0.divergence.counted(), self.0.divergence.quarantine().is_some())
    }

    /// Whether this node serves, with every change.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.0.health.subscribe()
    }

    /// Who leads, as far as this node knows.
    pub fn leader(&self) -> Option<Leader> {
        let (node_id, member) = self.0.leader()?;
        Some(Leader { node_id, client_address: Arc::from(member.client_address) })
    }

    /// Stops taking part. What was acknowledged is on disk already.
    pub async fn shutdown(&self) {
        self.0.health.send_replace(Health::NotServing("shutting down".to_owned()));
        self.0.modules.stop();
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::warn!(%error, "Raft did not stop cleanly");
        }
        self.0.worker.shutdown();
        self.0.log.shutdown();
    }

    fn hear_leader(&self) {
        self.0.hear_leader();
    }

    fn raft(&self) -> &Raft {
        &self.0.raft
    }

    /// Returns once this node may help to elect a leader.
    async fn votes_freely(&self) {
        self.0.hold.over().await;
    }

    /// Whether the node is a member, or is to be one of the first.
    fn is_member(&self, node_id: NodeId) -> bool {
        let metrics = self.0.raft.metrics();
        let known = metrics.borrow_watched().membership_config.get_node(&node_id).is_some();
        known || self.0.members.iter().any(|member| member.node_id == node_id)
    }

    async fn is_initialized(&self) -> bool {
        self.0.raft.is_initialized().await.unwrap_or(true)
    }
}

impl Inner {
    fn node_id(&self) -> NodeId {
        self.local.identity.node_id
    }

    /// Notes that a leader has just been heard of.
    fn hear_leader(&self) {
        *self.leader_heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// For how long no leader has been heard of.
    fn leader_silence(&self) -> Duration {
        self.leader_heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn applied(&self) -> MutexGuard<'_, Applied> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_leader(&self) -> bool {
        self.raft.is_leader()
    }

    fn leader(&self) -> Option<(NodeId, Member)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let node_id = metrics.current_leader?;
        let member = metrics.membership_config.get_node(&node_id)?;
        Some((node_id, member.clone()))
    }
}
