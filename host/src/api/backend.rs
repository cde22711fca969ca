//! What the layer asks of the replica below it: the one seam, so that the layer is tested without Raft.

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use tokio::{sync::watch, time::Instant};

use crate::{
    error::Error,
    types::{
        Applied, Call, ModuleId,
        status::{Answered, ClusterStatus, Consistency, Health, Leader, NodeStatus},
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
pub trait Backend: Send + Sync + 'static {
    /// Puts a call into the log; done when it has been applied here or on the leader.
    fn command(
        &self,
        call: Call,
        deadline: Instant,
    ) -> impl Future<Output = Result<Applied, Error>> + Send;

    /// Asks the machine. A lease read may be served as a linearizable one.
    fn query(
        &self,
        call: Call,
        consistency: Consistency,
        deadline: Instant,
    ) -> impl Future<Output = Result<Answered, Error>> + Send;

    /// Takes a snapshot now; the index that it reaches.
    fn snapshot_now(&self) -> impl Future<Output = Result<u64, Error>> + Send;

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
    pub module_id: ModuleId,
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
    /// In Prometheus' style: `conclave_machine_traps_total`.
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
