//! Runs hostile clients beside ordinary ones: see `cargo xtask hostile --help`.
#![allow(clippy::print_stdout, reason = "this program is for developers")]

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::Parser;
use conclave_testing::{
    hostile::{self, Plan, attack::Attack},
    program,
};

/// Run hostile clients against a cluster, and check that ordinary clients stay fast and succeed
#[derive(Debug, Parser)]
struct Arguments {
    /// Path of the program `conclave`
    #[arg(long, value_name = "FILE")]
    binary: PathBuf,
    /// Duration of the attacks, in minutes
    #[arg(long, default_value_t = 60.0)]
    minutes: f64,
    /// Number of ordinary clients
    #[arg(long, default_value_t = 16)]
    clients: u64,
    /// Seed of the random bytes
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    program::run(run(&arguments))
}

/// Returns true if the run passes.
async fn run(arguments: &Arguments) -> Result<bool> {
    let plan = Plan {
        time: Duration::from_secs_f64(arguments.minutes * 60.0),
        clients: arguments.clients,
        attacks: Attack::ALL.to_vec(),
        seed: arguments.seed,
    };
    let run = hostile::run(&arguments.binary, &plan).await?;
    println!("{}", run.report);
    for failure in &run.failures {
        println!("failure: {failure}");
    }
    Ok(run.failures.is_empty())
}
