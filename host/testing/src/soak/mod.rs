//! A soak: a cluster under a steady load for a long time, whose resources must stay bounded.
//!
//! Three nodes with small thresholds, so that many snapshots are taken and the log is purged often, serve writes, deletes,
//! expiring keys, reads, watches, connections that come and go, and calls that trap. Every few seconds the
//! resources of each node are sampled ([`sample`]). Values that are read are compared with the acknowledged ones during the
//! run, and all of them at each node at its end. [`judge`](mod@judge) says whether memory, descriptors and disk are bounded;
//! [`plot`] and [`page`] show it.
//!
//! For people: `cargo xtask soak --help`.

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

/// A large batch takes more than this, everything else less.
pub const FUEL_PER_CALL: u64 = 1_000_000;
/// A page of a range takes less.
const FUEL_PER_QUERY: u64 = 1_000_000_000;
/// A snapshot is taken after so many bytes of entries.
pub const SNAPSHOT_BYTES: u64 = 16 << 20;
/// The log before the snapshot is kept up to this, as by default.
pub const KEEP_BYTES: u64 = 64 << 20;
/// Entries are many and not decisive: bytes are.
const ENTRIES: u64 = 1_000_000;
/// The states of the nodes are compared in this interval and at the end.
const VERIFY_INTERVAL: Duration = Duration::from_secs(300);
const VERIFY_TIME_MAX: Duration = Duration::from_secs(60);
/// How long the nodes may take to apply the same log after the load.
const CATCH_UP: Duration = Duration::from_secs(60);
/// A run is ended when a node's data directory takes more than this.
const DISK_BYTES_MAX: u64 = 8 << 30;

/// The settings of a run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How long the load runs.
    pub time: Duration,
    /// The number of keys.
    pub keys: u64,
    /// Bytes per value.
    pub value_bytes: usize,
    /// Puts and deletes per second.
    pub writes_per_second: u64,
    /// The pause between two calls that trap.
    pub trap_interval: Duration,
    /// The pause between two samples.
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
    /// Its settings.
    pub plan: Plan,
    /// All samples.
    pub samples: Vec<Sample>,
    /// Of the samples, with what the clients and the nodes found.
    pub verdict: Verdict,
    /// Name and value of what was done.
    pub counts: Vec<(&'static str, u64)>,
}

/// Runs a cluster of this binary and judges it. `progress` is told of each sample.
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

/// Samples until the time is over.
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
            // Too busy now: the next attempt counts.
            if have_equal_states(cluster).await == Some(false) {
                failures.push(format!("the nodes' states differ after {:?}", began.elapsed()));
            }
            verify_at = Instant::now() + VERIFY_INTERVAL;
        }
    }
    Ok((samples, failures))
}

/// All acknowledged keys at each node, equal states, and no failure of a node. Returns the number of keys.
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

/// Whether all nodes have the same state after one entry. `None`: a node could not be asked in time.
async fn have_equal_states(cluster: &Cluster) -> Option<bool> {
    let verify = async { cluster.client()?.verify().await.map_err(anyhow::Error::from) };
    let answer = timeout(VERIFY_TIME_MAX, verify).await.ok()?.ok()?;
    let all = answer.nodes.iter().all(|node| node.reason.is_empty());
    all.then_some(answer.equal)
}
