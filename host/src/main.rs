//! The binary: parse, run, exit.
use std::process::ExitCode;

use clap::Parser;
use conclave::cli::Cli;

#[tokio::main]
async fn main() -> ExitCode {
    ExitCode::from(Cli::parse().run().await)
}
