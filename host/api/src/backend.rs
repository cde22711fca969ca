//! What the layer asks of the replica below it: the one seam, so that the layer is tested without Raft.

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::{sync::watch, time::Instant};

use conclave_types::{
    Call, Caller, ComponentId, Failure, Receipt,
    components::{Activated, ComponentPart, ComponentStatus, Difference, Permissions, Pushed},
    error::Error,
    limits::LimitsChange,
    status::{
        Answered, ClusterStatus, Consistency, Health, Leader, LimitsSet, NodeStatus, TimeSet,
        Verification,
    },
};

/// A node's replica of the machine.
///
/// Contract:
/// * The layer drops a future that is not done at its deadline and answers that the deadline passed.
///   So `command` and `query` must be safe to drop at any await, and need no timer of their own. The
///   deadline is passed so that a forwarded call can carry what is left of it.
/// * `command` has been dropped or has failed with [`Error::is_unknown_outcome`]: the entry may be
///   applied. It has failed otherwise: it never will be.
/// * `leader`, `node_status` and `machine` answer at once from memory.
/// * `health` follows the truth: it changes by itself when quorum or the leader is lost, at a fault and
///   at shutdown.
pub trait Backend: Upgrades + Send + Sync + 'static {
    /// Puts a call into the log; done when it has been applied here or on the leader.
    fn command(
        &self,
        call: Call,
        caller: &Caller,
        deadline: Instant,
    ) -> impl Future<Output = Result<Receipt, Error>> + Send;

    /// Asks the machine. A lease read may be served as a linearizable one.
    fn query(
        &self,
        call: Call,
        caller: &Caller,
        consistency: Consistency,
        deadline: Instant,
    ) -> impl Future<Output = Result<Answered, Error>> + Send;

    /// Begins a subscription; with `resume`, one that has seen everything up to that index and gets no
    /// initial messages. Safe to drop as a query is.
    fn subscribe(
        &self,
        call: Call,
        caller: &Caller,
        consistency: Consistency,
        resume: Option<u64>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Subscribed, Error>> + Send;

    /// Takes a snapshot now; the index that it reaches.
    fn snapshot_now(&self) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Has every voter hash its state after one entry. Done a little before the deadline, whoever has answered.
    fn verify(&self, deadline: Instant)
    -> impl Future<Output = Result<Verification, Error>> + Send;

    /// Sets the log's time forward, as the leader.
    fn set_time(
        &self,
        time_ms: u64,
        deadline: Instant,
    ) -> impl Future<Output = Result<TimeSet, Error>> + Send;

    /// Changes limits that decide outcomes, as the leader.
    fn set_limits(
        &self,
        change: LimitsChange,
        deadline: Instant,
    ) -> impl Future<Output = Result<LimitsSet, Error>> + Send;

    /// Asks every member; bounded in time by the implementation, which reports silent members as such.
    fn cluster_status(&self) -> impl Future<Output = ClusterStatus> + Send;

    /// What this node knows of itself.
    fn node_status(&self) -> NodeStatus;

    /// Who leads. Asked once a call.
    fn leader(&self) -> Option<Leader>;

    /// Whether this node serves, with every change.
    fn health(&self) -> watch::Receiver<Health>;

    /// The active machine.
    fn machine(&self) -> Arc<MachineInfo>;

    /// Counters and gauges of the layers below, for the metrics page. Asked once a scrape.
    fn metrics(&self) -> Vec<Metric>;
}

/// The answer to a call that subscribes.
pub struct Subscribed {
    /// The index of the state that the initial messages describe.
    pub index: u64,
    /// The machine's answer, or its refusal.
    pub result: Result<Subscription, Failure>,
}

/// What a subscriber gets.
pub struct Subscription {
    /// The messages that come first.
    pub initial: Vec<Bytes>,
    /// Then what happens, in the order of the log. Ends with an error.
    pub events: Events,
}

/// The messages of entries, each with its index. Without a message: there is none of an entry up to this index that
/// has not come.
pub type Events = BoxStream<'static, Result<(u64, Vec<Bytes>), Error>>;

/// The life of an upgrade. Futures may be dropped at any await, and asked for again: what was done once is
/// not done twice. The deadline bounds what is proposed; an activation that ran out of time may still come.
pub trait Upgrades: Send + Sync + 'static {
    /// Takes in a piece of a component.
    fn push_component(
        &self,
        piece: ComponentPart,
        deadline: Instant,
    ) -> impl Future<Output = Result<Pushed, Error>> + Send;

    /// The components that the cluster has, and how far the voters are with each.
    fn list_components(&self) -> impl Future<Output = Vec<ComponentStatus>> + Send;

    /// The component whose id begins like this.
    fn find_component(
        &self,
        beginning: &str,
        deadline: Instant,
    ) -> impl Future<Output = Result<ComponentId, Error>> + Send;

    /// Makes every voter rehearse a component; done when all are.
    fn rehearse_component(
        &self,
        component: ComponentId,
        deadline: Instant,
    ) -> impl Future<Output = Result<ComponentStatus, Error>> + Send;

    /// What would change for clients.
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

    /// Goes back from the active component, `from`, to the one before.
    fn rollback_component(
        &self,
        from: ComponentId,
        permissions: &Permissions,
        deadline: Instant,
    ) -> impl Future<Output = Result<Activated, Error>> + Send;
}

/// What the active machine says of itself.
#[derive(Clone, Debug)]
pub struct MachineInfo {
    /// For people.
    pub name: String,
    /// For people.
    pub version: String,
    /// The version of its snapshots.
    pub state_version: u32,
    /// Its component.
    pub component_id: ComponentId,
    /// Every method of its services.
    pub methods: Vec<MethodSpec>,
    /// A serialized `google.protobuf.FileDescriptorSet` with all imports; may be empty.
    pub descriptor_set: Bytes,
}

/// One method of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodSpec {
    /// `package.Service/Method`.
    pub name: Arc<str>,
    /// How it is served.
    pub kind: MethodKind,
}

/// How a method is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodKind {
    /// Through the log.
    Command,
    /// From the state.
    Query,
    /// As a stream of events.
    Subscription,
}

/// One sample of the metrics page.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// In Prometheus' style: `conclave_traps_total`.
    pub name: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// What the number does.
    pub kind: MetricKind,
    /// Names and values; few, and from a closed set.
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    pub value: f64,
}

/// What a metric's number does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

impl Metric {
    /// A number that only grows, without labels.
    pub fn counter(name: &'static str, help: &'static str, value: u64) -> Self {
        Self { name, help, kind: MetricKind::Counter, labels: Vec::new(), value: value as f64 }
    }

    /// A number that goes up and down, without labels.
    pub fn gauge(name: &'static str, help: &'static str, value: f64) -> Self {
        Self { name, help, kind: MetricKind::Gauge, labels: Vec::new(), value }
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.labels.push((name, value.into()));
        self
    }
}
