//! Measures the duration of restarts, and the time a node is without a standby after a trap.
//!
//! Restarts are measured at one node of three while the others serve, or with a large component at
//! the only node. The node is stopped in an orderly way. The time is measured from the start of its
//! process to the first linearizable read that it answers.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use conclave_client::{
    CallOptions, Client,
    proto::kv::{BatchRequest, Operation, PutRequest, operation, put_request},
};
use tokio::time::{Instant, sleep};

use crate::{
    cluster::{Cluster, Options, eventually},
    soak::sample::{metric, metrics},
};

/// Operations per batch: the maximum of the key-value store.
const BATCH: u64 = 128;
/// Number of concurrent batches while keys are written.
const WRITERS: u64 = 8;
/// With this little fuel, a batch of puts traps, but a batch of [`SMALL_BATCH`] puts does not.
const TRAPPING_FUEL: &str = "1000000";
const SMALL_BATCH: u64 = 16;
/// Pause between two attempts to read, and timeout of one attempt.
const POLL: Duration = Duration::from_millis(5);
const ATTEMPT_TIME_MAX: Duration = Duration::from_millis(500);
/// Generous because three nodes may compile a component of 20 MB on few processors.
const START_TIME_MAX: Duration = Duration::from_secs(1800);
/// Generous because the trap limiter delays each trap after earlier ones.
const TRAP_TIME_MAX: Duration = Duration::from_secs(120);

/// A linearizable read that every node can answer immediately: its method and message.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    method: &'static str,
    message: &'static [u8],
}

/// A read of a key that does not exist.
const KEY: Read = Read { method: "kv.v1.KV/Get", message: b"\x0a\x04none" };
/// A read of a limit of `examples/quota` that does not exist.
const LIMIT: Read = Read { method: "quota.v1.Quota/Get", message: b"\x0a\x01a\x12\x01b" };

/// The measurements of one cluster.
#[derive(Debug)]
pub struct Restarts {
    /// Time from the start of all processes to the first read of the first node, with empty directories.
    pub first: Duration,
    /// Measurements from the start of one process to its first read.
    pub again: Vec<Restart>,
}

/// One restart.
#[derive(Clone, Copy, Debug)]
pub struct Restart {
    /// Elapsed time.
    pub time: Duration,
    /// Processor time of the node until then. It depends less on other load of the host.
    pub processor_time: Duration,
}

/// Measures restarts with this number of small keys.
pub async fn with_keys(binary: &Path, keys: u64, rounds: u32) -> Result<Restarts> {
    measure(Options::new(binary), KEY, keys, rounds).await
}

/// Measures restarts with `examples/quota`, built to this component.
pub async fn with_component(binary: &Path, component: &Path, rounds: u32) -> Result<Restarts> {
    // With three nodes on few processors, the nodes would delay each other's compilation.
    let mut options = Options::new(binary).nodes(1);
    options.component = Some(component.to_owned());
    measure(options, LIMIT, 0, rounds).await
}

async fn measure(options: Options, read: Read, keys: u64, rounds: u32) -> Result<Restarts> {
    let cluster = Cluster::prepared(options).await?;
    cluster.start_all()?;
    let first = first_read(&cluster, 1, read).await?;
    cluster.leader_within(START_TIME_MAX).await?;
    for id in cluster.ids() {
        first_read(&cluster, id, read).await?;
    }
    write_keys(&cluster, keys, BATCH).await?;
    if keys > 0 {
        // Then each restart reads a snapshot and no entries of the log.
        for id in cluster.ids() {
            let client = Client::builder().endpoints([cluster.node(id).client.clone()]);
            client.follow_leader(false).deadline(START_TIME_MAX).build()?.snapshot().await?;
        }
    }
    let mut again = Vec::new();
    for round in 0..rounds {
        let id = u64::from(round) % cluster.nodes.len() as u64 + 1;
        cluster.stop(id).await?;
        if cluster.nodes.len() > 1 {
            cluster.leader().await?;
        }
        cluster.start_node(id)?;
        let time = first_read(&cluster, id, read).await?;
        let processor_time = processor_time(cluster.pid(id).context("the node does not run")?)?;
        again.push(Restart { time, processor_time });
    }
    Ok(Restarts { first, again })
}

