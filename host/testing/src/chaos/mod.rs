//! One run: a cluster, clients and faults, followed by the checks.
//!
//! After the last fault everything is repaired. The cluster must then serve within [`RECOVERY`],
//! its nodes must agree, and the history must be explained: see [`Run::violations`].

mod faults;
mod replays;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::time::{sleep_until, timeout};

use self::faults::Nemesis;
use crate::{
    clock::Clock,
    cluster::{Cluster, Options, eventually},
    disk::Disk,
    history::{Operation, Outcome, Recorder},
    invariants::{self, Violations},
    linearizability,
    random::Random,
    schedule::{Available, Event, Fault, Schedule},
    workload::{Plan, Watched, Workload},
};

pub use self::faults::Happened;

/// Time that the cluster has to serve and to agree after the last fault.
pub const RECOVERY: Duration = Duration::from_secs(30);

/// The cluster does not serve after the last fault.
pub const NO_RECOVERY: &str = "the cluster does not recover after the last fault";
/// The history is not linearizable.
pub const NOT_LINEARIZABLE: &str = "no order of the operations explains the answers";
/// A node ended by itself or panicked.
pub const FAILURE: &str = "a node has failed";
/// The nodes' states differ.
pub const DISAGREEMENT: &str = "the nodes do not agree";

/// The settings of runs.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The program `conclave`.
    pub binary: PathBuf,
    /// Another component that serves the same methods, for upgrades.
    pub component: Option<PathBuf>,
    /// Directory for the clusters' files. `None` for the directory of temporary files.
    pub parent: Option<PathBuf>,
    /// Whether the logs of the nodes are replayed and compared at the end.
    pub replays: bool,
    /// The behaviour of the clients. `None` to derive it from the seed.
    pub plan: Option<Plan>,
}

impl Setup {
    /// Creates a setup with the defaults.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self { binary: binary.into(), component: None, parent: None, replays: true, plan: None }
    }

    /// Tries which faults this host supports.
    pub fn available(&self) -> Available {
        let dir = tempfile::TempDir::new();
        let tried = dir.map(|dir| {
            let disk = Disk::mount(&dir.path().join("image"), &dir.path().join("disk"));
            let hangs = disk.and_then(|disk| {
                disk.hang()?;
                disk.work()
            });
            let clock = Clock::new(&dir.path().join("clock"));
            (hangs.is_ok(), matches!(clock, Ok(Some(_))))
        });
        let (disks, clocks) = tried.unwrap_or_default();
        Available { disks, clocks, components: self.component.is_some() }
    }
}

/// A finished run.
pub struct Run {
    /// The seed of the clients.
    pub seed: u64,
    /// The planned schedule.
    pub schedule: Schedule,
    /// The faults that happened.
    pub faults: Vec<Happened>,
    /// The history of the clients.
    pub history: Vec<Operation>,
    /// The events of the watches.
    pub watches: Vec<Watched>,
    /// The violations.
    pub violations: Violations,
    /// The verdict of the linearizability checker.
    pub linearizability: linearizability::Report,
    /// Counters of the run.
    pub figures: Figures,
    /// The last lines of each node's log, if there are violations.
    pub logs: Vec<(u64, String)>,
}

/// Counters of one or more runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Number of runs.
    pub runs: u64,
    /// Number of operations of clients.
    pub operations: u64,
    /// Number of operations with an answer.
    pub answered: u64,
    /// Number of operations that failed without effect.
    pub failed: u64,
    /// Number of operations whose outcome is unknown.
    pub unknown: u64,
    /// Number of faults.
    pub faults: u64,
    /// Number of changes that watches received.
    pub changes: u64,
    /// Number of resumed watches.
    pub resumed: u64,
    /// Number of groups of keys that were checked for linearizability.
    pub groups: u64,
    /// Number of log entries that were compared among the nodes.
    pub entries: u64,
    /// The longest time without an acknowledged write, in milliseconds.
    pub longest_gap_ms: u64,
}

impl Figures {
    /// Adds the counters of another run.
    pub fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.operations += other.operations;
        self.answered += other.answered;
        self.failed += other.failed;
        self.unknown += other.unknown;
        self.faults += other.faults;
        self.changes += other.changes;
        self.resumed += other.resumed;
        self.groups += other.groups;
        self.entries += other.entries;
        self.longest_gap_ms = self.longest_gap_ms.max(other.longest_gap_ms);
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} operations ({} answered, {} failed, {} unknown), {} faults, {} watched changes, {} resumed watches, \
             {} groups of keys checked, {} log entries compared, longest gap between writes {} ms",
            self.operations,
            self.answered,
            self.failed,
            self.unknown,
            self.faults,
            self.changes,
            self.resumed,
            self.groups,
            self.entries,
            self.longest_gap_ms,
        )
    }
}

