//! The load of a run: writers, deleters, readers, watchers and a caller that traps, each at a bounded rate.
//!
//! A key is locked while it is written or read, so it has only one writer at a time. So the value
//! that a read must return is known, except after writes with an unknown outcome. A value is
//! derived from its key and a number, so all bytes are compared.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use conclave_client::{
    Client, Error,
    proto::kv::{
        BatchRequest, KeyValue, Operation, PutRequest, RangeRequest, WatchRequest, key_value,
        operation, put_request,
    },
};
use tokio::{
    sync::MutexGuard,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::Plan;
use crate::{cluster::Cluster, random::Random};

/// Number of concurrent writers.
const WRITERS: u64 = 4;
/// Percentages of a writer's operations that are deletes, and puts of an expiring key.
const DELETES: u64 = 12;
const EXPIRING: u64 = 5;
/// Lifetime of these keys, and their number.
const EXPIRES_AFTER_MS: i64 = 20_000;
const EXPIRING_KEYS: u64 = 200;
/// Reads per second, each at a random node.
const READS_PER_SECOND: u64 = 4;
/// Interval in which a client is connected, used once and dropped.
const CONNECTION_INTERVAL: Duration = Duration::from_secs(1);
/// Time after which a watch is ended and restarted.
const WATCH_TIME: Duration = Duration::from_secs(60);
/// Operations of a batch that needs more than [`super::FUEL_PER_CALL`].
const TRAPPING_OPERATIONS: usize = 128;
/// Maximum number of failures in a report.
const FAILURES_MAX: usize = 20;
const PAGE: u32 = 200;

/// The content of a key: the number of its value, or `None` if the key does not exist.
type Held = Option<u64>;

/// The known state of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Key {
    /// The content after the last acknowledged write.
    certain: Held,
    /// The contents of all writes of this run whose outcome is unknown.
    unknown: Vec<Held>,
}

impl Key {
    fn allows(&self, held: Held) -> bool {
        held == self.certain || self.unknown.contains(&held)
    }
}

/// Counts of a run.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) writes: AtomicU64,
    pub(super) deletes: AtomicU64,
    pub(super) reads: AtomicU64,
    pub(super) unknown: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) events: AtomicU64,
    pub(super) connections: AtomicU64,
}

/// The load.
pub(super) struct Load {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    cluster: Arc<Cluster>,
    plan: Plan,
    /// A client that follows the leader.
    client: Client,
    /// One client per node.
    nodes: Vec<Client>,
    keys: Vec<tokio::sync::Mutex<Key>>,
    next_value: AtomicU64,
    stopping: AtomicBool,
    counts: Counts,
    failures: Mutex<Vec<String>>,
}

impl Load {
    /// Writes each key once.
    pub(super) async fn fill(cluster: &Arc<Cluster>, plan: Plan) -> Result<Self> {
        let nodes = cluster.ids().map(|id| cluster.client_of(id)).collect::<Result<_>>()?;
        let shared = Arc::new(Shared {
            cluster: Arc::clone(cluster),
            plan,
            client: cluster.client()?,
            nodes,
            keys: (0..plan.keys).map(|_| tokio::sync::Mutex::default()).collect(),
            next_value: AtomicU64::new(1),
            stopping: AtomicBool::new(false),
            counts: Counts::default(),
            failures: Mutex::default(),
        });
        let mut filling = tokio::task::JoinSet::new();
        for writer in 0..WRITERS * 4 {
            let shared = Arc::clone(&shared);
            filling.spawn(async move {
                for number in (writer..plan.keys).step_by(WRITERS as usize * 4) {
                    shared.put(number).await;
                }
            });
        }
        while let Some(filled) = filling.join_next().await {
            filled.context("a writer failed")?;
        }
        Ok(Self { shared, tasks: Vec::new() })
    }

    /// Starts all tasks.
    pub(super) fn start(&mut self, seed: u64) {
        let mut random = Random::new(seed);
        let shared = &self.shared;
        for writer in 0..WRITERS {
            self.tasks.push(tokio::spawn(Arc::clone(shared).write(random.fork(writer))));
        }
        self.tasks.push(tokio::spawn(Arc::clone(shared).read(random.fork(100))));
        self.tasks.push(tokio::spawn(Arc::clone(shared).connect()));
        self.tasks.push(tokio::spawn(Arc::clone(shared).trap()));
        for node in 0..shared.nodes.len() {
            self.tasks.push(tokio::spawn(Arc::clone(shared).watch(node)));
        }
    }

