//! The frame of this crate's programs.
#![allow(clippy::print_stdout, reason = "for programs of developers")]

use std::process::ExitCode;

use anyhow::{Context as _, Result};

/// Runs a program, which says whether what it tests passes. The exit code is 0 if it does, 1 if not, and 2 if it could
/// not be found out.
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
