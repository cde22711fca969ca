//! The configuration of a node: plain data, validated once, then passed explicitly.
//!
//! [`Settings`] has the values from flags, environment and file. [`Config`] has the effective
//! values: every field is present, and every rule between fields is checked. No other code reads
//! the environment, except for `CONCLAVE_LOG`.

mod addresses;
mod duration;
mod environment;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod settings;
mod validate;

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use bytes::Bytes;
pub use conclave_raft::{
    settings::{Limits, Member, SnapshotPolicy},
    timing::Timing,
};
pub use duration::HumanDuration;
pub use environment::{take as take_environment, variables};
pub use error::ConfigError;
pub use settings::{LogFormat, Settings};
pub use validate::client_address;
use zeroize::Zeroizing;

/// The environment variable that filters the log lines, for example `debug` or `conclave=debug`.
pub const LOG_VARIABLE: &str = "CONCLAVE_LOG";

/// The complete configuration of a node.
#[derive(Clone, Debug)]
pub struct Config {
    /// Node id in the cluster. It is never zero and never reused: a node that lost its data joins
    /// with a new id.
    pub node_id: u64,
    /// Name of the cluster. It is part of every record's authentication, so that data and peers of
    /// another cluster are detected.
    pub cluster_id: String,
    /// Data directory for the log, the snapshots and the keyring. Each node needs its own.
    pub data_dir: PathBuf,
    /// Listen address for clients.
    pub listen_client: SocketAddr,
    /// Listen address for the other members. Never expose it to clients.
    pub listen_peer: SocketAddr,
    /// Listen address for metrics and probes.
    pub listen_admin: SocketAddr,
    /// The initial members of the cluster, including this node.
    pub members: Vec<Member>,
    /// Source of the master key.
    pub master_key: MasterKeySource,
    /// The initial component of a new cluster.
    pub component: Option<ComponentSource>,
    /// The timing of Raft.
    pub timing: Timing,
    /// Limits of requests and of the state machine.
    pub limits: Limits,
    /// Limits of client connections.
    pub connections: ConnectionLimits,
    /// The conditions for taking a snapshot.
    pub snapshot: SnapshotPolicy,
    /// Interval at which the leader has the replicas compare their outcomes. `None`: never.
    pub consistency_check_interval: Option<Duration>,
    /// Format of the node's log.
    pub log_format: LogFormat,
    /// A directory of compiled components, shared by nodes on the same host. `None`: each node
    /// compiles for itself.
    pub compile_cache: Option<PathBuf>,
    /// Stop when standard input closes, for a node that must not outlive its parent.
    pub exit_on_stdin_close: bool,
}

/// The settings for reading the data directory of a stopped node.
#[derive(Clone, Debug)]
pub struct StoppedNode {
    /// Data directory with its log, its snapshots and its keyring.
    pub data_dir: PathBuf,
    /// Source of the master key.
    pub master_key: MasterKeySource,
}

/// The source of the master key. It is never the command line, which every process can read.
#[derive(Clone)]
pub enum MasterKeySource {
    /// A file with the key.
    File(PathBuf),
    /// The value of the environment variable `CONCLAVE_MASTER_KEY`.
    Value(Zeroizing<String>),
}

impl fmt::Debug for MasterKeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Value(_) => f.write_str("environment variable CONCLAVE_MASTER_KEY"),
        }
    }
}

/// The source of a component.
#[derive(Clone)]
pub enum ComponentSource {
    /// A file with the component.
    File(PathBuf),
    /// The component itself, for a program that contains it.
    Bytes(Bytes),
    /// The default component of a program, for new clusters if none is configured. A cluster with
    /// another initial component continues with its own, without a log message.
    Default(Bytes),
}

impl fmt::Display for ComponentSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Default(_) => f.write_str("the default component"),
            Self::Bytes(bytes) => write!(f, "a component of {} bytes", bytes.len()),
        }
    }
}

impl fmt::Debug for ComponentSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Limits of client connections and subscriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Maximum number of connections. `None`: the default, or fewer if the limit of open files is low.
    pub max: Option<usize>,
    /// Idle limit: a connection that begins no call for this time is closed once its calls have
    /// ended. `None`: no limit.
    pub idle: Option<Duration>,
    /// Age limit: an older connection is closed once its calls have ended. `None`: no limit.
    pub age: Option<Duration>,
    /// Maximum number of subscriptions of the node.
    pub subscriptions: usize,
    /// Maximum number of subscriptions per connection.
    pub subscriptions_each: usize,
}
