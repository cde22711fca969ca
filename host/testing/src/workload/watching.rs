//! Watches of all keys at one node each. They continue through the loss of nodes.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Result, bail};
use conclave_client::{
    CallOptions, Client, Code, Subscription,
    proto::kv::{WatchRequest, WatchResponse, watch_response::Kind},
};
use prost::Message as _;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::call;
use crate::{
    cluster::{Cluster, PATIENCE},
    history::{Kind as OperationKind, Outcome, Request, Seen, Step},
};

/// Pause before a watch is retried.
const RETRY: Duration = Duration::from_millis(100);
/// The key whose put ends the watches.
const MARK: &str = "mark";
/// Prefix of keys that faults put. Their values are not values of the workload, so watches ignore them.
pub const KEYS_OF_FAULTS: &str = "fault-";

/// A change of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The log index of the command.
    pub index: u64,
    /// The key.
    pub key: String,
    /// The key's content after a put. `None` after a delete.
    pub put: Option<Seen>,
}

/// The events of a watch, without a gap.
#[derive(Clone, Debug, Default)]
pub struct Segment {
    /// The index before the first change. The segment has all changes after it.
    pub after: u64,
    /// The changes, in the order of their arrival.
    pub changes: Vec<Change>,
}

/// The events of a watcher of one node. A new segment begins if the node no longer has the events
/// after the last one.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    /// The node.
    pub node: u64,
    /// The segments, in the order of their arrival.
    pub segments: Vec<Segment>,
    /// Number of times that a stream was resumed.
    pub resumed: u64,
}

pub(super) struct Watcher {
    node: u64,
    seen: Arc<Mutex<Watched>>,
    task: JoinHandle<()>,
}

/// Puts a key that no client uses. Returns its index.
pub(super) async fn mark(client: &Client) -> Result<u64> {
    let request = Request::of(Step::Put(MARK.into(), 0));
    match call(client, OperationKind::Write, &request, PATIENCE).await {
        Outcome::Done(answer) => Ok(answer.index),
        outcome => bail!("the last put: {outcome}"),
    }
}

impl Watcher {
    pub(super) fn start(cluster: &Cluster, node: u64) -> Result<Self> {
        let endpoint = cluster.node(node).client.clone();
        let client = Client::builder().endpoints([endpoint]).follow_leader(false);
        let client = client.deadline(Duration::from_secs(2)).build()?;
        let seen = Arc::new(Mutex::new(Watched { node, ..Watched::default() }));
        let task = tokio::spawn({
            let seen = Arc::clone(&seen);
            async move {
                loop {
                    // A stream that ends for any reason is resumed after the last message.
                    watch(&client, &seen).await;
                    sleep(RETRY).await;
                }
            }
        });
        Ok(Self { node, seen, task })
    }

    /// Waits until the watch has reached an index, and ends it.
    pub(super) async fn stop(self, index: u64, patience: Duration) -> Result<Watched> {
        let deadline = Instant::now() + patience;
        loop {
            let last = {
                let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                last_index(&seen).unwrap_or(0)
            };
            if last >= index {
                break;
            }
            if Instant::now() > deadline {
                bail!("the watch at node {} has come to index {last}, not to {index}", self.node);
            }
            sleep(Duration::from_millis(20)).await;
        }
        self.task.abort();
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(seen.clone())
    }
}

fn last_index(seen: &Watched) -> Option<u64> {
    let segment = seen.segments.last()?;
    Some(segment.changes.last().map_or(segment.after, |change| change.index))
}

async fn watch(client: &Client, seen: &Mutex<Watched>) {
    let lock = || seen.lock().unwrap_or_else(PoisonError::into_inner);
    // Requests all changes of the last index again, because several keys may have changed there.
    let (resume, again) = {
        let mut seen = lock();
        match seen.segments.last() {
            Some(segment) => {
                let last = segment.changes.last().map(|change| change.index);
                let count = segment.changes.iter().filter(|change| Some(change.index) == last);
                let place = last.map_or((segment.after, 0), |last| (last - 1, count.count()));
                seen.resumed += 1;
                (Some(place.0), place.1)
            }
            None => (None, 0),
        }
    };
    let request = WatchRequest::default().encode_to_vec();
    let options = CallOptions::read();
    let stream = client.subscribe_raw("kv.v1.KV/Watch", request, resume, &options).await;
    let mut stream = match stream {
        Ok(stream) => stream,
        Err(error) => {
            if error.code() == Code::OutOfRange && resume.is_some() {
                begin(client, &lock).await;
            }
            return;
        }
    };
    if resume.is_none() {
        let Some(after) = stream.index() else { return };
        lock().segments.push(Segment { after, changes: Vec::new() });
    }
    follow(&mut stream, &lock, again).await;
}

/// Begins another segment, because the node no longer has the events after the last message.
async fn begin<'a>(client: &Client, lock: &impl Fn() -> std::sync::MutexGuard<'a, Watched>) {
    let request = WatchRequest::default().encode_to_vec();
    let options = CallOptions::read();
    let stream = client.subscribe_raw("kv.v1.KV/Watch", request, None, &options).await;
    let Ok(mut stream) = stream else { return };
    let Some(after) = stream.index() else { return };
    lock().segments.push(Segment { after, changes: Vec::new() });
    follow(&mut stream, lock, 0).await;
}

async fn follow<'a>(
    stream: &mut Subscription,
    lock: &impl Fn() -> std::sync::MutexGuard<'a, Watched>,
    mut again: usize,
) {
    while let Ok(Some(message)) = stream.next().await {
        let Ok(message) = WatchResponse::decode(message) else { return };
        if again > 0 {
            // This change was received before the stream was lost. The invariants would detect a
            // difference among the nodes.
            again -= 1;
            continue;
        }
        let Some(record) = &message.kv else { continue };
        if record.key.starts_with(KEYS_OF_FAULTS) {
            continue;
        }
        let put = match message.kind() {
            Kind::Put => call::seen(record).ok(),
            Kind::Delete => None,
            Kind::Expire | Kind::Initial | Kind::Ready | Kind::Relist => continue,
        };
        let change = Change { index: message.index, key: record.key.clone(), put };
        if let Some(segment) = lock().segments.last_mut() {
            segment.changes.push(change);
        }
    }
}