/// Runs a schedule.
///
/// # Errors
/// Fails if the harness failed: for example, if a process could not be started.
pub async fn run(setup: &Setup, schedule: &Schedule, seed: u64) -> Result<Run> {
    let mut random = Random::new(seed ^ 0x636c_6965_6e74);
    let cluster = Cluster::prepared(options(setup, schedule)).await?;
    let nemesis = Nemesis::prepare(cluster, setup, schedule)?;
    let cluster = Arc::clone(&nemesis.cluster);
    cluster.start_all()?;
    cluster.serving().await?;
    let recorder = Arc::new(Recorder::default());
    let plan = setup.plan.unwrap_or_else(|| Plan::generate(seed));
    let mut workload = Workload::start(&cluster, Arc::clone(&recorder), plan, &mut random).await?;
    let faults = happen(&nemesis, schedule, &recorder).await;

    let mut violations = Violations::default();
    nemesis.repair()?;
    let recovered = recovered(&cluster).await;
    workload.stop().await?;
    let mut watches = Vec::new();
    let mut entries = 0;
    if let Err(error) = recovered {
        violations.add(NO_RECOVERY, format!("{error:#}"));
    } else {
        workload.read_everything().await;
        match workload.stop_watching(RECOVERY).await {
            Ok(seen) => watches = seen,
            Err(error) => violations.add(NO_RECOVERY, format!("{error:#}")),
        }
        if let Err(error) = agree(&cluster, schedule).await {
            violations.add(DISAGREEMENT, format!("{error:#}"));
        }
    }
    let history = recorder.operations();
    if setup.replays && violations.is_empty() {
        entries = replays::compare(&cluster, &history, &mut violations).await?;
    }
    for failure in cluster.ids().flat_map(|id| cluster.failures_of(id)) {
        violations.add(FAILURE, failure);
    }
    violations.extend(invariants::check_answers(&history));
    violations.extend(invariants::check_watches(&history, &watches));
    let checked = history.clone();
    let checking = tokio::task::spawn_blocking(move || linearizability::check(&checked));
    let linearizability = checking.await?;
    for violation in &linearizability.violations {
        violations.add(NOT_LINEARIZABLE, explain(violation));
    }
    for keys in &linearizability.undecided {
        violations.add("a history is too long to be checked", keys.join(", "));
    }
    let logs = match violations.is_empty() {
        true => Vec::new(),
        false => cluster.ids().map(|id| (id, cluster.log_tail(id))).collect(),
    };
    let mut figures = figures(&history, &watches);
    figures.faults = faults.len() as u64;
    figures.groups = linearizability.groups as u64;
    figures.entries = entries;
    let schedule = schedule.clone();
    Ok(Run { seed, schedule, faults, history, watches, violations, linearizability, figures, logs })
}

fn options(setup: &Setup, schedule: &Schedule) -> Options {
    let mut options = Options::new(&setup.binary).nodes(schedule.nodes).proxied();
    options.parent.clone_from(&setup.parent);
    options = options.flag("--consistency-check-interval=1s");
    if schedule.snapshots {
        options = options.flag("--snapshot-entries=400").flag("--keep-entries=100");
    }
    options
}

/// Causes the faults at their times.
async fn happen(nemesis: &Nemesis, schedule: &Schedule, recorder: &Arc<Recorder>) -> Vec<Happened> {
    let begun = tokio::time::Instant::now();
    let faults = schedule.events.iter().map(|event: &Event| async move {
        sleep_until(begun + Duration::from_millis(event.at_ms)).await;
        nemesis.cause(event, recorder).await
    });
    // All faults run in this task, so no fault is left when it ends.
    let mut running = Vec::new();
    for fault in faults {
        running.push(Box::pin(fault));
    }
    let happened = join_all(running).await;
    sleep_until(begun + Duration::from_millis(schedule.length_ms)).await;
    happened
}

