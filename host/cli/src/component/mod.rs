//! `conclave component`: other machines for a cluster that runs, one file a step.

mod activate;
mod diff;
mod list;
mod push;
mod rehearse;
mod rollback;
pub(super) mod show;

use clap::{Args, Subcommand};

use super::{Result, output::Output, remote::Remote};

/// Upgrade the machine that the cluster runs
///
/// A component is a machine's component, named by its SHA-256. It is pushed into the log, so that every node
/// has it; every node rehearses it on its own state; activated, it goes on with the state at one index on
/// all nodes, while the cluster serves. Writes pause for about as long as the rehearsal took to carry the state
/// over. If the state cannot be carried over nothing changes. The component before is kept to roll back to.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave component push target/my-machine.wasm       to all nodes; nothing is active yet
  conclave component list                              which there are, and which nodes are ready
  conclave component diff 3f8a02                       what clients would notice
  conclave component rehearse 3f8a02                   try it again on every node, and wait
  conclave component activate 3f8a02
  conclave component rollback                          to the one before, with what was written since

A component is named by its id, or by the beginning of it: at least six digits.")]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Push(push::Push),
    List(list::List),
    Rehearse(rehearse::Rehearse),
    Activate(activate::Activate),
    Rollback(rollback::Rollback),
    Diff(diff::Diff),
}

/// Runs the verb.
pub async fn run(arguments: Arguments, output: &mut Output) -> Result {
    let remote = &arguments.remote;
    output.set_json(remote.json);
    match arguments.verb {
        Verb::Push(push) => push.run(remote, output).await,
        Verb::List(list) => list.run(remote, output).await,
        Verb::Rehearse(rehearse) => rehearse.run(remote, output).await,
        Verb::Activate(activate) => activate.run(remote, output).await,
        Verb::Rollback(rollback) => rollback.run(remote, output).await,
        Verb::Diff(diff) => diff.run(remote, output).await,
    }
}
