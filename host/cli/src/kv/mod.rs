//! `conclave kv`: typed access to the default state machine.

mod batches;
mod export;
mod exported;
pub(super) mod flatten;
mod import;
mod list;
mod single;
mod watch;

use clap::{Args, Subcommand};

use super::{Result, output::Output, remote::Remote};

/// Read and write keys of the default state machine, a key-value store
///
/// Keys are text, by convention with slashes: app/db/password. Values are text or bytes. Every
/// write is on the disks of a majority before it is acknowledged.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave kv put app/color green
  conclave kv get app/color
  conclave kv list app/
  conclave kv delete app/color
  conclave kv watch app/
  conclave kv import config.json --prefix app/
  conclave kv export keys.json")]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Put(single::Put),
    Get(single::Get),
    Delete(single::Delete),
    List(list::List),
    Import(import::Import),
    Export(export::Export),
    Watch(watch::Watch),
}

/// Runs the verb.
pub async fn run(arguments: Arguments, output: &mut Output) -> Result {
    let remote = &arguments.remote;
    output.set_json(remote.json);
    match arguments.verb {
        Verb::Put(put) => put.run(remote, output).await,
        Verb::Get(get) => get.run(remote, output).await,
        Verb::Delete(delete) => delete.run(remote, output).await,
        Verb::List(list) => list.run(remote, output).await,
        Verb::Import(import) => import.run(remote, output).await,
        Verb::Export(export) => export.run(remote, output).await,
        Verb::Watch(watch) => watch.run(remote, output).await,
    }
}
