//! Measures restarts and the time without a standby after a trap: see `cargo xtask restart --help`.
#![allow(clippy::print_stdout, reason = "this program is for developers")]

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::Parser;
use conclave_testing::{
    program,
    restart::{self, Restarts},
};

/// Measure the duration of restarts, and the time that a node is without a standby after a trap
#[derive(Debug, Parser)]
struct Arguments {
    /// Path of the program `conclave`
    #[arg(long, value_name = "FILE")]
    binary: PathBuf,
    /// Component of examples/quota. Without it, restarts with a large component are not measured
    #[arg(long, value_name = "FILE.wasm")]
    component: Option<PathBuf>,
    /// Number of small keys for the measurement of restarts; 0 to skip it
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Number of keys for the measurement of traps; 0 to skip it
    #[arg(long, default_value_t = 100_000)]
    trap_keys: u64,
    /// Number of rounds of each measurement
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    program::run(async { run(&arguments).await.map(|()| true) })
}

async fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { binary, component, keys, trap_keys, rounds } = arguments;
    if let Some(component) = component {
        let restarts = restart::with_component(binary, component, *rounds).await?;
        show("a component of Python", &restarts);
    }
    if *keys > 0 {
        show(&format!("{keys} keys"), &restart::with_keys(binary, *keys, *rounds).await?);
    }
    if *trap_keys > 0 {
        let times = restart::after_traps(binary, *trap_keys, *rounds).await?;
        println!(
            "a trap with {trap_keys} keys, until a node has a serving standby: {}",
            range(times)
        );
    }
    Ok(())
}

fn show(what: &str, restarts: &Restarts) {
    println!(
        "{what}: from the first start to a read {:.1} s, from a restart to a read {}, with {} of processor time",
        restarts.first.as_secs_f64(),
        range(restarts.again.iter().map(|restart| restart.time).collect()),
        range(restarts.again.iter().map(|restart| restart.processor_time).collect())
    );
}

/// Formats the median, the minimum, the maximum and the number of these times.
fn range(mut times: Vec<Duration>) -> String {
    times.sort();
    let seconds = |at: usize| times.get(at).map_or(0.0, Duration::as_secs_f64);
    format!(
        "{:.2} s ({:.2} to {:.2}, {} times)",
        seconds(times.len() / 2),
        seconds(0),
        seconds(times.len().saturating_sub(1)),
        times.len()
    )
}
