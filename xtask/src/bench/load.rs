//! The load generator, a separate program: `client/examples/load`.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    cluster::{Cluster, Node},
    disks::Disks,
};
use crate::process;

/// Added to the measured time: warm-up, connection setup and the last responses.
const SLACK: Duration = Duration::from_secs(30);
const FILL_TIME_MAX: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Work {
    Put,
    Get,
    StaleGet,
}

impl Work {
    fn argument(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::StaleGet => "stale-get",
        }
    }

    /// The name of the load in the report.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "linearizable get",
            Self::StaleGet => "stale get",
        }
    }
}

/// A fault of the leader.
#[derive(Clone, Copy)]
pub(crate) enum Fault<'a> {
    Kill,
    Pause,
    PlannedStop,
    DiskHang(&'a Disks),
}

impl Fault<'_> {
    fn argument(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::PlannedStop => "stop",
            Self::DiskHang(_) => "freeze",
        }
    }

    /// The name of the fault in the report.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Kill => "SIGKILL",
            Self::Pause => "SIGSTOP",
            Self::PlannedStop => "planned stop (SIGTERM)",
            Self::DiskHang(_) => "disk hang (fsfreeze)",
        }
    }
}

/// The results of one measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Figures {
    pub(crate) ops_per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// The latency of the slowest call.
    pub(crate) max_us: f64,
}

pub(crate) struct Load {
    pub(crate) program: PathBuf,
}

impl Load {
    /// Writes the keys that the gets read.
    pub(crate) fn fill(&self, cluster: &Cluster, keys: u64) -> Result<()> {
        let mut command = self.command("fill", cluster);
        command.args(["--endpoint", &cluster.leader()?.endpoint, "--keys", &keys.to_string()]);
        process::capture_within(&mut command, FILL_TIME_MAX).map(drop)
    }

    /// Measures one load on the leader.
    pub(crate) fn run(
        &self,
        cluster: &Cluster,
        work: Work,
        clients: u32,
        seconds: u32,
    ) -> Result<Figures> {
        self.run_at(cluster, cluster.leader()?, work, clients, seconds)
    }

    /// Measures one load on a node.
    pub(crate) fn run_at(
        &self,
        cluster: &Cluster,
        node: &Node,
        work: Work,
        clients: u32,
        seconds: u32,
    ) -> Result<Figures> {
        let mut command = self.command("run", cluster);
        command.args(["--endpoint", &node.endpoint, "--work", work.argument()]);
        command.args(["--clients", &clients.to_string(), "--seconds", &seconds.to_string()]);
        let time = Duration::from_secs(seconds.into()) + SLACK;
        let line = parse(&process::capture_within(&mut command, time)?)?;
        if line["errors"] != 0 {
            bail!("{}: {} calls failed, the last: {}", cluster.name, line["errors"], line["error"]);
        }
        let field = |name: &str| {
            line[name].as_f64().with_context(|| format!("the load generator reported no {name}"))
        };
        Ok(Figures {
            ops_per_second: field("ops_per_second")?,
            p50_us: field("p50_us")?,
            p99_us: field("p99_us")?,
            max_us: field("max_us")?,
        })
    }

    /// Injects a fault into the leader. Measures the longest time without a write acknowledged by
    /// the other nodes.
    pub(crate) fn failover(&self, cluster: &Cluster, fault: Fault<'_>) -> Result<Duration> {
        let leader = cluster.leader()?;
        let survivors: Vec<_> = cluster
            .nodes
            .iter()
            .filter(|node| node.id != leader.id)
            .map(|node| node.endpoint.as_str())
            .collect();
        let mut command = self.command("failover", cluster);
        command.args(["--survivors", &survivors.join(",")]);
        command.args(["--process", &leader.pid.to_string(), "--fault", fault.argument()]);
        if let Fault::DiskHang(disks) = fault {
            command.arg("--disk").arg(disks.of(leader.id)?);
        }
        let line = parse(&process::capture(&mut command)?)?;
        let millis = line["gap_ms"].as_u64().context("the load generator reported no time")?;
        Ok(Duration::from_millis(millis))
    }

    fn command(&self, verb: &str, cluster: &Cluster) -> Command {
        let mut command = Command::new(&self.program);
        command.args([verb, "--target", cluster.name]);
        command
    }
}

fn parse(line: &str) -> Result<Value> {
    serde_json::from_str(line).context("cannot read the load generator's output")
}
