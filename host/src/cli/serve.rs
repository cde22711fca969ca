//! `conclave serve`: one node, in the foreground.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Failed, Result, output::Output};

/// Run one node of a cluster
///
/// Every flag can also be given as an environment variable, CONCLAVE_ and its name (CONCLAVE_NODE_ID),
/// and in the TOML file that --config names; a flag wins over the environment, which wins over the
/// file.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave serve --config /etc/conclave/node1.toml
  conclave serve --node-id 1 --cluster-id prod --data-dir /var/lib/conclave \\
    --listen-client 0.0.0.0:7100 --listen-peer 0.0.0.0:7200 --listen-admin 127.0.0.1:7300 \\
    --member 1=node1:7200,node1:7100 --member 2=node2:7200,node2:7100 --member 3=node3:7200,node3:7100 \\
    --master-key-file /etc/conclave/master.key")]
pub struct Arguments {
    /// This node's number: not zero, never reused
    #[arg(long, env = "CONCLAVE_NODE_ID", value_name = "N")]
    pub node_id: Option<u64>,

    /// The cluster's name, the same on all nodes for ever
    #[arg(long, env = "CONCLAVE_CLUSTER_ID", value_name = "NAME")]
    pub cluster_id: Option<String>,

    /// Where the node keeps its data
    #[arg(long, env = "CONCLAVE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Where clients connect
    #[arg(long, env = "CONCLAVE_LISTEN_CLIENT", value_name = "HOST:PORT")]
    pub listen_client: Option<String>,

    /// Where the other nodes connect
    #[arg(long, env = "CONCLAVE_LISTEN_PEER", value_name = "HOST:PORT")]
    pub listen_peer: Option<String>,

    /// Where metrics and probes are
    #[arg(long, env = "CONCLAVE_LISTEN_ADMIN", value_name = "HOST:PORT")]
    pub listen_admin: Option<String>,

    /// One initial member, once for each, this node included
    #[arg(
        long = "member",
        env = "CONCLAVE_MEMBER",
        value_name = "ID=PEER,CLIENT",
        value_delimiter = ' '
    )]
    pub members: Vec<String>,

    /// The file of the master key (`conclave key generate`)
    #[arg(long, env = "CONCLAVE_MASTER_KEY_FILE", value_name = "FILE")]
    pub master_key_file: Option<PathBuf>,

    /// The machine's component; the key-value store if not given
    #[arg(long, env = "CONCLAVE_MODULE", value_name = "FILE")]
    pub module: Option<PathBuf>,

    /// Settings in TOML
    #[arg(long, env = "CONCLAVE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// How log lines look
    #[arg(long, env = "CONCLAVE_LOG_FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,

    /// Stop when stdin ends: the parent that holds its other end is gone
    #[arg(long, hide = true)]
    pub exit_on_stdin_close: bool,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Runs the verb.
#[allow(clippy::unused_async, reason = "a stand-in with the signature that the verb will have")]
pub async fn run(_arguments: Arguments, _output: &mut Output) -> Result {
    Err(Failed::local("this build cannot serve yet"))
}
