//! A soak test: a long run under steady load in which the use of resources must stay bounded.
//!
//! Three nodes serve writes, deletes, expiring keys, reads, watches, short-lived connections, and
//! calls that trap. Their thresholds are small, so snapshots and purges of the log are frequent.
//! The resources of each node are sampled every few seconds ([`sample`]). Values that are read are
//! compared with the acknowledged ones, and at the end all values are compared at each node.
//! [`judge`](mod@judge) decides whether memory, descriptors and disk space are bounded. [`plot`]
//! and [`page`] show the results.
//!
//! To run it: `cargo xtask soak --help`.

pub mod judge;
mod load;
pub mod page;
pub mod plot;
pub mod sample;

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::time::{Instant, sleep_until, timeout};

use self::{
    judge::{Limits, Verdict, judge},
    load::Load,
    sample::Sample,
};
use crate::cluster::{Cluster, Options, eventually};

/// Less than a large batch needs, and more than every other call needs.
pub const FUEL_PER_CALL: u64 = 1_000_000;
/// More than a page of a range needs.
const FUEL_PER_QUERY: u64 = 1_000_000_000;
/// Bytes of entries after which a snapshot is taken.
pub const SNAPSHOT_BYTES: u64 = 16 << 20;
/// Bytes of the log that are kept before the snapshot, as by default.
pub const KEEP_BYTES: u64 = 64 << 20;
/// A high limit, so that the limits in bytes decide.
const ENTRIES: u64 = 1_000_000;
/// Interval between comparisons of the nodes' states. They are also compared at the end.
const VERIFY_INTERVAL: Duration = Duration::from_secs(300);
const VERIFY_TIME_MAX: Duration = Duration::from_secs(60);
/// Time that the nodes have to apply the same log after the load.
const CATCH_UP: Duration = Duration::from_secs(60);
/// Disk space of one node at which the run is aborted.
const DISK_BYTES_MAX: u64 = 8 << 30;

/// The settings of a run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Duration of the load.
    pub time: Duration,
    /// The number of keys.
    pub keys: u64,
    /// Bytes per value.
    pub value_bytes: usize,
    /// Puts and deletes per second.
    pub writes_per_second: u64,
    /// Pause between two calls that trap.
    pub trap_interval: Duration,
    /// Pause between two samples.
    pub sample_interval: Duration,
    /// The seed of the load.
    pub seed: u64,
    /// The limits of each node.
    pub limits: Limits,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(3600),
            keys: 8_000,
            value_bytes: 4096,
            writes_per_second: 120,
            trap_interval: Duration::from_secs(10),
            sample_interval: Duration::from_secs(5),
            seed: 1,
            limits: Limits { resident_bytes: 1 << 30, descriptors: 256 },
        }
    }
}

