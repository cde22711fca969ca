//! Concurrent, recorded clients of the key-value store.
//!
//! Each client has one operation in flight at a time. Most requests go to a fixed node, so that
//! nodes that are cut off or deposed also receive requests. The others go to the leader. Deadlines
//! are short, so the outcome of many operations is unknown during faults.
//!
//! The keys change every few seconds, so that the history of each key is short enough to be checked.

mod call;
mod watching;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use conclave_client::Client;
use tokio::{task::JoinHandle, time::sleep};

use crate::{
    cluster::Cluster,
    history::{Compare, Kind, Operation, Recorder, Request, Step},
    random::Random,
};

pub use self::{
    call::{call, method_of},
    watching::{Change, KEYS_OF_FAULTS, Segment, Watched},
};

/// Time for which the same keys are used.
pub const KEYS_LAST: Duration = Duration::from_secs(3);
/// Number of keys per period that are used alone.
pub const SINGLE_KEYS: u64 = 4;
/// Number of pairs of keys per period that are used together.
const PAIRS: u64 = 2;
/// The clients' deadlines, in milliseconds. The longest covers an election.
const DEADLINES_MS: [u64; 3] = [250, 600, 2000];

/// The behaviour of the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Number of clients.
    pub clients: u32,
    /// Maximum pause of a client between two operations, in milliseconds.
    pub think_ms: u64,
    /// Whether there are reads under the leader's lease.
    pub lease_reads: bool,
    /// Number of watchers per node.
    pub watchers: u32,
}

/// Clients that run until they are stopped.
pub struct Workload {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
    watchers: Vec<watching::Watcher>,
}

struct Shared {
    recorder: Arc<Recorder>,
    /// A client that follows the leader. `nodes` has one client per node.
    any: Client,
    nodes: Vec<Client>,
    cluster: Arc<Cluster>,
    values: AtomicU64,
    stopped: AtomicBool,
    plan: Plan,
}

impl Plan {
    /// Derives the behaviour of the clients from a seed. With few clients there are times without a
    /// write in flight. Many clients share batches. Each finds faults that the other does not.
    pub fn generate(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x706c_616e);
        let clients = random.pick(&[4, 8, 12, 20]).unwrap_or(12);
        let think_ms = random.pick(&[5, 20, 60]).unwrap_or(60).max(u64::from(clients) * 2);
        Self { clients, think_ms, lease_reads: true, watchers: 1 }
    }
}

impl Workload {
    /// Starts the clients and watchers.
    pub async fn start(
        cluster: &Arc<Cluster>,
        recorder: Arc<Recorder>,
        plan: Plan,
        random: &mut Random,
    ) -> Result<Self> {
        let nodes = cluster.ids().map(|id| client(cluster, Some(id)));
        let shared = Arc::new(Shared {
            recorder,
            any: client(cluster, None)?,
            nodes: nodes.collect::<Result<_>>()?,
            cluster: Arc::clone(cluster),
            values: AtomicU64::new(1),
            stopped: AtomicBool::new(false),
            plan,
        });
        let mut watchers = Vec::new();
        for id in cluster.ids() {
            for _ in 0..plan.watchers {
                watchers.push(watching::Watcher::start(cluster, id)?);
            }
        }
        let clients = (0..plan.clients).map(|number| {
            let (shared, random) = (Arc::clone(&shared), random.fork(u64::from(number)));
            tokio::spawn(async move { shared.run(number, random).await })
        });
        Ok(Self { clients: clients.collect(), shared, watchers })
    }

    /// Stops the clients after their current operations.
    pub async fn stop(&mut self) -> Result<()> {
        self.shared.stopped.store(true, Ordering::Release);
        for client in self.clients.drain(..) {
            client.await?;
        }
        Ok(())
    }

    /// Reads each key of the history once more, at alternating nodes.
    pub async fn read_everything(&self) {
        let operations = self.shared.recorder.operations();
        let keys = operations.iter().flat_map(|operation| operation.request.keys());
        let keys: std::collections::BTreeSet<&str> = keys.collect();
        for (at, key) in keys.into_iter().enumerate() {
            let node = at as u64 % self.shared.nodes.len() as u64 + 1;
            let request = Request::of(Step::Get(key.to_owned()));
            let client = self.shared.plan.clients;
            self.shared.operate(client, Some(node), Kind::Read, request, 10_000).await;
        }
    }

    /// Ends the watches after they have received all earlier changes. Returns what each has received.
    pub async fn stop_watching(&mut self, patience: Duration) -> Result<Vec<Watched>> {
        let index = watching::mark(&self.shared.any).await?;
        let mut seen = Vec::new();
        for watcher in self.watchers.drain(..) {
            seen.push(watcher.stop(index, patience).await?);
        }
        Ok(seen)
    }
}