/// Waits for all futures, which run concurrently.
async fn join_all<T>(mut futures: Vec<std::pin::Pin<Box<impl Future<Output = T>>>>) -> Vec<T> {
    let mut outputs: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

async fn recovered(cluster: &Cluster) -> Result<()> {
    let begun = Instant::now();
    for id in cluster.ids() {
        cluster.check_running(id)?;
    }
    cluster.leader_within(RECOVERY).await?;
    let ids: Vec<u64> = cluster.ids().collect();
    let left = RECOVERY.saturating_sub(begun.elapsed());
    eventually("all nodes serve", left, async || {
        for id in &ids {
            let serves = cluster.client_of(*id).map_err(|error| error.to_string())?;
            match timeout(Duration::from_secs(2), serves.is_serving()).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return Err(format!("node {id} is not ready")),
                Ok(Err(error)) => return Err(format!("node {id}: {error}")),
                Err(_) => return Err(format!("node {id} does not answer")),
            }
        }
        Ok(())
    })
    .await?;
    for id in cluster.ids() {
        cluster.check_running(id)?;
    }
    Ok(())
}

/// Checks that all nodes have applied the whole log, and that their states are equal. Nodes that
/// the schedule made diverge must be repaired first.
async fn agree(cluster: &Cluster, schedule: &Schedule) -> Result<()> {
    let is_diverge = |event: &Event| matches!(event.fault, Fault::Diverge(_));
    if !schedule.events.iter().any(is_diverge) {
        return equal(cluster, true).await;
    }
    eventually("the diverged nodes are repaired", RECOVERY, async || {
        equal(cluster, false).await.map_err(|error| format!("{error:#}"))
    })
    .await
}

async fn equal(cluster: &Cluster, never_diverged: bool) -> Result<()> {
    let ids: Vec<u64> = cluster.ids().collect();
    cluster.caught_up(&ids, RECOVERY).await?;
    let client = cluster.client()?;
    let status = client.status().await?;
    for node in &status.nodes {
        anyhow::ensure!(node.fatal_error.is_empty(), "node {}: {}", node.id, node.fatal_error);
        anyhow::ensure!(
            node.divergences == 0 || !never_diverged,
            "node {} has diverged {} times: {}",
            node.id,
            node.divergences,
            node.divergence
        );
    }
    let verified = client.verify().await?;
    anyhow::ensure!(verified.equal, "the states differ: {:?}", verified.nodes);
    Ok(())
}

fn explain(violation: &linearizability::Violation) -> String {
    let linearizability::Violation { keys, operations, stuck } = violation;
    let mut text = format!(
        "keys {}: {} of {} operations have an order; then the state is {}, and none of these fits:",
        keys.join(", "),
        stuck.order.len(),
        operations.len(),
        stuck.state
    );
    for at in &stuck.next {
        text += &format!("\n    {}", operations[*at]);
    }
    text += "\n  The last operations of the order:";
    for at in stuck.order.iter().rev().take(4).rev() {
        text += &format!("\n    {}", operations[*at]);
    }
    text
}

fn figures(history: &[Operation], watches: &[Watched]) -> Figures {
    let count = |is: fn(&Outcome) -> bool| {
        history.iter().filter(|operation| is(&operation.outcome)).count() as u64
    };
    let segments = watches.iter().flat_map(|watched| &watched.segments);
    let (gap, _) = invariants::longest_gap(history);
    Figures {
        runs: 1,
        operations: history.len() as u64,
        answered: count(|outcome| matches!(outcome, Outcome::Done(_))),
        failed: count(|outcome| matches!(outcome, Outcome::Failed(_))),
        unknown: count(|outcome| matches!(outcome, Outcome::Unknown(_))),
        changes: segments.map(|segment| segment.changes.len() as u64).sum(),
        resumed: watches.iter().map(|watched| watched.resumed).sum(),
        longest_gap_ms: u64::try_from(gap.as_millis()).unwrap_or(u64::MAX),
        ..Figures::default()
    }
}

/// Another component with the same methods and state: the newest one that the build of this binary
/// left beside it, with an additional custom section.
pub fn other_component(binary: &Path, to: &Path) -> Result<Option<PathBuf>> {
    let Some(profile) = binary.parent() else { return Ok(None) };
    let builds = std::fs::read_dir(profile.join("build")).into_iter().flatten().flatten();
    let components = builds.map(|build| build.path().join("out/kv.wasm"));
    let newest = components
        .filter_map(|path| Some((std::fs::metadata(&path).ok()?.modified().ok()?, path)))
        .max();
    let Some((_, component)) = newest else { return Ok(None) };
    let mut bytes = std::fs::read(component)?;
    // The custom section consists of its kind, its size, the size of its name, and the name.
    bytes.extend_from_slice(b"\0\x06\x05other");
    std::fs::write(to, bytes)?;
    Ok(Some(to.to_owned()))
}
