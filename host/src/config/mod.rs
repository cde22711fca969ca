//! What an operator may set: plain data, validated once, then passed explicitly.
//!
//! [`Settings`] is what was written down, in flags, environment and file. [`Config`] is what holds:
//! every field present, every rule between fields checked. Nothing else reads the environment, but for
//! `CONCLAVE_LOG`.

mod addresses;
mod environment;
mod error;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod settings;
mod timing;
mod validate;

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use bytes::Bytes;
pub use environment::{take as take_environment, variables};
pub use error::ConfigError;
pub use settings::{LogFormat, Settings};
pub use timing::Timing;
pub use validate::client_address;
use zeroize::Zeroizing;

use crate::types::limits::{ClusterLimits, LimitsChange};

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
    /// The machine's component; absent: the key-value store that the binary carries.
    pub module: Option<ModuleSource>,
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
    pub checkpoint_interval: Option<Duration>,
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

/// One initial member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The member's node id.
    pub node_id: u64,
    /// `host:port` where the other members reach it.
    pub peer_address: String,
    /// `host:port` where clients reach it.
    pub client_address: String,
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
pub enum ModuleSource {
    /// A file that holds it.
    File(PathBuf),
    /// The component itself, for a program that carries it.
    Bytes(Bytes),
}

impl fmt::Display for ModuleSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Bytes(bytes) => write!(f, "a component of {} bytes", bytes.len()),
        }
    }
}

impl fmt::Debug for ModuleSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The limits of requests and of the state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest request message. Default 4 MiB, at most 16 MiB.
    pub request_bytes_max: usize,
    /// The limits of the cluster that are given here, if any. A new cluster begins with them; afterwards they change
    /// through the log only.
    pub cluster: LimitsChange,
    /// Commands that a leader holds at once between proposal and answer. Default 8192.
    pub commands_in_flight_max: usize,
}

impl Limits {
    /// The limits that a new cluster begins with.
    pub fn configured(&self) -> ClusterLimits {
        // Validation has refused everything else.
        let changed = ClusterLimits::GENESIS.changed(&self.cluster, self.request_bytes_max);
        changed.unwrap_or(ClusterLimits::GENESIS)
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

/// When a snapshot is taken, after which the log before it is purged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotPolicy {
    /// After so many entries since the last. Default 50,000, at least 100.
    pub entries: u64,
    /// Or after so many bytes of entries. Default 64 MiB, at least 1 MiB.
    pub bytes: u64,
    /// Or after this time, if there are `interval_entries` new entries; absent: never. Default 1 h, at least 1 s.
    pub interval: Option<Duration>,
    /// New entries that a snapshot by time needs. Default 1,000.
    pub interval_entries: u64,
    /// Entries that stay in the log although a snapshot covers them, so that a follower which was
    /// away for a moment needs no snapshot. Default 5,000.
    pub keep_entries: u64,
    /// The most bytes of such entries. Default 64 MiB.
    pub keep_bytes: u64,
    /// The most bytes of log kept for a follower that is catching up, at least `keep_bytes`. When half of them
    /// are used the leader slows writers down. Default 1 GiB.
    pub catch_up_bytes: u64,
    /// A transfer of a snapshot ends when it makes no progress for so long. Default 30 s.
    pub stall: Duration,
}
