//! The interface to the replica. It is the only dependency of this layer, so the layer is
//! tested without Raft.

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use conclave_types::{
    Call, Caller, ComponentId, Failure, Receipt,
    backup::{BackupPiece, WrappingKey},
    components::{Activated, ComponentPart, ComponentStatus, Difference, Permissions, Pushed},
    error::Error,
    limits::LimitsChange,
    status::{
        Answered, ClusterStatus, Consistency, Health, Leader, LimitsSet, NodeStatus, TimeSet,
        Verification,
    },
};

/// A node's replica of the state machine.
///
/// Contract:
/// * At a call's deadline the layer drops the future and returns DEADLINE_EXCEEDED. So `command`
///   and `query` must be safe to drop at any await, and need no timer of their own. The deadline is
///   passed so that a forwarded call can carry the remaining time.
/// * If `command` was dropped or failed with [`Error::is_unknown_outcome`], the entry may be
///   applied. After any other failure it never will be.
/// * `leader`, `node_status` and `machine` return immediately, from memory.
/// * `health` is kept current: it changes without a call when the quorum or the leader is lost,
///   after a fatal error, and at shutdown.
pub trait Backend: Upgrades + Send + Sync + 'static {
    /// Proposes a call. Completes when its entry has been applied here or on the leader.
    fn command(
        &self,
        call: Call,
        caller: &Caller,
        deadline: Instant,
    ) -> impl Future<Output = Result<Receipt, Error>> + Send;

    /// Queries the state machine. A lease read may be served as a linearizable one.
    fn query(
        &self,
        call: Call,
        caller: &Caller,
        consistency: Consistency,
        deadline: Instant,
    ) -> impl Future<Output = Result<Answered, Error>> + Send;

    /// Begins a subscription. With `resume` it continues after that index, without initial
    /// messages. Safe to drop, like a query.
    fn subscribe(
        &self,
        call: Call,
        caller: &Caller,
        consistency: Consistency,
        resume: Option<u64>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Subscribed, Error>> + Send;

    /// Takes a snapshot now. Returns the index that it includes.
    fn snapshot_now(&self) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Begins a backup that covers every command acknowledged before the call. Without a key, the
    /// node's own key protects it. Dropping the file stops it.
    fn back_up(
        &self,
        key: Option<WrappingKey>,
        deadline: Instant,
    ) -> impl Future<Output = Result<BackupFile, Error>> + Send;

    /// Has every voter hash its state after the same entry. Returns shortly before the deadline,
    /// even if voters have not responded.
    fn verify(&self, deadline: Instant)
    -> impl Future<Output = Result<Verification, Error>> + Send;

    /// Advances the log's time, through the leader.
    fn set_time(
        &self,
        time_ms: u64,
        deadline: Instant,
    ) -> impl Future<Output = Result<TimeSet, Error>> + Send;

    /// Changes limits that influence outcomes, through the leader.
    fn set_limits(
        &self,
        change: LimitsChange,
        deadline: Instant,
    ) -> impl Future<Output = Result<LimitsSet, Error>> + Send;

    /// Collects the status of every member. The implementation bounds the time and reports silent
    /// members as such.
    fn cluster_status(&self) -> impl Future<Output = ClusterStatus> + Send;

    /// The status of this node, from its own knowledge.
    fn node_status(&self) -> NodeStatus;

    /// The current leader, if it is known. Called once per call.
    fn leader(&self) -> Option<Leader>;

    /// The health of this node; the receiver gets every change.
    fn health(&self) -> watch::Receiver<Health>;

    /// The active state machine.
    fn machine(&self) -> Arc<MachineInfo>;
}

/// A backup that is being made, as fast as it is read.
pub struct BackupFile {
    /// The last log index that it covers.
    pub index: u64,
    /// The pieces. The last one is the end or an error.
    pub pieces: mpsc::Receiver<Result<BackupPiece, Error>>,
}

/// The response to a subscription.
pub struct Subscribed {
    /// The index of the state that the initial messages describe.
    pub index: u64,
    /// The state machine's response, or its failure.
    pub result: Result<Subscription, Failure>,
}

/// The messages for a subscriber.
pub struct Subscription {
    /// The initial messages.
    pub initial: Vec<Bytes>,
    /// The events that follow.
    pub events: Box<dyn Events>,
}

/// The events of a subscription, in log order.
pub trait Events: Send {
    /// Waits for the messages of the next entry, and returns them with its index. A result without
    /// messages means that all messages of entries up to its index have been delivered. Cancel safe.
    ///
    /// # Errors
    /// Returns the reason why the subscription has ended.
    fn next(&mut self) -> BoxFuture<'_, Result<(u64, Vec<Bytes>), Error>>;

    /// Returns an index up to which all messages have been delivered. `None`: messages are waiting,
    /// or the subscription has ended.
    fn position(&mut self) -> Option<u64>;
}

/// Upgrades of the state machine. Futures may be dropped at any await and called again: completed
/// work is not repeated. The deadline bounds the proposal; an activation whose deadline has passed
/// may still take effect.
pub trait Upgrades: Send + Sync + 'static {
    /// Stores a piece of a component.
    fn push_component(
        &self,
        piece: ComponentPart,
        deadline: Instant,
    ) -> impl Future<Output = Result<Pushed, Error>> + Send;

    /// The bytes of a component of the cluster.
    fn component_bytes(&self, component: ComponentId) -> Result<Bytes, Error>;

    /// The components of the cluster, with the readiness of the voters for each.
    fn list_components(&self) -> impl Future<Output = Vec<ComponentStatus>> + Send;

    /// Finds the component whose id starts with `beginning`.
    fn find_component(
        &self,
        beginning: &str,
        deadline: Instant,
    ) -> impl Future<Output = Result<ComponentId, Error>> + Send;

    /// Makes every voter rehearse a component. Completes when all voters are done.
    fn rehearse_component(
        &self,
        component: ComponentId,
        deadline: Instant,
    ) -> impl Future<Output = Result<ComponentStatus, Error>> + Send;

    /// Lists the changes that clients would notice.
    fn diff_component(
        &self,
        component: ComponentId,
    ) -> impl Future<Output = Result<Difference, Error>> + Send;

    /// Makes a component the active one.
    fn activate_component(
        &self,
        component: ComponentId,
        permissions: &Permissions,
        deadline: Instant,
    ) -> impl Future<Output = Result<Activated, Error>> + Send;

    /// Activates the component before the active one, `from`.
    fn rollback_component(
        &self,
        from: ComponentId,
        permissions: &Permissions,
        deadline: Instant,
    ) -> impl Future<Output = Result<Activated, Error>> + Send;
}

/// The description of the active state machine.
#[derive(Clone, Debug)]
pub struct MachineInfo {
    /// A name for humans.
    pub name: String,
    /// A version for humans.
    pub version: String,
    /// The version of the snapshot format.
    pub state_version: u32,
    /// The id of its component.
    pub component_id: ComponentId,
    /// Every method of its services.
    pub methods: Vec<MethodSpec>,
    /// A serialized `google.protobuf.FileDescriptorSet` with all imports; may be empty.
    pub descriptor_set: Bytes,
}

/// One method of the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodSpec {
    /// `package.Service/Method`.
    pub name: Arc<str>,
    /// The kind of the method, which decides how a call is served.
    pub kind: MethodKind,
}

/// The ways to serve a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodKind {
    /// Through the log.
    Command,
    /// From the state.
    Query,
    /// As a stream of events.
    Subscription,
}
