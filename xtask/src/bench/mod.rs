//! `bench`: comparison of Conclave with etcd.
//!
//! Both clusters run during the whole benchmark, on the same disk and loopback, with default settings:
//! a write is synced by a majority before it is acknowledged. For each load the systems alternate
//! round by round (A B A B), so that noise on the host affects both. The figures are the medians of
//! the rounds. One generator drives both systems (`client/examples/load`), against the leader.
//!
//! The number of rounds, the time of each round and all waits are bounded. When the benchmark ends,
//! for any reason, it ends the processes by their ids.

mod cluster;
mod conclave;
mod disks;
mod etcd;
mod load;
mod report;
mod share;
mod traps;
mod upgrade;

use std::{
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    build::{build_bench_programs, build_programs},
    output::{Steps, human, result, say, skip},
    process, setup,
    workspace::Workspace,
};
use cluster::Cluster;
use disks::Disks;
use load::{Fault, Figures, Load, Work};
use report::Row;

/// The number of keys that the gets read.
const KEYS: u64 = 10_000;
/// The idle time in seconds before the nodes' memory is read.
const IDLE_SECONDS: u64 = 10;
/// The number of clients in the performance goals.
const GOAL_CLIENTS: u32 = 64;

#[derive(Args)]
pub(crate) struct Options {
    /// Number of measurements per load and system
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Duration of each measurement in seconds, after one second of warm-up
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Numbers of concurrent clients
    #[arg(long, value_delimiter = ',', default_value = "1,64,256")]
    clients: Vec<u32>,
    /// Loads to measure
    #[arg(long, value_delimiter = ',', default_value = "put,get,stale-get")]
    works: Vec<Work>,
    /// Number of measurements per fault of the leader
    #[arg(long, default_value_t = 5)]
    failovers: u32,
    /// Skip etcd
    #[arg(long)]
    without_etcd: bool,
    /// Skip Conclave
    #[arg(long)]
    without_conclave: bool,
    /// Measure this binary instead of building one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// Starts a system with its existing data.
type Start<'a> = Box<dyn Fn() -> Result<Cluster> + 'a>;

pub(crate) fn run(workspace: &Workspace, options: &Options, steps: &mut Steps) -> Result<()> {
    let directory = workspace.scratch("bench");
    let load = build(workspace, steps)?;
    let binary = options.binary.clone().unwrap_or_else(|| workspace.binary(true));

    let etcd = if options.without_etcd { None } else { etcd(workspace, steps)? };
    let mut systems: Vec<Start<'_>> = Vec::new();
    if let Some(etcd) = etcd {
        let data = cluster::empty_directory(&directory.join("etcd"))?;
        systems.push(Box::new(move || etcd.start(&data)));
    }
    if !options.without_conclave {
        let data = cluster::empty_directory(&directory.join("conclave"))?;
        let binary = binary.clone();
        systems.push(Box::new(move || conclave::start(&binary, None, &data)));
    }
    if systems.is_empty() {
        bail!("both systems are skipped: there is nothing to measure");
    }

    let running = steps.run("start the clusters", || {
        systems.iter().map(|start| start()).collect::<Result<Vec<_>>>()
    })?;
    let fresh = idle_memory(&running, "measure the memory of fresh nodes", steps)?;
    steps.run("write the keys", || {
        for cluster in &running {
            load.fill(cluster, KEYS)?;
            say(&format!("{}: node {} leads", cluster.name, cluster.leader()?.id));
        }
        Ok(())
    })?;
    let rows = steps.run("measure", || measure(&load, options, &running))?;
    let share = machine_share(&load, options, &running, steps)?;
    let loaded = idle_memory(&running, "measure the memory of idle nodes after the load", steps)?;
    let names: Vec<_> = running.iter().map(|cluster| cluster.name).collect();
    drop(running);
    let native = beside_native(workspace, &load, options, &binary, steps)?;

    let gaps = gaps(workspace, &load, options, &systems, &binary, steps)?;
    let pause = match options.without_conclave {
        true => None,
        false => Some(upgrade::pause(workspace, &load, &binary, steps)?),
    };
    let traps = match options.without_conclave {
        true => None,
        false => Some(traps::cost(workspace, &load, &binary, steps)?),
    };
    let apply = apply_cost(workspace, options, steps)?;

    result(&report::loads(&names, &rows));
    result(&report::nodes(&names, &[fresh, loaded]));
    result(&report::gaps(&names, &gaps));
    pause.iter().chain(&traps).for_each(|text| result(text));
    apply.iter().for_each(|text| result(text));
    share.iter().chain(&native).for_each(|text| result(text));
    Ok(())
}

/// Returns the memory of each system's nodes in MiB, after some idle time.
fn idle_memory(running: &[Cluster], step: &str, steps: &mut Steps) -> Result<Vec<Vec<u64>>> {
    steps.run(step, || {
        thread::sleep(Duration::from_secs(IDLE_SECONDS));
        running.iter().map(Cluster::memory_mib).collect()
    })
}

fn build(workspace: &Workspace, steps: &mut Steps) -> Result<Load> {
    setup::compiler(steps)?;
    steps.run("build (release)", || {
        say("the first release build compiles wasmtime, which takes several minutes");
        process::run(&mut build_programs(workspace, true))?;
        process::run(&mut build_bench_programs(workspace))?;
        Ok(Load { program: workspace.target.join("release/examples/load") })
    })
}

fn etcd(workspace: &Workspace, steps: &mut Steps) -> Result<Option<etcd::Etcd>> {
    steps.run("install etcd", || {
        etcd::install(workspace).map(Some).or_else(|error| {
            skip("etcd (Conclave is measured alone)", &format!("{error:#}"));
            Ok(None)
        })
    })
}

/// Compares the store as a component with the same store compiled into the nodes, in two fresh clusters.
fn beside_native(
    workspace: &Workspace,
    load: &Load,
    options: &Options,
    binary: &Path,
    steps: &mut Steps,
) -> Result<Option<String>> {
    if options.without_conclave {
        return Ok(None);
    }
    steps.run("compare with a native state machine", || {
        let natively = workspace.target.join("release/examples/native_node");
        let mut clusters = Vec::new();
        for (name, binary) in [("wasm", binary), ("native", &*natively)] {
            let data = cluster::empty_directory(&workspace.scratch("bench").join(name))?;
            let cluster = conclave::start(binary, None, &data)?;
            load.fill(&cluster, KEYS)?;
            clusters.push(cluster);
        }
        let mut rounds = [Vec::new(), Vec::new()];
        for _ in 0..options.rounds {
            for (cluster, rounds) in clusters.iter().zip(&mut rounds) {
                rounds.push(load.run(cluster, Work::Put, GOAL_CLIENTS, options.seconds)?);
            }
        }
        let [wasm, native] = rounds.map(|rounds| report::medians(&rounds).ops_per_second);
        Ok(Some(format!(
            "with the store compiled into the nodes, a cluster accepts {native:.0} puts/s from {GOAL_CLIENTS} clients; \
             as a component {wasm:.0}/s, a ratio of {:.2}",
            wasm / native
        )))
    })
}

/// Measures the share of the state machine in the processors' time, under the load of the
/// performance goals.
fn machine_share(
    load: &Load,
    options: &Options,
    running: &[Cluster],
    steps: &mut Steps,
) -> Result<Option<String>> {
    let Some(cluster) = running.iter().find(|cluster| cluster.name == "conclave") else {
        return Ok(None);
    };
    steps.run("measure the state machine's share of the processors' time", || {
        let before = share::Ticks::read(cluster)?;
        load.run(cluster, Work::Put, GOAL_CLIENTS, options.seconds)?;
        let share = share::Ticks::read(cluster)?.share_since(before);
        Ok(Some(format!(
            "instances of all nodes (primary and standby): {:.1} % of the processors' time with {GOAL_CLIENTS} clients that put",
            share * 100.0
        )))
    })
}

/// Measures each load round by round, with the systems alternating.
fn measure(load: &Load, options: &Options, running: &[Cluster]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &work in &options.works {
        for &clients in &options.clients {
            let mut rounds: Vec<Vec<Figures>> = vec![Vec::new(); running.len()];
            for _ in 0..options.rounds {
                for (cluster, rounds) in running.iter().zip(&mut rounds) {
                    rounds.push(load.run(cluster, work, clients, options.seconds)?);
                }
            }
            let row = Row { work, clients, rounds };
            say(&report::progress(running, &row));
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Measures the longest time without an acknowledged write for each fault of the leader. Each round
/// restarts the cluster with its existing data, so that all three nodes run.
fn gaps(
    workspace: &Workspace,
    load: &Load,
    options: &Options,
    systems: &[Start<'_>],
    binary: &Path,
    steps: &mut Steps,
) -> Result<Vec<report::Gaps>> {
    let mut rows = Vec::new();
    for fault in [Fault::Kill, Fault::Pause, Fault::PlannedStop] {
        let times = steps.run(&format!("disturb the leaders: {}", fault.title()), || {
            systems.iter().map(|start| disturb(load, options, start, fault)).collect()
        });
        rows.push(report::Gaps { fault: fault.title(), times: times? });
    }
    if options.without_conclave || options.failovers == 0 {
        return Ok(rows);
    }
    // This fault needs a separate disk per node. The other clusters share one disk.
    let directory = cluster::empty_directory(&workspace.scratch("bench").join("disks"))?;
    let data = directory.join("data");
    match Disks::mount(&directory.join("images"), |id| data.join(format!("node-{id}"))) {
        Ok(disks) => {
            let fault = Fault::DiskHang(&disks);
            let start: Start<'_> = Box::new(|| conclave::start(binary, None, &directory));
            let times = steps.run(&format!("disturb the leader: {}", fault.title()), || {
                disturb(load, options, &start, fault)
            })?;
            let mut columns = vec![Vec::new(); systems.len()];
            columns.iter_mut().next_back().into_iter().for_each(|last| last.clone_from(&times));
            rows.push(report::Gaps { fault: fault.title(), times: columns });
        }
        Err(error) => skip("the gap of a disk hang", &format!("{error:#}")),
    }
    Ok(rows)
}

fn disturb(
    load: &Load,
    options: &Options,
    start: &Start<'_>,
    fault: Fault<'_>,
) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for _ in 0..options.failovers {
        let cluster = start()?;
        let time = load.failover(&cluster, fault)?;
        say(&format!("{}, {}: {}", cluster.name, fault.title(), human(time)));
        times.push(time);
    }
    Ok(times)
}

/// Measures the cost of one apply in WebAssembly and natively, with an example program of the host.
fn apply_cost(
    workspace: &Workspace,
    options: &Options,
    steps: &mut Steps,
) -> Result<Option<String>> {
    if options.without_conclave {
        return Ok(None);
    }
    steps.run("measure one apply in wasm and natively", || {
        let mut example = Command::new(workspace.target.join("release/examples/apply_cost"));
        process::capture_within(&mut example, Duration::from_secs(300)).map(Some)
    })
}
