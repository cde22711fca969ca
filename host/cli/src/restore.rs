//! `conclave restore`: makes the data directories of a new cluster from a backup.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use tokio::task::spawn_blocking;

use super::{
    Failed, Result,
    backup::{OwnKey, local, open},
    output::Output,
};
use conclave::{
    backup,
    backup::KeySource,
    config::{Config, Settings},
};

/// Make the data directories of a new cluster from a backup
///
/// Each node of the new cluster needs its own directory, made from the same file, with the same
/// --cluster-id and the same members. Run this once per node with --node-id, or once with --all,
/// which makes DIR/node-1, DIR/node-2 and so on. Then start the nodes with the same settings. Nodes
/// of different backups refuse each other.
///
/// The new cluster has the state, the components and the limits of the backup, and its log continues
/// at the index of the backup. It has a new id and new members, and its own master key. The cluster
/// from which the backup was taken is not touched, and must not be continued beside it if clients
/// could reach both.
///
/// The key of the backup is by default the new master key. If the backup has another one, give it with
/// --key-file (the master key of the old cluster, or the key file of the backup) or
/// --passphrase-file.
///
/// A directory that has files is refused. If the backup turns out to be damaged, no directory is made.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave restore cluster.backup --config node.toml
  conclave restore cluster.backup --all --data-dir ./data --cluster-id blue-2 --master-key-file master.key \\
    --member 1=10.0.0.1:7201,10.0.0.1:7101 --member 2=10.0.0.2:7201,10.0.0.2:7101 \\
    --member 3=10.0.0.3:7201,10.0.0.3:7101
  ssh host cat cluster.backup | conclave restore - --config node.toml --key-file old-master.key

With --json: {\"index\", \"component\", \"restore_id\" (the same on all nodes), \"directories\"}")]
pub struct Arguments {
    /// Backup file, - for stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Configuration file of the new node
    #[arg(long, env = "CONCLAVE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Node id of the new node
    #[arg(long, env = "CONCLAVE_NODE_ID", value_name = "N")]
    node_id: Option<u64>,

    /// Make the directories of all members, as DIR/node-ID
    #[arg(long)]
    all: bool,

    /// Name of the new cluster, which must differ from that of the backup
    #[arg(long, env = "CONCLAVE_CLUSTER_ID", value_name = "NAME")]
    cluster_id: Option<String>,

    /// Data directory to make; with --all, the parent of the directories
    #[arg(long, env = "CONCLAVE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// File with the master key of the new node
    #[arg(long, env = "CONCLAVE_MASTER_KEY_FILE", value_name = "FILE")]
    master_key_file: Option<PathBuf>,

    /// Add a member of the new cluster. Give it once per member
    #[arg(
        long = "member",
        env = "CONCLAVE_MEMBERS",
        value_delimiter = ';',
        value_name = "ID=PEER_HOST:PORT,CLIENT_HOST:PORT"
    )]
    members: Vec<String>,

    #[command(flatten)]
    key: OwnKey,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub async fn run(arguments: Arguments, output: &mut Output) -> Result {
    output.set_json(arguments.json);
    let (json, file, all) = (arguments.json, arguments.file.clone(), arguments.all);
    let own_key = arguments.key.source();
    let config = config(arguments)?;
    let nodes: Vec<(u64, PathBuf)> = match all {
        false => vec![(config.node_id, config.data_dir.clone())],
        true => {
            let ids = config.members.iter().map(|member| member.node_id);
            ids.map(|id| (id, config.data_dir.join(format!("node-{id}")))).collect()
        }
    };
    let dirs: Vec<String> = nodes.iter().map(|(_, dir)| dir.display().to_string()).collect();
    let restoring = spawn_blocking(move || {
        let key = own_key.unwrap_or_else(|| KeySource::MasterKey(config.master_key.clone()));
        let reader = open(&file)?;
        let info = reader.info().clone();
        let nodes: Vec<_> = nodes.iter().map(|(id, dir)| (*id, dir.as_path())).collect();
        let restored = backup::restore(reader, &key, &config, &nodes);
        let restored = restored.map_err(|error| local(&error))?;
        Ok::<_, Failed>((info, restored, config.cluster_id))
    });
    let (info, restored, cluster_id) = restoring.await.map_err(|error| local(&error))??;
    if json {
        output.value(&json!({
            "index": restored.index,
            "component": restored.component.to_string(),
            "restore_id": hex::encode(restored.restore_id),
            "directories": dirs,
        }));
        return Ok(());
    }
    for dir in dirs {
        output.line(format!(
            "{dir}: cluster {cluster_id} with the state of cluster {} at index {}",
            info.cluster_id, restored.index
        ));
    }
    output.remark(match all {
        true => "start the nodes with the same cluster id and members",
        false => {
            "make the directories of the other members from the same file, and start the nodes with the same cluster \
             id and members"
        }
    });
    Ok(())
}

/// Returns the configuration of the new node, with the rules of `conclave serve`.
fn config(arguments: Arguments) -> Result<Config> {
    let Arguments { config, node_id, all, cluster_id, data_dir, master_key_file, members, .. } =
        arguments;
    let settings = Settings {
        config,
        node_id,
        cluster_id,
        data_dir,
        master_key_file,
        members,
        ..Settings::default()
    };
    let mut settings = settings.with_file().map_err(|error| Failed::usage(&error))?;
    if all {
        // Every rule holds for each member. The first one stands for all.
        let first = settings.members.first().and_then(|member| member.split('=').next());
        settings.node_id = first.and_then(|id| id.trim().parse().ok());
    }
    Config::load(settings).map_err(|error| Failed::usage(&error))
}
