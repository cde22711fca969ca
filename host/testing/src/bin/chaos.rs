//! Runs clusters under random faults, one seed after another: see `cargo xtask chaos --help`.
#![allow(clippy::print_stdout, reason = "this program is for developers")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Parser;
use conclave_testing::{
    chaos::{self, Figures, Run, Setup},
    program,
    schedule::Schedule,
    timeline,
    workload::Plan,
};

/// Run clusters under random faults and check the answers that clients received
///
/// Each seed is one run: a new cluster, a schedule of faults, concurrent clients, and the checks. The
/// program stops at the first violation. It prints the seed, the schedule and the path of a timeline.
#[derive(Debug, Parser)]
struct Arguments {
    /// Path of the program `conclave`
    #[arg(long, value_name = "FILE")]
    binary: PathBuf,
    /// Time during which new runs are started, in minutes
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Seed of the first run; each next run adds 1
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Maximum number of runs
    #[arg(long, value_name = "NUMBER")]
    runs: Option<u64>,
    /// Number of nodes [default: 3, and 5 in each fourth run]
    #[arg(long, value_name = "NUMBER")]
    nodes: Option<u64>,
    /// Duration of the faults of one run, in seconds
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Number of clients [default: derived from the seed]
    #[arg(long, value_name = "NUMBER")]
    clients: Option<u32>,
    /// Maximum pause of a client between two operations, in milliseconds [default: derived from the seed]
    #[arg(long, value_name = "MILLISECONDS")]
    think_ms: Option<u64>,
    /// Run the schedule in this file instead of random ones
    #[arg(long, value_name = "FILE")]
    schedule: Option<PathBuf>,
    /// Continue after a violation
    #[arg(long)]
    keep_going: bool,
    /// Directory for timelines
    #[arg(long, value_name = "DIR", default_value = "target/chaos")]
    output: PathBuf,
    /// Write the timeline of each run
    #[arg(long)]
    all_timelines: bool,
    /// Skip the comparison of the nodes' logs, which takes some seconds per run
    #[arg(long)]
    no_replays: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    program::run(async { Ok(run(&arguments).await? == 0) })
}

/// Returns the number of runs with violations.
async fn run(arguments: &Arguments) -> Result<u64> {
    fs::create_dir_all(&arguments.output)?;
    let mut setup = Setup::new(&arguments.binary);
    setup.replays = !arguments.no_replays;
    let component = arguments.output.join("other.wasm");
    setup.component = chaos::other_component(&arguments.binary, &component)?;
    let available = setup.available();
    for (there, what) in [
        (available.disks, "hanging disks: they need root, loop devices and fsfreeze"),
        (available.clocks, "wrong clocks: they need libfaketime"),
        (available.components, "upgrades: there is no other component beside the binary"),
    ] {
        if !there {
            println!("skipped: {what}");
        }
    }
    let begun = Instant::now();
    let (mut total, mut failed, mut number) = (Figures::default(), 0, 0);
    loop {
        let over = begun.elapsed() >= Duration::from_secs_f64(arguments.minutes * 60.0);
        if over || arguments.runs.is_some_and(|runs| number >= runs) {
            break;
        }
        let seed = arguments.seed + number;
        number += 1;
        let nodes = arguments.nodes.unwrap_or(if seed.is_multiple_of(4) { 5 } else { 3 });
        let schedule = match &arguments.schedule {
            Some(path) => fs::read_to_string(path)?.parse()?,
            None => Schedule::generate(seed, nodes, arguments.seconds * 1000, available),
        };
        let mut plan = Plan::generate(seed);
        plan.clients = arguments.clients.unwrap_or(plan.clients);
        plan.think_ms = arguments.think_ms.unwrap_or(plan.think_ms);
        setup.plan = Some(plan);
        let run_begun = Instant::now();
        let run = chaos::run(&setup, &schedule, seed).await;
        let run = run.with_context(|| format!("cannot complete the run with seed {seed}"))?;
        total.add(&run.figures);
        let faults: Vec<&str> = schedule.events.iter().map(|event| event.fault.name()).collect();
        let sound = if run.violations.is_empty() { "ok" } else { "VIOLATION" };
        println!(
            "seed {seed}, {} nodes, {:.0} s: {sound}: {} [{}]",
            schedule.nodes,
            run_begun.elapsed().as_secs_f64(),
            run.figures,
            faults.join(" ")
        );
        if !run.violations.is_empty() {
            failed += 1;
            report(&run, &write(&run, &arguments.output)?, number);
            if !arguments.keep_going {
                break;
            }
        } else if arguments.all_timelines {
            println!("timeline: {}", write(&run, &arguments.output)?.display());
        }
    }
    println!(
        "{} runs in {:.1} minutes, {failed} with violations: {total}",
        total.runs,
        begun.elapsed().as_secs_f64() / 60.0
    );
    Ok(failed)
}

fn write(run: &Run, directory: &Path) -> Result<PathBuf> {
    let path = directory.join(format!("seed-{}.html", run.seed));
    fs::write(&path, timeline::page(run)).context("cannot write the timeline")?;
    Ok(path)
}

fn report(run: &Run, timeline: &Path, number: u64) {
    println!("\nviolation in run {number}, seed {}\n\n{}", run.seed, run.violations);
    println!("schedule:\n{}", run.schedule);
    println!("faults as they happened:");
    for fault in &run.faults {
        let (begun, ended) = (fault.begun.as_secs_f64(), fault.ended.as_secs_f64());
        println!("  {begun:.3}..{ended:.3} s {}", fault.text);
    }
    println!("\ntimeline: {}\n", timeline.display());
}