/// The outcome of a run.
#[derive(Debug)]
pub struct Run {
    /// The settings of the run.
    pub plan: Plan,
    /// All samples.
    pub samples: Vec<Sample>,
    /// The verdict on the samples, and the failures that clients and nodes reported.
    pub verdict: Verdict,
    /// Names and values of the counters.
    pub counts: Vec<(&'static str, u64)>,
}

/// Runs a cluster of this binary and judges it. Passes each sample to `progress`.
pub async fn run(
    binary: &std::path::Path,
    parent: Option<PathBuf>,
    plan: Plan,
    mut progress: impl FnMut(&Sample),
) -> Result<Run> {
    let mut options = Options::new(binary);
    options.parent = parent;
    for (flag, value) in [
        ("--fuel-per-call", FUEL_PER_CALL),
        ("--fuel-per-query", FUEL_PER_QUERY),
        ("--snapshot-bytes", SNAPSHOT_BYTES),
        ("--snapshot-entries", ENTRIES),
        ("--keep-bytes", KEEP_BYTES),
        ("--keep-entries", ENTRIES),
    ] {
        options = options.flag(flag).flag(value.to_string());
    }
    let cluster = Arc::new(Cluster::start(options).await?);
    let mut load = Load::fill(&cluster, plan).await?;
    load.start(plan.seed);
    let observed = observe(&cluster, &load, plan, &mut progress).await;
    load.stop().await?;
    let (samples, mut failures) = observed?;
    let present = check_at_the_end(&cluster, &load, &mut failures).await?;
    failures.extend(load.failures());
    let mut verdict = judge(&samples, plan.limits);
    verdict.failures.extend(failures);
    let counts = load.counts();
    let of = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    let counts = vec![
        ("puts", of(&counts.writes)),
        ("deletes", of(&counts.deletes)),
        ("reads that were compared", of(&counts.reads)),
        ("writes with an unknown outcome", of(&counts.unknown)),
        ("calls that were refused", of(&counts.refused)),
        ("messages of watches", of(&counts.events)),
        ("connections that came and went", of(&counts.connections)),
        ("keys compared at each node at the end", plan.keys),
        ("keys present at the end", present),
    ];
    Ok(Run { plan, samples, verdict, counts })
}

/// Takes samples until the load time is over.
async fn observe(
    cluster: &Cluster,
    load: &Load,
    plan: Plan,
    progress: &mut impl FnMut(&Sample),
) -> Result<(Vec<Sample>, Vec<String>)> {
    let began = Instant::now();
    let (mut samples, mut failures) = (Vec::new(), Vec::new());
    let mut verify_at = began + VERIFY_INTERVAL;
    let mut next = began;
    while began.elapsed() < plan.time {
        sleep_until(next).await;
        next = (next + plan.sample_interval).max(Instant::now());
        cluster.ids().try_for_each(|id| cluster.check_running(id))?;
        let sample = Sample::take(cluster, began.elapsed()).await?;
        progress(&sample);
        for (usage, id) in sample.nodes.iter().zip(cluster.ids()) {
            ensure!(usage.divergences == 0, "node {id} has diverged\n{}", cluster.log_tail(id));
            let disk = usage.disk_bytes();
            ensure!(disk <= DISK_BYTES_MAX, "node {id} takes {disk} bytes on the disk");
        }
        samples.push(sample);
        if let Some(failure) = load.failures().first() {
            bail!("after {:?}: {failure}", began.elapsed());
        }
        if Instant::now() >= verify_at {
            // `None` means that a node was too busy. The next attempt compares again.
            if have_equal_states(cluster).await == Some(false) {
                failures.push(format!("the nodes' states differ after {:?}", began.elapsed()));
            }
            verify_at = Instant::now() + VERIFY_INTERVAL;
        }
    }
    Ok((samples, failures))
}

/// Checks that each node has all acknowledged keys, that the states are equal, and that no node
/// failed. Returns the number of keys.
async fn check_at_the_end(
    cluster: &Cluster,
    load: &Load,
    failures: &mut Vec<String>,
) -> Result<u64> {
    let ids: Vec<u64> = cluster.ids().collect();
    cluster.caught_up(&ids, CATCH_UP).await?;
    let present = load.check_all().await.context("the keys cannot be read at the end")?;
    eventually("the nodes' states are compared", CATCH_UP, async || {
        match have_equal_states(cluster).await {
            Some(true) => Ok(()),
            Some(false) => Err("they differ".to_owned()),
            None => Err("not all nodes answered".to_owned()),
        }
    })
    .await?;
    for id in ids {
        failures.extend(cluster.failures_of(id));
        let status = cluster.status_of(id).await?;
        let this = status.nodes.iter().find(|node| node.id == id);
        let this = this.with_context(|| format!("node {id} is not in its status"))?;
        if !this.fatal_error.is_empty() || this.divergences > 0 {
            failures.push(format!("node {id}: {} {}", this.fatal_error, this.divergence));
        }
        failures.extend(this.alarms.iter().map(|alarm| format!("node {id}: {alarm}")));
    }
    Ok(present)
}

/// Compares the states of all nodes after one entry. `None` if a node did not answer in time.
async fn have_equal_states(cluster: &Cluster) -> Option<bool> {
    let verify = async { cluster.client()?.verify().await.map_err(anyhow::Error::from) };
    let answer = timeout(VERIFY_TIME_MAX, verify).await.ok()?.ok()?;
    let all = answer.nodes.iter().all(|node| node.reason.is_empty());
    all.then_some(answer.equal)
}
