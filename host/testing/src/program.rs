//! The main function of this crate's programs.
#![allow(clippy::print_stdout, reason = "for programs of developers")]

use std::process::ExitCode;

use anyhow::{Context as _, Result};

/// Runs a program that returns whether its test passed. The exit code is 0 if the test passed, 1 if
/// it failed, and 2 if it could not be completed.
pub fn run(program: impl Future<Output = Result<bool>>) -> ExitCode {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result =
        runtime.context("cannot start the runtime").and_then(|runtime| runtime.block_on(program));
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
