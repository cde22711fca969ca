//! What an operator may set: plain data, validated once, then passed explicitly.
//!
//! [`Settings`] is what was written down, in flags, environment and file. [`Config`] is what holds:
//! every field present, every rule between fields checked. Nothing else reads the environment, but for
//! `CONCLAVE_LOG`.

mod addresses;
mod environment;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod settings;
#[cfg(test)]
mod timing_tests;
mod validate;

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use bytes::Bytes;
pub use conclave_raft::{
    settings::{Limits, Member, SnapshotPolicy},
    timing::Timing,
};
pub use environment::{take as take_environment, variables};
pub use error::ConfigError;
pub use settings::{LogFormat, Settings};
pub use validate::client_address;
use zeroize::Zeroizing;

/// The environment variable that chooses the lines of the log, for example `debug` or `conclave=debug`.
pub const LOG_VARIABLE: &str = "CONCLAVE_LOG";

/// Everything a node needs to know before it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's number in the cluster. Never zero, never reused: a node that lost its data joins
    /// under a new one.
    pub node_id: u64,
    /// The cluster's name. Part of every record's authentication, so that no node of another cluster
    /// can be mistaken for one of ours.
    pub cluster_id: String,
    /// Where the log, the snapshots and the keyring live. One node, one directory.
    pub data_dir: PathBuf,
    /// For clients.
    pub listen_client: SocketAddr,
    /// For the other members. Never expose it to clients.
    pub listen_peer: SocketAddr,
    /// For metrics and probes.
    pub listen_admin: SocketAddr,
    /// The members with which the cluster is initialized, this node among them.
    pub members: Vec<Member>,
    /// Where the master key comes from.
    pub master_key: MasterKeySource,
    /// The component that a new cluster begins with.
    pub component: Option<ComponentSource>,
    /// Raft's clock.
    pub timing: Timing,
    /// What a request and a machine may use.
    pub limits: Limits,
    /// The limits of clients' connections.
    pub connections: ConnectionLimits,
    /// When a snapshot is taken.
    pub snapshot: SnapshotPolicy,
    /// How often the leader has the replicas compare what came of their entries; absent: never. Default 10 s,
    /// at least 100 ms.
    pub consistency_check_interval: Option<Duration>,
    /// How the node's log looks.
    pub log_format: LogFormat,
    /// A directory of compiled components, which several nodes of one computer share; absent: each compiles for itself.
    pub compile_cache: Option<PathBuf>,
    /// Stop when standard input closes: for a node whose parent must not outlive it.
    pub exit_on_stdin_close: bool,
}

/// What it takes to look into the data directory of a node that is stopped.
#[derive(Clone, Debug)]
pub struct StoppedNode {
    /// Where its log, its snapshots and its keyring live.
    pub data_dir: PathBuf,
    /// Where the master key comes from.
    pub master_key: MasterKeySource,
}

/// Where the master key comes from. Never from the command line, where every process can read it.
#[derive(Clone)]
pub enum MasterKeySource {
    /// A file that holds it.
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

/// Where a machine's component comes from.
#[derive(Clone)]
pub enum ComponentSource {
    /// A file that holds it.
    File(PathBuf),
    /// The component itself, for a program that carries it.
    Bytes(Bytes),
    /// The component that a program begins a new cluster with if it was told no other. A cluster that began with
    /// another component continues with its own, without a remark.
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

/// The limits of clients' connections and subscriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections at once. Absent: 4096, or what the limit of open files leaves.
    pub max: Option<usize>,
    /// A connection that has begun no call for so long is closed once its calls have ended; absent: never.
    /// Default 30 min.
    pub idle: Option<Duration>,
    /// A connection of this age is closed once its calls have ended; absent: never, which is the default.
    pub age: Option<Duration>,
    /// Subscriptions of the node at once. Default 10,000.
    pub subscriptions: usize,
    /// Subscriptions of one connection at once. Default 512, at most 1,000: calls need room beside them.
    pub subscriptions_each: usize,
}