    /// Stops all tasks, after their current calls.
    pub(super) async fn stop(&mut self) -> Result<()> {
        self.shared.stopping.store(true, Ordering::Relaxed);
        for task in self.tasks.drain(..) {
            task.await.context("a task of the load failed")?;
        }
        Ok(())
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// The failures found so far.
    pub(super) fn failures(&self) -> Vec<String> {
        self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads all keys at each node and compares them. Returns the number of acknowledged keys. The
    /// load must be stopped.
    pub(super) async fn check_all(&self) -> Result<u64> {
        let shared = &self.shared;
        for (node, client) in shared.nodes.iter().enumerate() {
            let id = node + 1;
            let mut found = all_keys(client, "key/").await.with_context(|| format!("node {id}"))?;
            for (number, key) in shared.keys.iter().enumerate() {
                let (name, key) = (name(number as u64), key.lock().await);
                let read = found.remove(&name);
                if let Err(why) = check(&shared.plan, number as u64, read.as_ref(), &key) {
                    shared.fail(format!("node {id} at the end: {why}"));
                }
            }
            if let Some(name) = found.keys().next() {
                shared.fail(format!("node {id} has {} keys too many: {name}", found.len()));
            }
            // Only calls that trapped write these keys.
            let trapped = all_keys(client, "trap/").await?;
            if !trapped.is_empty() {
                shared.fail(format!("node {id} has {} keys of calls that trapped", trapped.len()));
            }
        }
        let mut present = 0;
        for key in &shared.keys {
            present += u64::from(key.lock().await.certain.is_some());
        }
        Ok(present)
    }
}

impl Shared {
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    fn fail(&self, what: String) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() < FAILURES_MAX {
            failures.push(what);
        }
    }

    async fn put(&self, number: u64) {
        let mut key = self.keys[number as usize].lock().await;
        let value = self.next_value.fetch_add(1, Ordering::Relaxed);
        let request = put(name(number), value_of(&self.plan, number, value), 0);
        let answer = self.client.kv().put(&request).await.map(drop);
        self.counts.writes.fetch_add(1, Ordering::Relaxed);
        self.note(&mut key, Some(value), answer);
    }

    async fn delete(&self, number: u64) {
        let mut key = self.keys[number as usize].lock().await;
        let answer = self.client.kv().delete(&name(number)).await.map(drop);
        self.counts.deletes.fetch_add(1, Ordering::Relaxed);
        self.note(&mut key, None, answer);
    }

    fn note(&self, key: &mut MutexGuard<'_, Key>, held: Held, answer: Result<(), Error>) {
        match answer {
            Ok(()) => key.certain = held,
            Err(error) if error.outcome_unknown() => {
                key.unknown.push(held);
                self.counts.unknown.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {
                self.counts.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    async fn write(self: Arc<Self>, mut random: Random) {
        let mut turns = turns(self.plan.writes_per_second as f64 / WRITERS as f64);
        while !self.is_stopping() {
            turns.tick().await;
            let number = random.below(self.plan.keys);
            match random.below(100) {
                chance if chance < DELETES => self.delete(number).await,
                chance if chance < DELETES + EXPIRING => {
                    let name = format!("brief/{}", random.below(EXPIRING_KEYS));
                    let request = put(name, vec![b'x'; 100], EXPIRES_AFTER_MS);
                    let _ = self.client.kv().put(&request).await;
                }
                _ => self.put(number).await,
            }
        }
    }

    async fn read(self: Arc<Self>, mut random: Random) {
        let mut turns = turns(READS_PER_SECOND as f64);
        while !self.is_stopping() {
            turns.tick().await;
            let (number, node) =
                (random.below(self.plan.keys), random.below(self.nodes.len() as u64));
            let key = self.keys[number as usize].lock().await;
            let read = match self.nodes[node as usize].kv().get(&name(number)).await {
                Ok(answer) => answer.kv,
                Err(error) if error.is_not_found() => None,
                Err(_) => {
                    self.counts.refused.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
            };
            self.counts.reads.fetch_add(1, Ordering::Relaxed);
            if let Err(why) = check(&self.plan, number, read.as_ref(), &key) {
                self.fail(format!("node {}: {why}", node + 1));
            }
        }
    }

    /// Opens and closes connections. They must not leave descriptors or memory behind.
    async fn connect(self: Arc<Self>) {
        let mut node = 0;
        while !self.is_stopping() {
            sleep(CONNECTION_INTERVAL).await;
            node = node % self.nodes.len() as u64 + 1;
            let Ok(client) = self.cluster.client_of(node) else { continue };
            match client.kv().get(&name(0)).await {
                Err(error) if !error.is_not_found() => &self.counts.refused,
                _ => &self.counts.connections,
            }
            .fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Makes calls that run out of fuel.
    async fn trap(self: Arc<Self>) {
        let operation = |number| {
            let put = put(format!("trap/{number}"), vec![b'x'; 256], 0);
            Operation { operation: Some(operation::Operation::Put(put)) }
        };
        let request =
            BatchRequest { operations: (0..TRAPPING_OPERATIONS).map(operation).collect() };
        while !self.is_stopping() {
            sleep(self.plan.trap_interval).await;
            match self.client.kv().batch(&request).await {
                Ok(_) => self.fail("a call that must run out of fuel succeeded".to_owned()),
                Err(error) if error.trap_kind().is_some() => {}
                Err(_) => {
                    self.counts.refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    async fn watch(self: Arc<Self>, node: usize) {
        let request =
            WatchRequest { prefix: "brief/".to_owned(), initial: true, ..WatchRequest::default() };
        while !self.is_stopping() {
            let ends = Instant::now() + WATCH_TIME;
            let Ok(mut watch) = self.nodes[node].kv().watch(request.clone(), None).await else {
                sleep(CONNECTION_INTERVAL).await;
                continue;
            };
            while Instant::now() < ends && !self.is_stopping() {
                match timeout(Duration::from_secs(1), watch.next()).await {
                    Ok(Ok(_)) => {
                        self.counts.events.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(Err(_)) => break,
                    Err(_) => {}
                }
            }
        }
    }
}

/// Ticks at a rate. Missed ticks are skipped.
fn turns(per_second: f64) -> tokio::time::Interval {
    let mut turns = interval(Duration::from_secs_f64(1.0 / per_second));
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    turns
}

fn name(number: u64) -> String {
    format!("key/{number:08}")
}

fn put(key: String, value: Vec<u8>, ttl_ms: i64) -> PutRequest {
    PutRequest { key, content: Some(put_request::Content::Value(value)), ttl_ms }
}

/// The bytes of a value: its number, followed by bytes derived from the key and the number.
fn value_of(plan: &Plan, key: u64, number: u64) -> Vec<u8> {
    let mut random = Random::new(key ^ number.rotate_left(32));
    let mut bytes = number.to_be_bytes().to_vec();
    while bytes.len() < plan.value_bytes {
        bytes.extend_from_slice(&random.next().to_be_bytes());
    }
    bytes.truncate(plan.value_bytes.max(8));
    bytes
}

/// Compares the content that was read with the known state of the key.
fn check(plan: &Plan, number: u64, read: Option<&KeyValue>, key: &Key) -> Result<()> {
    let held = match read.map(|read| &read.content) {
        None => None,
        Some(Some(key_value::Content::Value(value))) => {
            let first = value.first_chunk().context("a value that is too short")?;
            let found = u64::from_be_bytes(*first);
            ensure!(
                *value == value_of(plan, number, found),
                "{}: the value {found} is torn",
                name(number)
            );
            Some(found)
        }
        Some(_) => bail!("{}: a value that is not bytes", name(number)),
    };
    ensure!(key.allows(held), "{}: holds {held:?}, known is {key:?}", name(number));
    Ok(())
}

/// Reads all keys with a prefix, page by page. Each page is a linearizable read.
async fn all_keys(client: &Client, prefix: &str) -> Result<BTreeMap<String, KeyValue>> {
    let mut request =
        RangeRequest { prefix: prefix.to_owned(), limit: PAGE, ..RangeRequest::default() };
    let mut found = BTreeMap::new();
    loop {
        let page = client.kv().range(&request).await.context("a range cannot be read")?;
        found.extend(page.kvs.into_iter().map(|record| (record.key.clone(), record)));
        if !page.more {
            return Ok(found);
        }
        request.page_token = page.next_page_token;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_of_another_value_than_the_acknowledged_one_is_found() {
        let plan = Plan { value_bytes: 100, ..Plan::default() };
        let record = |key, value| KeyValue {
            key: name(key),
            content: Some(key_value::Content::Value(value_of(&plan, key, value))),
            ..KeyValue::default()
        };
        let key = Key { certain: Some(7), unknown: vec![None, Some(9)] };
        for held in [7, 9] {
            check(&plan, 3, Some(&record(3, held)), &key).unwrap();
        }
        check(&plan, 3, None, &key).unwrap();
        check(&plan, 3, Some(&record(3, 8)), &key).unwrap_err();
        check(&plan, 3, Some(&record(4, 7)), &key).unwrap_err();
        check(&plan, 3, None, &Key { certain: Some(7), unknown: Vec::new() }).unwrap_err();
        check(&plan, 3, Some(&record(3, 7)), &Key::default()).unwrap_err();
        let mut torn = record(3, 7);
        if let Some(key_value::Content::Value(value)) = &mut torn.content {
            value[50] ^= 1;
        }
        let error = check(&plan, 3, Some(&torn), &key).unwrap_err();
        assert!(error.to_string().contains("torn"), "{error}");
    }
}
