//! A node without Raft: entries get the next index, are stored in memory, and are applied.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use conclave_machine::{
    Answered, Component, Engine, Entry, Limits, QueryError, SavedState, SnapshotError, StateStream,
    Work, Worker,
};
use conclave_testing::components;
#[allow(unused_imports, reason = "of the tests that share this file only some build")]
pub(crate) use conclave_testing::components::build;
use conclave_types::{Call, Digest, Outcome, TrapKind, limits::ClusterLimits};
use prost::Message;
use tokio::sync::oneshot;

use crate::entry_source::{MemorySource, Saved};

/// The number that the hostile state machine adds before it misbehaves.
pub(crate) const MARK: i64 = 1000;
pub(crate) const SEED: [u8; 32] = [42; 32];

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Number {
    #[prost(int64, tag = "1")]
    pub(crate) value: i64,
}

pub(crate) static HOSTILE: LazyLock<Bytes> = LazyLock::new(components::hostile);

/// The limits of the tests: the default limits, but with less memory, so that a state machine that
/// fills it does not exhaust the host.
pub(crate) fn limits() -> Limits {
    let cluster = ClusterLimits { memory_bytes_max: 256 << 20, ..ClusterLimits::DEFAULT };
    Limits { cluster, ..Limits::default() }
}

/// Returns these limits with changed limits of the cluster.
pub(crate) fn with(change: impl FnOnce(&mut ClusterLimits)) -> Limits {
    let mut limits = limits();
    change(&mut limits.cluster);
    limits
}

static COMPONENT: LazyLock<Component> =
    LazyLock::new(|| Component::load(&Engine::new(&limits()).unwrap(), HOSTILE.clone()).unwrap());

pub(crate) fn hostile() -> Component {
    COMPONENT.clone()
}

pub(crate) fn call(method: &str, request: impl Message) -> Call {
    Call {
        method: format!("hostile.v1.Hostile/{method}").into(),
        request: request.encode_to_vec().into(),
        principal: "".into(),
    }
}

pub(crate) fn add(value: i64) -> Call {
    call("Add", Number { value })
}

pub(crate) struct Node {
    pub(crate) worker: Worker,
    pub(crate) entry_source: Arc<MemorySource>,
    pub(crate) index: u64,
}

impl Node {
    pub(crate) fn start() -> Self {
        Self::start_with(hostile())
    }

    pub(crate) fn start_with(component: Component) -> Self {
        Self::start_from(component, Arc::new(MemorySource::new()), None)
    }

    pub(crate) fn start_from(
        component: Component,
        entry_source: Arc<MemorySource>,
        at: Option<SavedState>,
    ) -> Self {
        let index = at.as_ref().map_or(0, |saved| saved.index);
        let worker =
            Worker::start(component, SEED, entry_source.clone(), at, Arc::default()).unwrap();
        Self { worker, entry_source, index }
    }

    /// Queues one entry; the outcome comes later.
    pub(crate) async fn push(&mut self, call: Call) -> oneshot::Receiver<Outcome> {
        self.index += 1;
        let entry = Entry { index: self.index, time_ms: self.index * 10, work: Work::Call(call) };
        self.push_entry(entry).await
    }

    /// Queues an entry that activates a component.
    pub(crate) async fn push_component(
        &mut self,
        component: &Component,
    ) -> oneshot::Receiver<Outcome> {
        self.index += 1;
        let work = Work::Activate(component.clone());
        self.push_entry(Entry { index: self.index, time_ms: self.index * 10, work }).await
    }

    pub(crate) async fn activate(&mut self, component: &Component) -> Outcome {
        self.push_component(component)
            .await
            .await
            .unwrap_or_else(|_| panic!("no outcome: {:?}", self.worker.fatal_error()))
    }

    /// Applies an entry that sets other limits.
    pub(crate) async fn set_limits(&mut self, limits: ClusterLimits) -> Outcome {
        self.index += 1;
        let work = Work::SetLimits(limits);
        let entry = Entry { index: self.index, time_ms: self.index * 10, work };
        self.push_entry(entry).await.await.unwrap()
    }

    pub(crate) async fn push_entry(&mut self, entry: Entry) -> oneshot::Receiver<Outcome> {
        self.index = entry.index;
        self.entry_source.append(entry.clone());
        let (send, receive) = oneshot::channel();
        let done = Box::new(move |outcome| _ = send.send(outcome));
        self.worker.apply(vec![(self.index, Some(entry), Some(done))]).await.unwrap();
        receive
    }

    /// Queues an entry that the state machine does not see.
    pub(crate) async fn push_blank(&mut self) {
        self.index += 1;
        self.worker.apply(vec![(self.index, None, None)]).await.unwrap();
    }

    pub(crate) async fn apply(&mut self, call: Call) -> Outcome {
        self.push(call)
            .await
            .await
            .unwrap_or_else(|_| panic!("no outcome: {:?}", self.worker.fatal_error()))
    }

    pub(crate) async fn add(&mut self, value: i64) -> i64 {
        number(&self.apply(add(value)).await)
    }

    /// Runs a linearizable query: it observes every entry that was queued.
    pub(crate) async fn query(&self, method: &str) -> Result<Answered, QueryError> {
        let query = self.worker.query(call(method, Number::default()), self.index);
        tokio::time::timeout(Duration::from_secs(60), query).await.expect("a query is answered")
    }

    pub(crate) async fn total(&self) -> i64 {
        let answered = self.query("Get").await.unwrap();
        assert!(answered.index >= self.index);
        Number::decode(answered.result.unwrap()).unwrap().value
    }

    /// Takes a snapshot, and retries if it is lost, as a node does. A query that traps on the
    /// primary, because there is no standby, causes the next standby to be promoted, even after the
    /// query was answered. A snapshot in that standby is lost.
    pub(crate) async fn snapshot(&self) -> Saved {
        for _ in 0..20 {
            let opened = self.worker.snapshot(self.index).await;
            let saved = match opened {
                Ok(stream) => read(stream).await,
                Err(error) => Err(error),
            };
            match saved {
                Err(SnapshotError::Lost) => {}
                saved => return Saved { digest: Some(self.digest().await), ..saved.unwrap() },
            }
        }
        panic!("every snapshot is lost, of {}", self.worker.metrics().snapshots.get());
    }

    /// Returns the digest over all entries so far.
    pub(crate) async fn digest(&self) -> Digest {
        self.worker.digest_at(self.index).await.unwrap().expect("the newest digest is known")
    }

    /// Waits for a condition that becomes true in the background.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !condition(self) {
            assert!(Instant::now() < deadline, "{what}: applied {}", self.worker.applied());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.worker.shutdown();
    }
}

pub(crate) async fn read(mut stream: StateStream) -> Result<Saved, SnapshotError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok(Saved {
        component: stream.component().clone(),
        index: stream.index(),
        time_ms: stream.time_ms(),
        limits: stream.component().engine().limits().cluster,
        state_version: stream.state_version(),
        digest: None,
        bytes,
    })
}

pub(crate) fn number(outcome: &Outcome) -> i64 {
    match outcome {
        Outcome::Reply(reply) => Number::decode(reply.response.clone()).unwrap().value,
        other => panic!("no reply: {other:?}"),
    }
}

pub(crate) fn trap_kind(outcome: &Outcome) -> TrapKind {
    match outcome {
        Outcome::Trap(trap) => trap.kind,
        other => panic!("no trap: {other:?}"),
    }
}
