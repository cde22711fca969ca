//! The assembly of a replica: creates its parts, runs their tasks, and stops them.
//!
//! Each part gets the parts that it uses, so the order of construction shows which part depends on
//! which. No part holds the assembly. The background tasks hold parts, and end with the assembly.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use openraft::{RaftLogReader, async_runtime::WatchReceiver, error::Fatal};
use tokio::sync::{oneshot, watch};

use super::{
    bootstrap::Bootstrap,
    command::Commands,
    components::{Activate, Catalog, Components, Push, Rehearsals},
    disk::DiskWatch,
    divergence::{
        ConsistencyChecks, Digests, Divergence, Giving, Repairs, StateHashChecks, StateHashes,
    },
    fitness::Fitness,
    health::HealthMonitor,
    leadership::Leadership,
    lease::Lease,
    limits_proposer::LimitsProposer,
    network::{
        NetworkFactory, OwnGiving, heartbeats,
        local::{self, Local},
        peers::Peers,
        service::Parts,
        standing::Standing,
    },
    node::Node,
    options::{self, Options},
    propose::Proposer,
    read::Reads,
    read_index::ReadIndex,
    snapshot::{self, Admission, Growth, Receiving, Snapshots, Transfers, backup::Backups},
    state_machine::{Building, StateMachine},
    status::Status,
    supervise::{Supervisor, Tasks},
    ticks::Ticks,
    time::{Clock, Time},
    vote_holdoff::{self, VoteHoldoff},
};
use conclave_types::{
    error::Error,
    status::{Health, NotServing},
};

/// The time that a stop waits for entries that are being applied.
const STATE_MACHINE_TIME_MAX: Duration = Duration::from_secs(1);
/// The interval at which a stop checks whether openraft's state machine task has ended. Polled,
/// because openraft gives no handle to that task.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// The parts of a replica.
pub(super) struct Assembly {
    pub(super) node: Arc<Node>,
    pub(super) components: Arc<Components>,
    pub(super) building: Arc<Building>,
    pub(super) time: Arc<Time>,
    pub(super) health: Arc<HealthMonitor>,
    pub(super) leadership: Arc<Leadership>,
    pub(super) proposer: Arc<Proposer>,
    pub(super) limits: Arc<LimitsProposer>,
    pub(super) commands: Arc<Commands>,
    pub(super) reads: Reads,
    pub(super) snapshots: Arc<Snapshots>,
    pub(super) backups: Backups,
    pub(super) catalog: Arc<Catalog>,
    pub(super) push: Push,
    pub(super) activate: Activate,
    pub(super) status: Arc<Status>,
    pub(super) state_hash_checks: Arc<StateHashChecks>,
    /// Set once the streams of peers end.
    pub(super) closed: watch::Sender<bool>,
    bootstrap: Arc<Bootstrap>,
    hold: Arc<VoteHoldoff>,
    clock: Arc<Clock>,
    read_index: Arc<ReadIndex>,
    rehearsals: Arc<Rehearsals>,
    digests: Arc<Digests>,
    giving: Arc<Giving>,
    transfers: Arc<Transfers>,
    receiving: Arc<Receiving>,
    tasks: Tasks,
}