fn client(cluster: &Cluster, node: Option<u64>) -> Result<Client> {
    let builder = Client::builder().attempt_timeout(Duration::from_secs(60));
    let builder = match node {
        Some(id) => builder.endpoints([cluster.node(id).client.clone()]).follow_leader(false),
        None => builder.endpoints(cluster.nodes.iter().map(|node| node.client.clone())),
    };
    Ok(builder.build()?)
}

impl Shared {
    async fn run(&self, number: u32, mut random: Random) {
        let home = u64::from(number) % self.nodes.len() as u64 + 1;
        while !self.stopped.load(Ordering::Acquire) {
            let node = match random.below(10) {
                0..6 => Some(home),
                6..8 => Some(random.below(self.nodes.len() as u64) + 1),
                _ => None,
            };
            let node = self.unspared(node);
            let (kind, request) = self.any_request(&mut random);
            let deadline = random.pick(&DEADLINES_MS).unwrap_or(1000);
            self.operate(number, node, kind, request, deadline).await;
            sleep(Duration::from_millis(random.below(self.plan.think_ms + 1))).await;
        }
    }

    /// Returns the node, or another one if the node is spared. A client that follows the leader
    /// could reach a spared node, so it is replaced too.
    fn unspared(&self, node: Option<u64>) -> Option<u64> {
        let spared = |id: &u64| self.cluster.is_spared(*id);
        match node {
            Some(id) if !spared(&id) => Some(id),
            None if !self.cluster.ids().any(|id| spared(&id)) => None,
            _ => self.cluster.ids().find(|id| !spared(id)),
        }
    }

    async fn operate(
        &self,
        client: u32,
        node: Option<u64>,
        kind: Kind,
        request: Request,
        deadline_ms: u64,
    ) {
        let asked = node.map_or(&self.any, |id| &self.nodes[id as usize - 1]);
        let starts = || node.map(|id| (id, self.cluster.node(id).starts()));
        let before = starts();
        let begun = self.recorder.now();
        let outcome = call(asked, kind, &request, Duration::from_millis(deadline_ms)).await;
        let ended = self.recorder.now();
        // After a restart it is unknown which of the two processes answered.
        let node = if starts() == before { before } else { None };
        self.recorder.add(Operation { client, node, kind, request, begun, ended, outcome });
    }

    fn value(&self) -> u64 {
        self.values.fetch_add(1, Ordering::Relaxed)
    }

    fn any_request(&self, random: &mut Random) -> (Kind, Request) {
        let age = self.recorder.now().as_millis() / KEYS_LAST.as_millis();
        let single = format!("{age}/{}", random.below(SINGLE_KEYS));
        let pair = random.below(PAIRS);
        let (one, other) = (format!("{age}/pair-{pair}/a"), format!("{age}/pair-{pair}/b"));
        let put = |key: &str| Step::Put(key.to_owned(), self.value());
        let get = |key: &str| Step::Get(key.to_owned());
        match random.below(100) {
            0..26 => (Kind::Write, Request::of(put(&single))),
            26..31 => (Kind::Write, Request::of(Step::Delete(single))),
            31..56 => (Kind::Read, Request::of(get(&single))),
            56..66 if self.plan.lease_reads => (Kind::LeaseRead, Request::of(get(&single))),
            56..72 => (Kind::StaleRead, Request::of(get(&single))),
            72..80 => {
                let then = vec![put(&one), put(&other)];
                (Kind::Write, Request { then, ..Request::default() })
            }
            80..84 => {
                let then = vec![get(&one), put(&other), Step::Delete(one)];
                (Kind::Write, Request { then, ..Request::default() })
            }
            84..92 => {
                let key = if random.percent(50) { one.clone() } else { other.clone() };
                (Kind::Read, Request::of(Step::Get(key)))
            }
            92..96 => {
                let compares = vec![Compare::Exists(one.clone(), random.percent(50))];
                let (then, otherwise) = (vec![put(&one), get(&other)], vec![put(&other)]);
                (Kind::Write, Request { compares, then, otherwise })
            }
            _ => {
                // The value of a recent put. Some keys still hold it.
                let recent = self.values.load(Ordering::Relaxed).saturating_sub(random.below(30));
                let compares = vec![Compare::Holds(one.clone(), recent)];
                let (then, otherwise) =
                    (vec![put(&one), put(&other)], vec![get(&one), get(&other)]);
                (Kind::Write, Request { compares, then, otherwise })
            }
        }
    }
}
