//! The replica: openraft, connected to the log on disk, the state machine and the peers.
//!
//! [`Replica`] is the interface for the layers above. It composes the parts of a replica, each with
//! its own state, and delegates to them. The parts share one [`node::Node`].
//!
//! [`state_machine`] applies committed entries, [`command`] and [`propose`] put commands into the
//! log, [`read`] serves linearizable reads, [`snapshot`] and [`network`] exchange data with the
//! peers, [`divergence`] finds and repairs diverged replicas, and [`components`] upgrades them.
//!
//! Contract: a command is answered only after a majority has it on stable storage and the state
//! machine has applied it, here or on the leader. A linearizable query on any node observes every
//! command that was acknowledged before the query was sent.
//!
//! Caveats: without exactly-once sessions (Raft thesis, section 6.3), a command that is sent again
//! after a lost response is applied again; see [`Error::is_unknown_outcome`]. Members are fixed.

mod assembly;
mod boot_time;
mod bootstrap;
mod command;
mod components;
mod confirmation;
mod disk;
mod divergence;
mod entry_source;
mod fitness;
mod forward;
#[doc(hidden)]
pub mod fuzz;
mod health;
mod host_state;
mod leadership;
mod lease;
mod limits;
mod limits_proposer;
mod metrics;
pub mod network;
mod node;
mod options;
mod peer_status;
mod propose;
mod raft_state;
mod read;
mod read_index;
mod recover;
pub mod registry;
mod set_time;
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

use std::sync::Arc;

use bytes::Bytes;
use tokio::{sync::watch, time::Instant};

pub use self::read::watch_ended;
use self::{
    assembly::Assembly, network::port::PeerPort, snapshot::backup::BackupStream,
    supervise::Supervisor,
};
pub use self::{
    components::{Components, KeptCode},
    entry_source::LocalEntrySource,
    metrics::{Metrics, export_state},
    options::Options,
    recover::{NotRecovered, Replaced, Skipped, replace_component, skip_entry, skipped_entries},
    snapshot::{backup, saved_state, voters},
};
use conclave_machine::{Component, Subscribed, Worker};
use conclave_storage::BackupKey;
use conclave_types::{
    Call, Caller, ComponentId, Receipt,
    components::{Activated, ComponentPart, ComponentStatus, Difference, Permissions, Pushed},
    error::Error,
    limits::LimitsChange,
    status::{
        Answered, ClusterStatus, Consistency, Health, Leader, LimitsSet, NodeStatus, TimeSet,
        Verification,
    },
};

/// One node's part of the cluster. A clone is another handle to the same node. When the last handle
/// is dropped, the background tasks end.
#[derive(Clone)]
pub struct Replica(Arc<Assembly>);

impl Replica {
    /// Restores the state machine from the newest snapshot and the log, and joins the cluster.
    /// Requests are served only once the peer service listens.
    pub async fn start(options: Options) -> Result<Self, Error> {
        Ok(Self(Arc::new(Assembly::start(options).await?)))
    }

    /// Waits for a fatal error of this node: a panic in a task, in Raft's core or on a worker thread.
    pub async fn failed(&self) -> Error {
        Error::fatal(self.0.node.supervisor.failed().await)
    }

    /// Prepares a planned stop. Reports that this node is stopping, takes part in no further
    /// election, and transfers leadership if this node leads. Calls are served in the meantime.
    /// Takes at most three election timeouts.
    pub async fn retire(&self) {
        self.0.leadership.retire().await;
    }

    /// Ends the streams of peers, so that Raft can stop without an open stream.
    pub fn close_peers(&self) {
        self.0.closed.send_replace(true);
    }

    /// Leaves the cluster. Everything that was acknowledged is on disk already.
    pub async fn shutdown(&self) {
        self.0.shutdown().await;
    }

    /// Returns the supervisor of this node's background tasks.
    pub fn supervisor(&self) -> &Supervisor {
        &self.0.node.supervisor
    }

    /// Returns the services for connections to the peer port.
    pub fn peer_port(&self) -> PeerPort {
        PeerPort::new(self.0.service_parts())
    }

    /// Proposes a call on the leader, which may be another node. Retries through an election until
    /// the deadline. The error reports an unknown outcome only if the call may have been proposed.
    pub async fn command(
        &self,
        call: Call,
        caller: &Caller,
        deadline: Instant,
    ) -> Result<Receipt, Error> {
        self.0.commands.run(call, caller, deadline).await
    }