impl Assembly {
    /// Restores the state machine from the newest snapshot and the log, and joins the cluster.
    #[allow(clippy::too_many_lines, reason = "the parts of a replica, one per line")]
    pub(super) async fn start(options: Options) -> Result<Self, Error> {
        let Options { identity, timing, limits, snapshot: policy, members, .. } = options;
        let Options { worker, components, entry_source, log, snapshots: files, .. } = options;
        let disk = DiskWatch::new(log.clone(), timing.election_max);
        let supervisor = Supervisor::default();
        let building = Arc::new(Building::new(supervisor.clone()));
        let check_interval = options.consistency_check_interval;
        let unreadable = |error| Error::fatal("cannot start from the log").with_source(error);
        let vote = log.clone().read_vote().await.map_err(unreadable)?;
        let last_log_id = snapshot::last_log_id(&log, &files).map_err(unreadable)?;
        let standing = Standing::new(vote, last_log_id);
        let node_id = identity.node_id;
        let local =
            Local::open(identity, options.engine, timing, standing, log.clone(), disk.clone());
        let local = Arc::new(local.map_err(unreadable)?);
        let peers = Arc::new(Peers::new(local.clone(), supervisor.clone()));
        let metrics = options.metrics;
        let divergence =
            Divergence::open(log.clone(), node_id, check_interval.is_some(), metrics.clone());
        let divergence = Arc::new(divergence.map_err(unreadable)?);
        let state_hashes = Arc::new(StateHashes::default());
        let time = Arc::new(Time::new(node_id));
        let machine = StateMachine::new(
            worker.clone(),
            log.clone(),
            files.clone(),
            local.identity.clone(),
            components.clone(),
            building.clone(),
            divergence.clone(),
            state_hashes.clone(),
            time.clone(),
            limits.cluster,
        );
        let (applied, transfers) = (machine.shared(), machine.transfers());
        let longest = vote_holdoff::longest_lease(&log, timing.lease()).map_err(unreadable)?;
        let hold = Arc::new(VoteHoldoff::new(vote, node_id, longest));
        let lease = Arc::new(Lease::new(timing.lease_used()));
        let own_giving = OwnGiving::default();
        let network = NetworkFactory {
            peers: peers.clone(),
            lease: lease.clone(),
            transfers: transfers.clone(),
            giving: own_giving.clone(),
        };
        let config = options::raft_config(&local.identity.cluster_id, timing, policy)?;
        let raft = openraft::Raft::new(node_id, config, network, log.clone(), machine).await;
        let raft =
            raft.map_err(|error| Error::fatal("cannot start from the log").with_source(error))?;

        let (health, _) = watch::channel(Health::NotServing(NotServing::Starting));
        let fitness = Arc::new(Fitness::new(disk.clone()));
        let node = Arc::new(Node {
            raft,
            worker,
            log,
            disk,
            local,
            peers,
            divergence,
            applied,
            timing,
            health,
            supervisor: supervisor.clone(),
            metrics,
        });
        let bootstrap = Arc::new(Bootstrap::new(node.clone(), fitness.clone(), members));
        let health = Arc::new(HealthMonitor::new(node.clone()));
        let leadership =
            Leadership::new(node.clone(), fitness.clone(), lease.clone(), hold.clone());
        let leadership = Arc::new(leadership);
        let clock = Arc::new(Clock::new(node.clone(), fitness.clone(), time.clone()));
        let proposer = Arc::new(Proposer::new(node.clone(), fitness.clone(), clock.clone()));
        let limits_max = limits.commands_in_flight_max;
        let configured = limits.cluster;
        let limits = Arc::new(LimitsProposer::new(node.clone(), proposer.clone(), limits));
        let admission = Arc::new(Admission::default());
        let commands = Commands::new(
            node.clone(),
            proposer.clone(),
            limits.clone(),
            admission.clone(),
            limits_max,
        );
        let (read_index, read_requests) = ReadIndex::new(node.clone(), lease);
        let read_index = Arc::new(read_index);
        let snapshots = Arc::new(Snapshots::new(
            node.clone(),
            building.clone(),
            files.clone(),
            transfers.clone(),
        ));
        let receiving = Arc::new(Receiving::new(node.clone(), components.clone(), files.clone()));
        let rehearsals = Arc::new(Rehearsals::new(
            node.clone(),
            components.clone(),
            building.clone(),
            entry_source.clone(),
        ));
        let catalog = Arc::new(Catalog::new(
            node.clone(),
            components.clone(),
            rehearsals.clone(),
            read_index.clone(),
        ));
        let digests = Arc::new(Digests::new(node.clone()));
        let giving = Arc::new(Giving::new(node.clone(), digests.clone(), snapshots.clone()));
        let _ = own_giving.set(Arc::downgrade(&giving));
        let state_hash_checks = StateHashChecks::new(node.clone(), state_hashes, proposer.clone());
        bootstrap.connect_to_members();

        // A panic in a task is a fatal error of the node.
        let tasks = Tasks::new(supervisor);
        tasks.spawn("heartbeats", heartbeats::run(node.clone()));
        tasks.spawn("acknowledgements", local::write_acknowledged(node.local.clone()));
        tasks.spawn("read rounds", read_index.clone().serve(read_requests));
        let release = vote_holdoff::release(node.clone(), fitness.clone(), hold.clone());
        tasks.spawn("vote hold-off", release);
        tasks.spawn("leadership", leadership.clone().run());
        tasks.spawn("health", health.clone().run());
        tasks.spawn("snapshot offers", snapshots.clone().hand_over());
        tasks.spawn("damaged snapshots", snapshots.clone().replace_damaged());
        let keep_log = snapshot::keep_log(node.clone(), transfers.clone(), admission, policy);
        tasks.spawn("kept log", keep_log);
        let growth = Growth {
            node: node.clone(),
            building: building.clone(),
            components: components.clone(),
            receiving: receiving.clone(),
            entry_source,
            policy,
        };
        tasks.spawn("snapshot policy", snapshot::watch_growth(growth));
        tasks.spawn("clocks", clock.clone().run());
        let ticks = Ticks::new(node.clone(), fitness.clone(), clock.clone(), time.clone());
        tasks.spawn("ticks", ticks.run());
        if let Some(interval) = check_interval {
            let checks = ConsistencyChecks::new(node.clone(), digests.clone(), proposer.clone());
            tasks.spawn("consistency checks", checks.run(interval));
        }
        let repairs = Repairs::new(
            node.clone(),
            digests.clone(),
            leadership.clone(),
            components.clone(),
            files,
        );
        tasks.spawn("repair", repairs.run());
        tasks.spawn("components", rehearsals.clone().run());
        tasks.spawn("bootstrap", bootstrap.clone().run());
        tasks.spawn("panics", watch_panics(node.clone(), fitness));

        Ok(Self {
            reads: Reads::new(node.clone(), read_index.clone()),
            push: Push::new(node.clone(), components.clone(), catalog.clone(), limits.clone()),
            activate: Activate::new(node.clone(), catalog.clone(), limits.clone()),
            status: Arc::new(Status::new(node.clone(), time.clone(), building.clone(), configured)),
            state_hash_checks: Arc::new(state_hash_checks),
            backups: Backups::new(node.clone(), snapshots.clone(), read_index.clone()),
            commands: Arc::new(commands),
            closed: watch::Sender::new(false),
            node,
            components,
            building,
            time,
            health,
            leadership,
            proposer,
            limits,
            snapshots,
            catalog,
            bootstrap,
            hold,
            clock,
            read_index,
            rehearsals,
            digests,
            giving,
            transfers,
            receiving,
            tasks,
        })
    }

