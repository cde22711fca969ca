//! Hostile clients beside ordinary ones.
//!
//! Three nodes serve sixteen ordinary clients. Meanwhile, hostile clients hold connections,
//! streams, bodies and answers open, do not read, cancel calls, and send garbage ([`attack`]). The
//! ordinary calls must stay fast and succeed. The probes must be answered, and the nodes must stay
//! within their limits of memory and descriptors.
//!
//! To run it: `cargo xtask hostile --help`.

pub mod attack;
mod ordinary;

use std::{
    fmt::Write as _,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Result, ensure};
use tokio::time::{Instant, sleep};

use self::{attack::Attack, ordinary::Ordinary};
use crate::{
    cluster::{Cluster, Options},
    soak::sample::Sample,
};

/// Maximum 99th percentile of the durations of ordinary calls.
pub const P99_MAX: Duration = Duration::from_millis(100);
/// Maximum resident memory of one node.
pub const RESIDENT_BYTES_MAX: u64 = 2 << 30;
const SAMPLE_INTERVAL: Duration = Duration::from_secs(2);
/// Duration of the ordinary load before the attacks, for comparison.
const CALM: Duration = Duration::from_secs(10);
/// Time that the nodes have to recover after the attacks.
const RECOVERY: Duration = Duration::from_secs(60);

/// The settings of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Duration of the attacks.
    pub time: Duration,
    /// Number of ordinary clients.
    pub clients: u64,
    /// The attacks, which run at the same time.
    pub attacks: Vec<Attack>,
    /// The seed of the random bytes.
    pub seed: u64,
}

/// The outcome of a run.
#[derive(Debug)]
pub struct Run {
    /// The failures. Empty if the run passes.
    pub failures: Vec<String>,
    /// A summary for display.
    pub report: String,
}

/// Runs a cluster of this binary under attack.
///
/// # Errors
/// Fails if the cluster or the attackers cannot be started, or if a node has ended.
pub async fn run(binary: &Path, plan: &Plan) -> Result<Run> {
    let files = rustix::process::Resource::Nofile;
    let limit = rustix::process::getrlimit(files);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(files, raised)?;

    let cluster = Arc::new(Cluster::start(Options::new(binary)).await?);
    attack::fill(&cluster).await?;
    let calm = {
        let ordinary = Ordinary::start(&cluster, plan.clients)?;
        sleep(CALM).await;
        ordinary.stop().await?
    };
    let ordinary = Ordinary::start(&cluster, plan.clients)?;
    let attackers = attack::start(&cluster, &plan.attacks, plan.seed);
    let (mut resident, mut descriptors) = (0, 0);
    let began = Instant::now();
    while began.elapsed() < plan.time {
        sleep(SAMPLE_INTERVAL).await;
        cluster.ids().try_for_each(|id| cluster.check_running(id))?;
        let sample = Sample::take(&cluster, began.elapsed()).await?;
        for node in &sample.nodes {
            resident = resident.max(node.resident_bytes);
            descriptors = descriptors.max(node.descriptors);
        }
    }
    let done = attackers.stop().await;
    let measured = ordinary.stop().await?;
    let ids: Vec<u64> = cluster.ids().collect();
    cluster.caught_up(&ids, RECOVERY).await?;

    let mut failures = measured.failures.clone();
    for id in ids {
        failures.extend(cluster.failures_of(id));
    }
    if measured.p99() > P99_MAX {
        failures
            .push(format!("the 99th percentile is {:?}, more than {P99_MAX:?}", measured.p99()));
    }
    if resident > RESIDENT_BYTES_MAX {
        failures.push(format!("a node took {resident} bytes of memory"));
    }
    ensure!(measured.calls() > 0, "no ordinary call was made");
    let mut report = format!("ordinary calls alone: {calm}\nunder attack: {measured}\n");
    let _ = writeln!(
        report,
        "a node took at most {} MiB of memory and {descriptors} descriptors",
        resident >> 20
    );
    for (attack, count) in plan.attacks.iter().zip(done) {
        let count = count.load(Ordering::Relaxed);
        let _ = writeln!(report, "{}: {count}", attack.describe());
    }
    Ok(Run { failures, report })
}
