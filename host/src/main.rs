//! The binary: parse, run, exit.
use std::process::ExitCode;

use clap::Parser;
use conclave::cli::{Cli, Failed};
use tokio::runtime;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failed::local(format!("cannot start threads: {error}")).report(),
    };
    let code = runtime.block_on(cli.run());
    // What is still at work, such as a query without end, must not keep the process.
    runtime.shutdown_background();
    ExitCode::from(code)
}
