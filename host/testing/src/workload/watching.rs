//! Watches of all keys, one node each, through the loss of nodes.

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

/// How long a watch waits before it asks its node again.
const RETRY: Duration = Duration::from_millis(100);
/// The key whose put ends the watches.
const MARK: &str = "mark";
/// Keys that begin with it are put by faults. Their values are not of the workload, and watches leave them out.
pub const KEYS_OF_FAULTS: &str = "fault-";

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The log index of the command.
    pub index: u64,
    /// The key.
    pub key: String,
    /// The key after a put; `None` after a delete.
    pub put: Option<Seen>,
}

/// The events of one watch without a gap.
#[derive(Clone, Debug, Default)]
pub struct Segment {
    /// It has all changes after this index.
    pub after: u64,
    /// The changes, as they came.
    pub changes: Vec<Change>,
}

/// The events of a watcher of one node. A new segment begins where the node did not keep what came before.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    /// The node.
    pub node: u64,
    /// In the order in which they were seen.
    pub segments: Vec<Segment>,
    /// How often a stream was resumed.
    pub resumed: u64,
}

pub(super) struct Watcher {
    node: u64,
    seen: Arc<Mutex<Watched>>,
    task: JoinHandle<()>,
}

/// Puts a key that no client uses; the index.
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
                    // A stream that ends, for whatever reason, is resumed after the last message.
                    watch(&client, &seen).await;
                    sleep(RETRY).await;
                }
            }
        });
        Ok(Self { node, seen, task })
    }

    /// Waits until the watch has come to an index, and ends it.
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
    // All of the last index again: more than one key may have changed there.
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

/// The node does not keep what came after the last message any more: another segment.
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
            // The same as before the stream was lost: the invariants would find a difference among the nodes.
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