    /// Runs a query. Only the leader uses its lease. On another node a lease read is a linearizable
    /// read. Ends early once the disk hangs, because another node can serve the query.
    pub async fn query(
        &self,
        call: Call,
        caller: &Caller,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<Answered, Error> {
        let answer = self.0.reads.query(call, caller, consistency, deadline);
        self.0.leadership.unless_disk_hangs(answer).await
    }

    /// Starts a subscription on this node's state machine, or resumes one that has received
    /// everything up to `resume`. Ends early once the disk hangs.
    pub async fn subscribe(
        &self,
        call: Call,
        caller: &Caller,
        consistency: Consistency,
        resume: Option<u64>,
        deadline: Instant,
    ) -> Result<Subscribed, Error> {
        let begun = self.0.reads.subscribe(call, caller, consistency, resume, deadline);
        self.0.leadership.unless_disk_hangs(begun).await
    }

    /// Takes a snapshot and waits until it is on disk. Returns the index that it covers.
    pub async fn snapshot_now(&self) -> Result<u64, Error> {
        self.0.snapshots.take_now().await
    }

    /// Takes a backup that covers every command acknowledged before this call. Without a key, this
    /// node's master key wraps the data key.
    pub async fn back_up(
        &self,
        key: Option<BackupKey>,
        deadline: Instant,
    ) -> Result<BackupStream, Error> {
        self.0.backups.create(key, deadline).await
    }

    /// Makes every voter hash its state after one entry, which this node proposes as the leader.
    pub async fn verify(&self, deadline: Instant) -> Result<Verification, Error> {
        self.0.state_hash_checks.run(deadline).await
    }

    /// Sets the log's time for an operator: an entry of the log, from which every later leader continues.
    pub async fn set_time(&self, time_ms: u64, deadline: Instant) -> Result<TimeSet, Error> {
        let Assembly { node, proposer, time, .. } = &*self.0;
        set_time::set_time(node, proposer, time, time_ms, deadline).await
    }

    /// Changes limits as the leader. The change takes effect after the entry at the returned index.
    pub async fn set_limits(
        &self,
        change: LimitsChange,
        deadline: Instant,
    ) -> Result<LimitsSet, Error> {
        self.0.limits.set(change, deadline).await
    }

    /// Accepts a piece of a component. With the last piece, the component goes into the log.
    pub async fn push_component(
        &self,
        piece: ComponentPart,
        deadline: Instant,
    ) -> Result<Pushed, Error> {
        self.0.push.piece(piece, deadline).await
    }

    /// Returns all components of the cluster: the active one first, then the newest. Without a
    /// leader, returns the components that this node knows.
    pub async fn list_components(&self) -> Vec<ComponentStatus> {
        self.0.catalog.list().await
    }

    /// Returns the bytes of a component of the cluster.
    ///
    /// # Errors
    /// The component was removed meanwhile.
    pub fn component_bytes(&self, component: ComponentId) -> Result<Bytes, Error> {
        self.0.catalog.bytes(component)
    }

    /// Returns the component whose id begins with `beginning`.
    pub async fn find_component(
        &self,
        beginning: &str,
        deadline: Instant,
    ) -> Result<ComponentId, Error> {
        self.0.catalog.find(beginning, deadline).await
    }

    /// Makes every voter rehearse a component, and waits for all of them.
    pub async fn rehearse_component(
        &self,
        id: ComponentId,
        deadline: Instant,
    ) -> Result<ComponentStatus, Error> {
        self.0.catalog.rehearse(id, deadline).await
    }

    /// Returns the changes for clients if a component became active.
    pub async fn diff_component(&self, id: ComponentId) -> Result<Difference, Error> {
        self.0.catalog.diff(id).await
    }

    /// Activates a component. If it is already active, that is the response, so that a client that
    /// lost the first response can retry.
    pub async fn activate_component(
        &self,
        component: ComponentId,
        permissions: &Permissions,
        deadline: Instant,
    ) -> Result<Activated, Error> {
        self.0.activate.activate(component, permissions, deadline).await
    }

    /// Activates the previous component again. `from` is the component that the caller believes to
    /// be active. If it is the previous one by now, the rollback has already been done.
    pub async fn rollback_component(
        &self,
        from: ComponentId,
        permissions: &Permissions,
        deadline: Instant,
    ) -> Result<Activated, Error> {
        self.0.activate.roll_back(from, permissions, deadline).await
    }

    /// Returns the status of this node.
    pub fn node_status(&self) -> NodeStatus {
        self.0.status.of_node()
    }

    /// Returns the status of the cluster, and queries all members in parallel.
    pub async fn cluster_status(&self) -> ClusterStatus {
        self.0.status.of_cluster().await
    }

    /// Returns the leader known here; `None` on a leader without a majority or with a hung disk.
    pub fn leader(&self) -> Option<Leader> {
        self.0.node.leader_for_clients()
    }

    /// Returns whether this node serves, and its changes.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.0.node.health.subscribe()
    }

    /// Returns the component that this node runs, and its changes.
    pub fn machine(&self) -> watch::Receiver<Component> {
        self.0.node.worker.components()
    }

    /// Returns the state machine's worker.
    pub fn worker(&self) -> &Worker {
        &self.0.node.worker
    }
}
