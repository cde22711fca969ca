//! `conclave component`: upgrades of the state machine of a running cluster, one file per step.

mod activate;
mod diff;
mod list;
mod pull;
mod push;
mod rehearse;
mod rollback;
pub(super) mod show;

use clap::{Args, Subcommand};

use super::{Result, output::Output, remote::Remote};

/// Upgrade the state machine of the running cluster
///
/// A component is a WebAssembly file with a state machine, identified by its SHA-256. An upgrade
/// has three steps. `push` sends the component through the log to every node. Every node rehearses
/// it: a dry run of the activation on the node's real state. `activate` migrates the state to it at
/// one log index on all nodes, while the cluster serves. Writes pause for about as long as the
/// migration took in the rehearsal.
///
/// If the state cannot be migrated, nothing changes. The previous component is kept for a rollback.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave component push target/my-machine.wasm       send it to all nodes, without activating it
  conclave component list                              show the components and the nodes that are ready
  conclave component diff 3f8a02                       show the changes for clients
  conclave component rehearse 3f8a02                   rehearse it again on every node, and wait
  conclave component activate 3f8a02                   switch to it
  conclave component rollback                          switch back, keeping all writes
  conclave component pull 3f8a02 machine.wasm          save it to a file

A component is given by its id or the beginning of its id, at least six digits.")]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Push(push::Push),
    Pull(pull::Pull),
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
        Verb::Pull(pull) => pull.run(remote, output).await,
        Verb::List(list) => list.run(remote, output).await,
        Verb::Rehearse(rehearse) => rehearse.run(remote, output).await,
        Verb::Activate(activate) => activate.run(remote, output).await,
        Verb::Rollback(rollback) => rollback.run(remote, output).await,
        Verb::Diff(diff) => diff.run(remote, output).await,
    }
}