/// Waits until a node answers a linearizable read. Returns the time that took.
async fn first_read(cluster: &Cluster, id: u64, read: Read) -> Result<Duration> {
    let began = Instant::now();
    let options = CallOptions::read().deadline(ATTEMPT_TIME_MAX);
    loop {
        cluster.check_running(id)?;
        // Each attempt uses a new client, because a client waits before it connects to a closed port again.
        let client = cluster.client_of(id)?;
        match client.call_raw_with(read.method, read.message, &options).await {
            Err(error) if !error.is_not_found() => {
                ensure!(began.elapsed() < START_TIME_MAX, "node {id} does not serve: {error}");
            }
            _ => return Ok(began.elapsed()),
        }
        sleep(POLL).await;
    }
}

/// The processor time that a process has used.
fn processor_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the name in parentheses and may contain any character, so the fields are
    // counted after it.
    let fields = stat.rsplit_once(')').context("a process without a name")?.1;
    let ticks = fields.split_ascii_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let ticks = ticks.sum::<Result<u64, _>>()?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// Writes keys of six bytes with values of four bytes, so that a million keys fit into the store.
async fn write_keys(cluster: &Cluster, keys: u64, batch: u64) -> Result<()> {
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let client = cluster.client()?;
        writers.spawn(async move {
            let mut from = writer * batch;
            while from < keys {
                let numbers = from..keys.min(from + batch);
                client.kv().batch(&puts(numbers)).await.context("cannot write the keys")?;
                from += WRITERS * batch;
            }
            anyhow::Ok(())
        });
    }
    while let Some(written) = writers.join_next().await {
        written??;
    }
    Ok(())
}

fn puts(numbers: std::ops::Range<u64>) -> BatchRequest {
    let put = |number: u64| PutRequest {
        key: format!("{number:06x}"),
        content: Some(put_request::Content::Value(b"1234".to_vec())),
        ..PutRequest::default()
    };
    let operation = |number| Operation { operation: Some(operation::Operation::Put(put(number))) };
    BatchRequest { operations: numbers.map(operation).collect() }
}

/// Measures the time from the answer to a trapped call until each node has a serving standby again.
/// Returns the times of all nodes in all rounds, with this number of keys.
pub async fn after_traps(binary: &Path, keys: u64, rounds: u32) -> Result<Vec<Duration>> {
    let options = Options::new(binary).flag("--fuel-per-call").flag(TRAPPING_FUEL);
    let cluster = Cluster::start(options).await?;
    write_keys(&cluster, keys, SMALL_BATCH).await?;
    let client = cluster.client()?;
    let mut times = Vec::new();
    for _ in 0..rounds {
        let mut waiting = Vec::new();
        for id in cluster.ids() {
            waiting.push((id, builds(&cluster, id).await?.0));
        }
        // The trap limiter delays the caller for nine times as long as the standby took to build.
        eventually("a call traps", TRAP_TIME_MAX, async || {
            match client.kv().batch(&puts(0..BATCH)).await {
                Err(error) if error.trap_kind().is_some() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await?;
        let trapped = Instant::now();
        while !waiting.is_empty() {
            ensure!(trapped.elapsed() < TRAP_TIME_MAX, "no standby at {waiting:?}");
            let mut still = Vec::new();
            for (id, before) in waiting {
                // A follower may not have applied the entry yet.
                match builds(&cluster, id).await? {
                    (now, true) if now > before => times.push(trapped.elapsed()),
                    _ => still.push((id, before)),
                }
            }
            waiting = still;
            sleep(POLL).await;
        }
    }
    Ok(times)
}

/// The number of standby instances that a node has built, and whether one of them serves.
async fn builds(cluster: &Cluster, id: u64) -> Result<(u64, bool)> {
    let page = metrics(&cluster.node(id).admin).await?;
    let metric = |name| metric(&page, name).with_context(|| format!("no metric {name}"));
    Ok((metric("conclave_standby_builds_total")?, metric("conclave_standby")? == 1))
}
