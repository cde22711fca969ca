//! Runs a cluster under load for a long time and judges its use of resources: see `cargo xtask soak --help`.
#![allow(clippy::print_stdout, reason = "this program is for developers")]

use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use conclave_testing::{
    program,
    soak::{
        self, Plan,
        page::{self, Subject},
        plot,
        sample::Sample,
    },
};

/// Run a cluster under a steady load and check that its memory, descriptors and disk space stay bounded
#[derive(Debug, Parser)]
struct Arguments {
    /// Path of the program `conclave`
    #[arg(long, value_name = "FILE")]
    binary: PathBuf,
    /// Duration of the load, in minutes
    #[arg(long, default_value_t = 60.0)]
    minutes: f64,
    /// Number of keys
    #[arg(long, default_value_t = Plan::default().keys)]
    keys: u64,
    /// Puts and deletes per second
    #[arg(long, default_value_t = Plan::default().writes_per_second)]
    writes: u64,
    /// Seed of the load
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Kind of the build, shown in the plot and the report
    #[arg(long, default_value = "")]
    build: String,
    /// Revision of the sources, shown in the report
    #[arg(long, default_value = "unknown")]
    revision: String,
    /// Date, shown in the plot and the report
    #[arg(long, default_value = "")]
    date: String,
    /// Directory for the nodes' data [default: the directory of temporary files]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Directory for soak.svg, soak.md and samples.csv
    #[arg(long, value_name = "DIR", default_value = "target/soak")]
    output: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    program::run(run(&arguments))
}

/// Returns true if the run passes.
async fn run(arguments: &Arguments) -> Result<bool> {
    fs::create_dir_all(&arguments.output)?;
    let table = arguments.output.join("samples.csv");
    let mut table =
        File::create(&table).with_context(|| format!("cannot create {}", table.display()))?;
    writeln!(table, "{HEADER}")?;
    let seconds = arguments.minutes * 60.0;
    let plan = Plan {
        time: Duration::from_secs_f64(seconds),
        // A short trial also needs enough samples.
        sample_interval: Duration::from_secs_f64((seconds / 200.0).clamp(0.5, 5.0)),
        keys: arguments.keys,
        writes_per_second: arguments.writes,
        seed: arguments.seed,
        ..Plan::default()
    };
    let subject = Subject {
        program: [&*version(arguments)?, &arguments.build].join(" ").trim().to_owned(),
        revision: arguments.revision.clone(),
        date: arguments.date.clone(),
    };
    let mut next_minute = 0;
    let progress = |sample: &Sample| {
        // The table helps to examine a failed run. The run does not depend on it.
        let _ = table.write_all(rows(sample).as_bytes());
        let minute = sample.at.as_secs() / 60;
        if minute >= next_minute {
            next_minute = minute + 1;
            println!("{}", line(sample));
        }
    };
    let run = soak::run(&arguments.binary, arguments.data.clone(), plan, progress).await?;
    let plot = plot::svg(&run.samples, &page::title(&run, &subject))?;
    fs::write(arguments.output.join("soak.svg"), plot)?;
    let page = page::markdown(&run, &subject, "soak.svg");
    fs::write(arguments.output.join("soak.md"), &page)?;
    println!("{page}");
    Ok(run.verdict.failures.is_empty())
}

fn version(arguments: &Arguments) -> Result<String> {
    let output = Command::new(&arguments.binary).arg("--version").output();
    let output = output.with_context(|| format!("cannot run {}", arguments.binary.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

const HEADER: &str =
    "seconds,node,resident,descriptors,log,snapshots,other,live_log,applied,snapshot,purged,traps";

fn rows(sample: &Sample) -> String {
    let row = |(node, usage): (u64, &soak::sample::Usage)| {
        let numbers = [
            node,
            usage.resident_bytes,
            usage.descriptors,
            usage.log_bytes,
            usage.snapshot_bytes,
            usage.other_bytes,
            usage.live_log_bytes,
            usage.applied,
            usage.snapshot,
            usage.purged,
            usage.traps,
        ];
        let numbers = numbers.map(|number| number.to_string()).join(",");
        format!("{:.1},{numbers}\n", sample.at.as_secs_f64())
    };
    (1..).zip(&sample.nodes).map(row).collect()
}

fn line(sample: &Sample) -> String {
    let nodes = sample.nodes.iter().map(|usage| {
        format!(
            "{} MiB, {} files, disk {} MiB = {:.1} times {} MiB, {} traps",
            usage.resident_bytes >> 20,
            usage.descriptors,
            usage.disk_bytes() >> 20,
            usage.disk_bytes() as f64 / usage.needed_bytes().max(1) as f64,
            usage.needed_bytes() >> 20,
            usage.traps
        )
    });
    let nodes: Vec<String> = nodes.collect();
    format!("{:.0} min: {}", sample.at.as_secs_f64() / 60.0, nodes.join("; "))
}
