//! Measures restarts and the time without a standby after a trap: see `cargo xtask restart --help`.
#![allow(clippy::print_stdout, reason = "what a program for developers is for")]

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::Parser;
use conclave_testing::{
    program,
    restart::{self, Restarts},
};

/// Measure how long a restart takes, and how long a node is without a standby after a trap
#[derive(Debug, Parser)]
struct Arguments {
    /// The program `conclave`
    #[arg(long, value_name = "FILE")]
    binary: PathBuf,
    /// examples/quota as a component; without it, restarts with a large component are left out
    #[arg(long, value_name = "FILE.wasm")]
    component: Option<PathBuf>,
    /// The number of small keys of a restart; 0: leave that out
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// The number of keys when a call traps; 0: leave that out
    #[arg(long, default_value_t = 100_000)]
    trap_keys: u64,
    /// How often each is measured
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
            "a trap with {trap_keys} keys, until a node has a standby that serves: {}",
            range(times)
        );
    }
    Ok(())
}

fn show(what: &str, restarts: &Restarts) {
    println!(
        "{what}: the first start until a read {:.1} s, a restart until a read {}, with {} of processor time",
        restarts.first.as_secs_f64(),
        range(restarts.again.iter().map(|restart| restart.time).collect()),
        range(restarts.again.iter().map(|restart| restart.processor_time).collect())
    );
}

/// The median, and the shortest and longest.
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
