//! `conclave replay`: replays a stopped node's log, with its own components or with another one.

mod entry;
mod plan;
mod private;
mod session;

use std::{env, fs, path::PathBuf};

use bytes::Bytes;
use clap::Args;
use tokio::task::spawn_blocking;

pub(super) use self::private::PrivateDir;
use self::{plan::Plan, session::Session};
use super::{Failed, Result, output::Output};
use conclave::{
    config::{Settings, StoppedNode},
    node,
    replay::Source,
};
use conclave_machine::Component;

/// Replay a stopped node's log to any index, and show its entries and state
///
/// Starts from the newest snapshot, or from the beginning if the log reaches back to it, and
/// applies the committed entries as the node applied them, with the components that the log
/// activates. Then queries are answered from that state. An entry can be shown with its outcome,
/// and one that trapped with a backtrace of the component.
///
/// The data directory is not changed. Its encrypted files are copied into a private directory,
/// which is removed at the end. The node must be stopped. The limits that decide outcomes are in
/// the log. A node's configuration file can be passed unchanged with --config.
///
/// The output shows data that was encrypted: keep it out of tickets and logs.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave replay --config node.toml                       summarize the log and its outcomes
  conclave replay --config node.toml --entries 100..120    list these entries, one per line
  conclave replay --config node.toml --show 117            show one entry with its outcome
  conclave replay --data-dir /var/lib/conclave --master-key-file master.key \\
      --to 116 --query kv.v1.KV/Get '{\"key\": \"color\"}'     query the state before entry 117
  conclave replay --config node.toml --show 117 --component fixed.wasm
  conclave replay --config node.toml --component fixed.wasm --compare")]
pub struct Arguments {
    /// Configuration file of the node, to read its data_dir and master_key_file
    #[arg(long, env = "CONCLAVE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Data directory of the stopped node, or a copy that was made while it was stopped
    #[arg(long, env = "CONCLAVE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// File with the node's master key; CONCLAVE_MASTER_KEY may hold the key itself
    #[arg(long, env = "CONCLAVE_MASTER_KEY_FILE", value_name = "FILE")]
    master_key_file: Option<PathBuf>,

    /// Replay up to this index [default: the last index that is known to be committed; with --show
    /// or --entries alone, as far as they need]
    #[arg(long, value_name = "INDEX")]
    to: Option<u64>,

    /// Run a query against the final state (JSON request; repeatable)
    #[arg(long, num_args = 2, value_names = ["METHOD", "JSON"])]
    query: Vec<String>,

    /// Show one entry with its request and outcome, and the reason if it trapped
    #[arg(long, value_name = "INDEX")]
    show: Option<u64>,

    /// List these entries, one per line; either end may be left out
    #[arg(long, value_name = "FROM..TO", value_parser = plan::range)]
    entries: Option<(Option<u64>, Option<u64>)>,

    /// Apply the log with this component instead, from the start of the replay
    #[arg(long, value_name = "FILE.wasm")]
    component: Option<PathBuf>,

    /// Apply the log with the original components as well, and show the entries whose
    /// outcomes differ
    #[arg(long, requires = "component")]
    compare: bool,

    /// Maximum number of differing entries to show
    #[arg(long, value_name = "COUNT", default_value_t = 20, requires = "compare")]
    differences_max: usize,

    /// Include entries that may not be committed
    #[arg(long)]
    uncommitted: bool,

    /// Directory for the temporary copy [default: the system's directory for temporary files]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub async fn run(arguments: Arguments, output: &mut Output) -> Result {
    output.set_json(arguments.json);
    let stopped = StoppedNode::load(settings(&arguments));
    let stopped = stopped.map_err(|error| Failed::usage(&error))?;
    let queries = plan::queries(&arguments.query)?;
    let component = arguments.component.as_ref().map(|path| {
        let read = fs::read(path).map(Bytes::from);
        read.map_err(Failed::at(path))
    });
    let component = component.transpose()?;
    let parent = arguments.work_dir.clone().unwrap_or_else(env::temp_dir);
    // Dropped last, because the open files lie in it.
    let private = PrivateDir::create(&parent)?;
    let stop = private.guard()?;
    let opening = spawn_blocking({
        let (copy, stop) = (private.path().to_owned(), stop.clone());
        move || {
            let source = node::open_replay(&stopped, &copy, || stop.is_asked_for())
                .map_err(|error| Failed::of(&error))?;
            let other = component.map(|component| other(&source, component)).transpose()?;
            Ok::<_, Failed>((source, other))
        }
    });
    let (source, other) = opening.await.map_err(|error| Failed::of(&error))??;
    let plan = Plan::new(&arguments, source.span(), queries)?;
    let session = Session { source, other, plan, stop };
    session.run(&arguments, output).await
}

fn settings(arguments: &Arguments) -> Settings {
    Settings {
        config: arguments.config.clone(),
        data_dir: arguments.data_dir.clone(),
        master_key_file: arguments.master_key_file.clone(),
        ..Settings::default()
    }
}

fn other(source: &Source, component: Bytes) -> Result<Component> {
    Component::load(source.engine(), component)
        .map_err(|error| Failed::because("the other component", &error))
}
