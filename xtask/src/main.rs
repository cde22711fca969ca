//! Conclave's development commands, run as `cargo xtask <command>`.
//!
//! Each command installs everything that it needs on a fresh host, and reports its progress. The
//! commands mostly run other programs. Modules with their own logic:
//!
//! - [`setup`] installs missing programs;
//! - [`mod@bench`] drives the benchmark;
//! - [`chaos`] searches for faults;
//! - [`soak`] makes a long run;
//! - [`hostile`] makes a run with hostile clients;
//! - [`docker`] tests the image and the compose cluster.
//!
//! Only [`output`] prints.

mod bench;
mod build;
mod chaos;
mod docker;
mod hostile;
mod machine;
mod output;
mod process;
mod restart;
mod setup;
mod soak;
mod test;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{output::Steps, workspace::Workspace};

/// Build, run, test and measure Conclave.
///
/// Start with `cargo xtask dev`: it installs a compiler for state machines if there is none, builds
/// the binary and starts three nodes. `cargo xtask test` runs the whole test suite.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", arg_required_else_help = true, after_help = EXAMPLES)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask dev                              three nodes on ports 7101-7103, data under target/dev
  cargo xtask dev --nodes 5 --port-base 8100   other arguments go to `conclave dev`
  cargo xtask machine examples/counter         target/counter.wasm
  cargo xtask test                             all tests of CI
  cargo xtask test --filter traps              only the tests with `traps` in their name
  cargo xtask bench                            three nodes compared with three nodes of etcd
  cargo xtask chaos --minutes 60 --seed 1      clusters under random faults, with checked responses
  cargo xtask chaos --planted NAME             the same for a copy with a planted bug, until it is found
  cargo xtask soak                             one hour under load: memory, descriptors and disk stay bounded
  cargo xtask hostile --minutes 5              hostile clients beside ordinary ones, which must stay fast";

#[derive(Subcommand)]
enum Command {
    /// Install the tools for building state machines and running all tests, and report what is missing
    Setup,
    /// Build the binary with the default state machine
    Build(build::Build),
    /// Build the binary and start a cluster on this host: `conclave dev`
    Dev(build::Dev),
    /// Build the component of a state machine
    Machine(machine::Options),
    /// Run the whole test suite: unit, integration and doc tests, then the image in Docker
    Test(test::Options),
    /// Build the image and run the compose cluster through losses of nodes and networks
    Docker(docker::Options),
    /// Run clusters under random faults and check that their responses stay linearizable
    Chaos(chaos::Options),
    /// Run a cluster under load for one hour and check that memory, descriptors and disk stay bounded
    Soak(soak::Options),
    /// Run hostile clients against a cluster and check that ordinary clients stay fast and succeed
    Hostile(hostile::Options),
    /// Measure the duration of a restart, and the time without a standby after a trap
    Restart(restart::Options),
    /// Measure puts, gets, failover and memory, compared with etcd in the same run
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let command = Options::parse().command;
    let mut steps = Steps::new();
    let result = run(command, &mut steps);
    steps.summary();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command, steps: &mut Steps) -> Result<()> {
    let workspace = Workspace::find()?;
    match command {
        Command::Setup => setup::everything(&workspace, steps).map(drop),
        Command::Build(options) => options.run(&workspace, steps).map(drop),
        Command::Dev(options) => options.run(&workspace, steps),
        Command::Machine(options) => machine::run(&workspace, &options, steps),
        Command::Test(options) => test::run(&workspace, &options, steps),
        Command::Docker(options) => docker::run(&workspace, &options, steps),
        Command::Chaos(options) => chaos::run(&workspace, &options, steps),
        Command::Hostile(options) => hostile::run(&workspace, &options, steps),
        Command::Soak(options) => soak::run(&workspace, &options, steps),
        Command::Restart(options) => restart::run(&workspace, &options, steps),
        Command::Bench(options) => bench::run(&workspace, &options, steps),
    }
}
