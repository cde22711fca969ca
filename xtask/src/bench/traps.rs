//! The effect on other clients of a caller whose calls trap repeatedly.

use std::{path::Path, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    cluster::{self, Cluster, Node},
    conclave,
    load::{Figures, Load, Work},
};
use crate::{
    output::{Steps, say},
    process,
    workspace::Workspace,
};

/// The number of keys for which the goal is defined.
const KEYS: u64 = 100_000;
/// The number of other clients.
const CLIENTS: u32 = 8;
/// The duration of each measurement.
const SECONDS: u32 = 10;
/// With this little fuel a large batch traps, but a put does not.
const FUEL_PER_CALL: &str = "1000000";
/// The trapping caller starts before a measurement and ends after it.
const MARGIN: Duration = Duration::from_secs(3);
/// The goals.
const SHARE_MIN: f64 = 0.5;
const P99_MS_MAX: f64 = 100.0;

/// Measures the clients of each node without and with a caller that traps in a loop.
pub(crate) fn cost(
    workspace: &Workspace,
    load: &Load,
    binary: &Path,
    steps: &mut Steps,
) -> Result<String> {
    let directory = workspace.scratch("bench").join("traps");
    steps.run("measure the effect of a trapping caller on other clients", || {
        let data = cluster::empty_directory(&directory)?;
        let running = conclave::start(binary, None, &data)?;
        limit_fuel(binary, &running)?;
        load.fill(&running, KEYS)?;
        let mut lines = vec![format!(
            "a caller that traps in a loop, {KEYS} keys, {CLIENTS} other clients; goals: share {SHARE_MIN:.2}, p99 {P99_MS_MAX:.0} ms"
        )];
        for work in [Work::Put, Work::Get, Work::StaleGet] {
            let leader = running.leader()?.id;
            for node in running.nodes.iter().filter(|node| work != Work::Put || node.id == leader) {
                let line = beside_traps(load, &running, node, work, leader)?;
                say(&line);
                lines.push(line);
            }
        }
        Ok(lines.join("\n"))
    })
}

/// Sets the limit through the log: `conclave dev` passes no settings of the environment on.
fn limit_fuel(binary: &Path, running: &Cluster) -> Result<()> {
    let mut command = Command::new(binary);
    command.args(["cluster", "set-limits", "--fuel-per-call", FUEL_PER_CALL]);
    command.args(["--endpoints", &running.leader()?.endpoint]);
    process::capture(&mut command).map(drop)
}

fn beside_traps(
    load: &Load,
    running: &Cluster,
    node: &Node,
    work: Work,
    leader: u64,
) -> Result<String> {
    let without = load.run_at(running, node, work, CLIENTS, SECONDS)?;
    let (with, traps) = thread::scope(|scope| -> Result<(Figures, Value)> {
        let trapping = scope.spawn(|| trap(load, node));
        thread::sleep(MARGIN / 2);
        let figures = load.run_at(running, node, work, CLIENTS, SECONDS)?;
        match trapping.join() {
            Ok(traps) => traps.map(|traps| (figures, traps)),
            Err(_) => bail!("the trapping caller panicked"),
        }
    })?;
    let share = with.ops_per_second / without.ops_per_second;
    Ok(format!(
        "  {} at node {} ({}): {:.0}/s, with traps {:.0}/s = {share:.2}, p99 {:.1} ms, longest {:.0} ms; {} traps, {} refused",
        work.title(),
        node.id,
        if node.id == leader { "leader" } else { "follower" },
        without.ops_per_second,
        with.ops_per_second,
        with.p99_us / 1_000.0,
        with.max_us / 1_000.0,
        traps["traps"],
        traps["refused"],
    ))
}

/// Runs the trapping caller slightly longer than a measurement.
fn trap(load: &Load, node: &Node) -> Result<Value> {
    let time = Duration::from_secs(u64::from(SECONDS) + 1) + MARGIN;
    let mut command = Command::new(&load.program);
    command.args(["trap", "--endpoint", &node.endpoint]);
    command.args(["--seconds", &time.as_secs().to_string()]);
    let line = process::capture_within(&mut command, time + MARGIN * 4)?;
    serde_json::from_str(&line).context("cannot read the load generator's output")
}
