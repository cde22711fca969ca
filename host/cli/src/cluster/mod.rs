//! `conclave cluster`: operations on a cluster as a whole, one file per verb.

mod limits;
mod set_time;
mod verify;

use clap::{Args, Subcommand};

use super::{Result, output::Output, remote::Remote};

/// Operate the cluster as a whole: compare states, set the time, change limits
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave cluster verify                  check that all nodes have the same state
  conclave cluster verify --timeout 5m     the same for a large state
  conclave cluster set-time now            correct the log's time if it has fallen behind
  conclave cluster limits                  show the fuel, memory and sizes that decide outcomes")]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Verify(verify::Verify),
    SetTime(set_time::SetTime),
    Limits(limits::ShowLimits),
    SetLimits(limits::SetLimits),
}

/// Runs the verb.
pub async fn run(arguments: Arguments, output: &mut Output) -> Result {
    let remote = &arguments.remote;
    output.set_json(remote.json);
    match arguments.verb {
        Verb::Verify(verify) => verify.run(remote, output).await,
        Verb::SetTime(set_time) => set_time.run(remote, output).await,
        Verb::Limits(show) => show.run(remote, output).await,
        Verb::SetLimits(set_limits) => set_limits.run(remote, output).await,
    }
}