    /// Returns the parts that serve the peers' requests.
    pub(super) fn service_parts(&self) -> Parts {
        Parts {
            node: self.node.clone(),
            bootstrap: self.bootstrap.clone(),
            hold: self.hold.clone(),
            health: self.health.clone(),
            leadership: self.leadership.clone(),
            commands: self.commands.clone(),
            read_index: self.read_index.clone(),
            clock: self.clock.clone(),
            status: self.status.clone(),
            rehearsals: self.rehearsals.clone(),
            digests: self.digests.clone(),
            state_hash_checks: self.state_hash_checks.clone(),
            giving: self.giving.clone(),
            transfers: self.transfers.clone(),
            receiving: self.receiving.clone(),
            closed: self.closed.subscribe(),
        }
    }

    /// Leaves the cluster. Everything that was acknowledged is on disk already.
    pub(super) async fn shutdown(&self) {
        let node = &self.node;
        self.leadership.set_stopping();
        self.closed.send_replace(true);
        self.components.stop();
        self.tasks.stop();
        if let Err(error) = node.raft.shutdown().await {
            tracing::warn!(%error, "Raft did not stop cleanly");
        }
        // openraft's state machine task outlives its core until it has finished its work.
        let until = Instant::now() + STATE_MACHINE_TIME_MAX;
        while Arc::strong_count(&node.applied) > 1 && Instant::now() < until {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        node.peers.stop();
        if let Err(error) = node.local.write_acknowledged() {
            tracing::warn!(%error, "cannot write the acknowledgements of the peers");
        }
        // Both wait for threads, which may wait for a disk that hangs.
        let (worker, log) = (node.worker.clone(), node.log.clone());
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
}

/// Reports panics outside the supervised tasks, until the first one or until Raft has stopped.
async fn watch_panics(node: Arc<Node>, fitness: Arc<Fitness>) {
    let (mut metrics, mut storage) = (node.raft.server_metrics(), node.log.panicked());
    let mut machine = node.worker.panicked();
    let reason = tokio::select! {
        // The sender is dropped with Raft's core.
        () = async { while metrics.changed().await.is_ok() {} } => {
            if fitness.is_stopping() {
                return;
            }
            match node.raft.with_raft_state(|_| ()).await {
                Err(fatal @ Fatal::Panicked) => format!("Raft's core: {fatal}"),
                // Raft was shut down, or the store failed, which health and status report.
                _ => return,
            }
        }
        reason = first(&mut storage) => reason,
        reason = first(&mut machine) => reason,
    };
    node.supervisor.report(reason);
}

async fn first(panicked: &mut watch::Receiver<Option<String>>) -> String {
    match panicked.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
        Ok(Some(reason)) => reason,
        _ => std::future::pending().await,
    }
}
