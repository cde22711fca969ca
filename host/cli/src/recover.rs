//! `conclave recover`: repairs of the data directory of a node that cannot start.

use std::{fs, path::PathBuf};

use bytes::Bytes;
use clap::{ArgGroup, Args};
use serde_json::json;
use tokio::task::spawn_blocking;

use super::{Failed, Result, output::Output};
use conclave::{
    config::{Settings, StoppedNode},
    node,
};

/// Repair the data directory of a stopped node that cannot start
///
/// If all nodes stop while they apply the same entry, and again after each restart, there is no
/// leader that could activate a corrected component. There are two repairs. Both change the
/// directory of a stopped node, so make a copy of it first. Make the same repair on every node
/// before you start the first one.
///
/// --trap-entry records an entry as trapped: the node never applies it and continues with the next
/// one. The effects of the entry are lost.
///
/// --component makes another component the active one from the newest snapshot on: the node
/// restores the snapshot into it and applies all later entries with it. Entries that trapped before
/// are applied too. The nodes' snapshots have different indexes, so the component should treat the
/// entries since the oldest snapshot like the previous component did.
///
/// A node that was left out reaches a different state than the others. The consistency checks
/// detect that and repair the minority from the majority. `conclave replay` shows on a copy of the
/// directory at which entry a node stops, and with `--component` the outcomes of the log under
/// another component.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave recover --trap-entry 4711 --data-dir /var/lib/conclave --master-key-file master.key
  conclave recover --component fixed.wasm --config node.toml
  conclave recover --trap-entry 4711 --config node.toml --json | jq .subject

With --trap-entry --json: {\"index\", \"subject\" (the method that the entry calls, or what it is),
\"was_recorded\" (it had trapped before, so nothing has changed)}
With --component --json: {\"index\" (of the snapshot), \"snapshot_bytes\", \"restore_ms\", \"memory_bytes\"}")]
#[command(group = ArgGroup::new("way").required(true).args(["trap_entry", "component"]))]
pub struct Arguments {
    /// Configuration file of the node
    #[arg(long, env = "CONCLAVE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Data directory of the stopped node
    #[arg(long, env = "CONCLAVE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// File with the node's master key
    #[arg(long, env = "CONCLAVE_MASTER_KEY_FILE", value_name = "FILE")]
    master_key_file: Option<PathBuf>,

    /// Record the entry at this log index as trapped
    #[arg(long, value_name = "INDEX")]
    trap_entry: Option<u64>,

    /// Record the entry even if the node does not know that it is committed
    #[arg(long, requires = "trap_entry")]
    uncommitted: bool,

    /// Continue from the newest snapshot with this component
    #[arg(long, value_name = "FILE")]
    component: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub async fn run(arguments: Arguments, output: &mut Output) -> Result {
    output.set_json(arguments.json);
    let settings = Settings {
        config: arguments.config,
        data_dir: arguments.data_dir,
        master_key_file: arguments.master_key_file,
        ..Settings::default()
    };
    let stopped = StoppedNode::load(settings).map_err(|error| Failed::usage(&error))?;
    if let Some(index) = arguments.trap_entry {
        return trap_entry(stopped, index, arguments.uncommitted, arguments.json, output).await;
    }
    let Some(path) = arguments.component else { return Ok(()) };
    replace_component(stopped, path, arguments.json, output).await
}

const ON_EVERY_NODE: &str = "do the same on every other node before you start the first one";

async fn trap_entry(
    stopped: StoppedNode,
    index: u64,
    uncommitted: bool,
    json: bool,
    output: &mut Output,
) -> Result {
    let recording = spawn_blocking(move || node::trap_entry(&stopped, index, uncommitted));
    let recorded = recording.await.map_err(|error| Failed::of(&error))?;
    let recorded = recorded.map_err(|error| Failed::of(&error))?;
    let subject = &recorded.subject;
    if json {
        output.value(&json!({
            "index": recorded.index,
            "subject": subject,
            "was_recorded": recorded.was_recorded,
        }));
    } else if recorded.was_recorded {
        output.line(format!("entry {index} ({subject}) had trapped before: nothing has changed"));
    } else {
        output.line(format!("entry {index} ({subject}) is recorded as trapped on this node"));
        output.remark(ON_EVERY_NODE);
    }
    Ok(())
}

async fn replace_component(
    stopped: StoppedNode,
    path: PathBuf,
    json: bool,
    output: &mut Output,
) -> Result {
    let component = fs::read(&path).map(Bytes::from);
    let component = component.map_err(Failed::at(&path))?;
    let replacing = spawn_blocking(move || node::replace_component(&stopped, component));
    let replaced = replacing.await.map_err(|error| Failed::of(&error))?;
    let replaced = replaced.map_err(|error| Failed::of(&error))?;
    let restore_ms = u64::try_from(replaced.rehearsal.restore_time.as_millis()).unwrap_or(u64::MAX);
    if json {
        output.value(&json!({
            "index": replaced.index,
            "snapshot_bytes": replaced.rehearsal.snapshot_bytes,
            "restore_ms": restore_ms,
            "memory_bytes": replaced.rehearsal.memory_bytes,
        }));
    } else {
        output.line(format!(
            "the component is active from the snapshot at index {} on; it restored the snapshot in {restore_ms} ms",
            replaced.index
        ));
        output.remark(ON_EVERY_NODE);
    }
    Ok(())
}
