//! `conclave replay`: what a stopped node's log did, and what it would do elsewhere.

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

/// Replay a stopped node's log to any index, and look there
///
/// The newest snapshot, or the beginning if the log reaches back to it, and the committed entries after it are
/// applied as the node applied them, with the components that the log activates. Then queries are answered from
/// that state. An entry can be shown with its outcome, and one that trapped with a backtrace of the machine.
///
/// Nothing in the directory is changed. Its files are copied into a private directory, sealed as they are, which
/// is removed at the end; a node that runs is refused. The limits that decide outcomes are in the log. A node's own
/// configuration file can be given for all settings.
///
/// What is shown was encrypted: keep it out of tickets and logs.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave replay --config node.toml                       how far the log goes, and what came of it
  conclave replay --config node.toml --entries 100..120    what these entries are, a line each
  conclave replay --config node.toml --show 117            one of them, with its outcome
  conclave replay --data-dir /var/lib/conclave --master-key-file master.key \\
      --to 116 --query kv.v1.KV/Get '{\"key\": \"color\"}'     the state just before it
  conclave replay --config node.toml --show 117 --component fixed.wasm
  conclave replay --config node.toml --component fixed.wasm --compare")]
pub struct Arguments {
    /// The settings of the node: its data_dir and master_key_file count here
    #[arg(long, env = "CONCLAVE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// The stopped node's data directory, or a copy of it that was made while it was stopped
    #[arg(long, env = "CONCLAVE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// The file with its master key; CONCLAVE_MASTER_KEY may hold the key itself
    #[arg(long, env = "CONCLAVE_MASTER_KEY_FILE", value_name = "FILE")]
    master_key_file: Option<PathBuf>,

    /// Replay up to this index [default: the last that is known to be committed; with --show or --entries
    /// alone as far as they need]
    #[arg(long, value_name = "INDEX")]
    to: Option<u64>,

    /// Ask the machine in the end, with JSON; repeat for more
    #[arg(long, num_args = 2, value_names = ["METHOD", "JSON"])]
    query: Vec<String>,

    /// Show one entry: its request, its outcome, and why it trapped
    #[arg(long, value_name = "INDEX")]
    show: Option<u64>,

    /// Show these entries, a line each; either end may be left out
    #[arg(long, value_name = "FROM..TO", value_parser = plan::range)]
    entries: Option<(Option<u64>, Option<u64>)>,

    /// Apply the log with this component instead, from where the replay begins
    #[arg(long, value_name = "FILE.wasm")]
    component: Option<PathBuf>,

    /// Apply it with the components of the time as well, and show where the outcomes differ
    #[arg(long, requires = "component")]
    compare: bool,

    /// Show so many of the entries that differ
    #[arg(long, value_name = "COUNT", default_value_t = 20, requires = "compare")]
    differences_max: usize,

    /// Go on with entries that may not be committed
    #[arg(long)]
    uncommitted: bool,

    /// Make the copy in this directory [default: the system's for temporary files]
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
    let stopped = stopped.map_err(|error| Failed::Usage(error.to_string()))?;
    let queries = plan::queries(&arguments.query)?;
    let component = arguments.component.as_ref().map(|path| {
        let read = fs::read(path).map(Bytes::from);
        read.map_err(|cause| Failed::local(format!("{}: {cause}", path.display())))
    });
    let component = component.transpose()?;
    let parent = arguments.work_dir.clone().unwrap_or_else(env::temp_dir);
    // Dropped last of all: what is open lies in it.
    let private = PrivateDir::create(&parent)?;
    let stop = private.guard()?;
    let opening = spawn_blocking({
        let (copy, stop) = (private.path().to_owned(), stop.clone());
        move || {
            let source = node::open_replay(&stopped, &copy, || stop.is_asked_for())
                .map_err(|error| Failed::local(error.to_string()))?;
            let other = component.map(|component| other(&source, component)).transpose()?;
            Ok::<_, Failed>((source, other))
        }
    });
    let (source, other) = opening.await.map_err(|error| Failed::local(error.to_string()))??;
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
        .map_err(|error| Failed::local(format!("the other component: {error}")))
}
