//! Flags, environment and file, in this order of precedence.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{ConfigError, environment, error::malformed};

/// What was written down. One struct for all three places, so that each knows every setting under the
/// same name: `--node-id`, `CONCLAVE_NODE_ID`, `node_id = 1`.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Read settings from this TOML file; flags and environment win over it
    #[arg(long, env = "CONCLAVE_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// This node's number in the cluster: 1, 2, 3, … Never reuse one
    #[arg(long, env = "CONCLAVE_NODE_ID", value_name = "N")]
    pub node_id: Option<u64>,

    /// The cluster's name, of your choice and the same on every node: 1 to 64 letters, digits, '-', '_' or '.'
    #[arg(long, env = "CONCLAVE_CLUSTER_ID", value_name = "NAME")]
    pub cluster_id: Option<String>,

    /// Where this node keeps its log, snapshots and keyring
    #[arg(long, env = "CONCLAVE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Listen here for clients; without a host, on all IPv4 addresses [default: 127.0.0.1:7101]
    #[arg(long, env = "CONCLAVE_LISTEN_CLIENT", value_name = "HOST:PORT")]
    pub listen_client: Option<String>,

    /// Listen here for the other members [default: 127.0.0.1:7201]
    #[arg(long, env = "CONCLAVE_LISTEN_PEER", value_name = "HOST:PORT")]
    pub listen_peer: Option<String>,

    /// Listen here for metrics and probes [default: 127.0.0.1:7301]
    #[arg(long, env = "CONCLAVE_LISTEN_ADMIN", value_name = "HOST:PORT")]
    pub listen_admin: Option<String>,

    /// An initial member, this node included; give it once a member, or all in the environment
    /// variable with `;` between them
    #[arg(
        long = "member",
        env = "CONCLAVE_MEMBERS",
        value_delimiter = ';',
        value_name = "ID=PEER_HOST:PORT,CLIENT_HOST:PORT"
    )]
    #[serde(default)]
    pub members: Vec<String>,

    /// The file that holds the master key: 32 bytes, raw, in hexadecimal or in base64. Instead of a
    /// file the environment variable CONCLAVE_MASTER_KEY may hold the key itself
    #[arg(long, env = "CONCLAVE_MASTER_KEY_FILE", value_name = "FILE")]
    pub master_key_file: Option<PathBuf>,

    /// The machine's component that a new cluster begins with, the same on every node; a node with data
    /// goes on with its cluster's, see `conclave module` [default: the key-value store]
    #[arg(long, env = "CONCLAVE_MODULE", value_name = "FILE.wasm")]
    pub module: Option<PathBuf>,

    /// How often a leader shows that it lives [default: 100]
    #[arg(long, env = "CONCLAVE_HEARTBEAT_MS", value_name = "MS")]
    pub heartbeat_ms: Option<u64>,

    /// The shortest silence after which a follower starts an election [default: 800]
    #[arg(long, env = "CONCLAVE_ELECTION_MIN_MS", value_name = "MS")]
    pub election_min_ms: Option<u64>,

    /// The longest silence after which a follower starts an election [default: 1000]
    #[arg(long, env = "CONCLAVE_ELECTION_MAX_MS", value_name = "MS")]
    pub election_max_ms: Option<u64>,

    /// How long a request may take whose caller set no deadline [default: 10000]
    #[arg(long, env = "CONCLAVE_REQUEST_TIMEOUT_MS", value_name = "MS")]
    pub request_timeout_ms: Option<u64>,

    /// The largest request message [default: 4194304]
    #[arg(long, env = "CONCLAVE_REQUEST_BYTES_MAX", value_name = "BYTES")]
    pub request_bytes_max: Option<usize>,

    /// The largest response message in a new cluster [default: 4194304, or request_bytes_max if that is larger]
    #[arg(long, env = "CONCLAVE_RESPONSE_BYTES_MAX", value_name = "BYTES")]
    pub response_bytes_max: Option<usize>,

    /// The events of one command in a new cluster: topics, payloads and 64 bytes per event [default: 8388608, or
    /// twice request_bytes_max if that is larger]
    #[arg(long, env = "CONCLAVE_EVENT_BYTES_MAX", value_name = "BYTES")]
    pub event_bytes_max: Option<usize>,

    /// Fuel for one command in a new cluster, about one unit per wasm instruction [default: 2000000000]
    #[arg(long, env = "CONCLAVE_FUEL_PER_CALL", value_name = "UNITS")]
    pub fuel_per_call: Option<u64>,

    /// Fuel for one query or subscription in a new cluster [default: half of fuel_per_call]
    #[arg(long, env = "CONCLAVE_FUEL_PER_QUERY", value_name = "UNITS")]
    pub fuel_per_query: Option<u64>,

    /// Fuel for one call that saves or restores the whole state in a new cluster [default: 200000000000]
    #[arg(long, env = "CONCLAVE_FUEL_PER_STATE_CALL", value_name = "UNITS")]
    pub fuel_per_state_call: Option<u64>,

    /// Linear memory of one instance of the state machine in a new cluster, twice as much while its state is saved or
    /// restored [default: 1073741824]
    #[arg(long, env = "CONCLAVE_MEMORY_BYTES_MAX", value_name = "BYTES")]
    pub memory_bytes_max: Option<usize>,

    /// Commands that a leader holds at once [default: 8192]
    #[arg(long, env = "CONCLAVE_COMMANDS_IN_FLIGHT_MAX", value_name = "COUNT")]
    pub commands_in_flight_max: Option<usize>,

    /// Subscriptions of a node at once [default: 10000]
    #[arg(long, env = "CONCLAVE_SUBSCRIPTIONS_MAX", value_name = "COUNT")]
    pub subscriptions_max: Option<usize>,

    /// Subscriptions of one connection at once [default: 512]
    #[arg(long, env = "CONCLAVE_SUBSCRIPTIONS_PER_CONNECTION_MAX", value_name = "COUNT")]
    pub subscriptions_per_connection_max: Option<usize>,

    /// Connections that clients may hold at once [default: 4096, or what the limit of open files leaves]
    #[arg(long, env = "CONCLAVE_CONNECTIONS_MAX", value_name = "COUNT")]
    pub connections_max: Option<usize>,

    /// Close a client's connection that has begun no call for so long, once its calls have ended; 0 for never
    /// [default: 1800000]
    #[arg(long, env = "CONCLAVE_CONNECTION_IDLE_MS", value_name = "MS")]
    pub connection_idle_ms: Option<u64>,

    /// Close a client's connection at this age, once its calls have ended, so that clients spread over restarted
    /// nodes again; 0 for never [default: 0]
    #[arg(long, env = "CONCLAVE_CONNECTION_AGE_MS", value_name = "MS")]
    pub connection_age_ms: Option<u64>,

    /// Take a snapshot after so many entries since the last [default: 50000]
    #[arg(long, env = "CONCLAVE_SNAPSHOT_ENTRIES", value_name = "COUNT")]
    pub snapshot_entries: Option<u64>,

    /// Take a snapshot after so many bytes of entries since the last [default: 67108864]
    #[arg(long, env = "CONCLAVE_SNAPSHOT_BYTES", value_name = "BYTES")]
    pub snapshot_bytes: Option<u64>,

    /// Take a snapshot after this time since the last, if there are enough new entries; 0 for never [default: 3600000]
    #[arg(long, env = "CONCLAVE_SNAPSHOT_INTERVAL_MS", value_name = "MS")]
    pub snapshot_interval_ms: Option<u64>,

    /// New entries that a snapshot by time needs [default: 1000]
    #[arg(long, env = "CONCLAVE_SNAPSHOT_INTERVAL_ENTRIES", value_name = "COUNT")]
    pub snapshot_interval_entries: Option<u64>,

    /// Entries that stay in the log although a snapshot covers them [default: 5000]
    #[arg(long, env = "CONCLAVE_KEEP_ENTRIES", value_name = "COUNT")]
    pub keep_entries: Option<u64>,

    /// Bytes of entries that stay in the log although a snapshot covers them [default: 67108864]
    #[arg(long, env = "CONCLAVE_KEEP_BYTES", value_name = "BYTES")]
    pub keep_bytes: Option<u64>,

    /// Bytes of log that a leader keeps for a follower that is catching up; it slows writers down when half of
    /// them are used [default: 1073741824]
    #[arg(long, env = "CONCLAVE_CATCH_UP_BYTES", value_name = "BYTES")]
    pub catch_up_bytes: Option<u64>,

    /// Retry the transfer of a snapshot that makes no progress for so long [default: 30000]
    #[arg(long, env = "CONCLAVE_SNAPSHOT_STALL_MS", value_name = "MS")]
    pub snapshot_stall_ms: Option<u64>,

    /// How often the replicas compare what came of their entries, to find one that has diverged; 0 for never
    /// [default: 10000]
    #[arg(long, env = "CONCLAVE_CHECKPOINT_INTERVAL_MS", value_name = "MS")]
    pub checkpoint_interval_ms: Option<u64>,

    /// How the node's log looks, on standard error [default: text]
    #[arg(long, env = "CONCLAVE_LOG_FORMAT", value_enum, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// Share compiled components with the nodes of the same cluster that use this directory
    #[arg(long, env = "CONCLAVE_COMPILE_CACHE", value_name = "DIR", hide = true)]
    pub compile_cache: Option<PathBuf>,

    /// Stop when standard input closes
    #[arg(long, hide = true)]
    #[serde(skip)]
    pub exit_on_stdin_close: bool,
}

/// How the node's log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Settings {
    /// Fills what flags and environment left open from the file, if one is named, and the rest from the file of
    /// defaults, if the environment names one.
    pub fn with_file(self) -> Result<Self, ConfigError> {
        let settings = match self.config.clone() {
            Some(path) => self.or(Self::read(&path)?),
            None => self,
        };
        let Some(path) = environment::defaults_file() else { return Ok(settings) };
        let mut defaults = Self::read(&path)?;
        if environment::master_key().is_some() {
            defaults.master_key_file = None;
        }
        Ok(settings.or(defaults))
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
        let text = fs::read_to_string(path).map_err(unreadable)?;
        toml::from_str(&text).map_err(|error| malformed(path, &text, &error))
    }

    fn or(self, file: Self) -> Self {
        Self {
            config: self.config,
            node_id: self.node_id.or(file.node_id),
            cluster_id: self.cluster_id.or(file.cluster_id),
            data_dir: self.data_dir.or(file.data_dir),
            listen_client: self.listen_client.or(file.listen_client),
            listen_peer: self.listen_peer.or(file.listen_peer),
            listen_admin: self.listen_admin.or(file.listen_admin),
            members: if self.members.is_empty() { file.members } else { self.members },
            master_key_file: self.master_key_file.or(file.master_key_file),
            module: self.module.or(file.module),
            heartbeat_ms: self.heartbeat_ms.or(file.heartbeat_ms),
            election_min_ms: self.election_min_ms.or(file.election_min_ms),
            election_max_ms: self.election_max_ms.or(file.election_max_ms),
            request_timeout_ms: self.request_timeout_ms.or(file.request_timeout_ms),
            request_bytes_max: self.request_bytes_max.or(file.request_bytes_max),
            response_bytes_max: self.response_bytes_max.or(file.response_bytes_max),
            event_bytes_max: self.event_bytes_max.or(file.event_bytes_max),
            fuel_per_call: self.fuel_per_call.or(file.fuel_per_call),
            fuel_per_query: self.fuel_per_query.or(file.fuel_per_query),
            fuel_per_state_call: self.fuel_per_state_call.or(file.fuel_per_state_call),
            memory_bytes_max: self.memory_bytes_max.or(file.memory_bytes_max),
            commands_in_flight_max: self.commands_in_flight_max.or(file.commands_in_flight_max),
            subscriptions_max: self.subscriptions_max.or(file.subscriptions_max),
            subscriptions_per_connection_max: self
                .subscriptions_per_connection_max
                .or(file.subscriptions_per_connection_max),
            connections_max: self.connections_max.or(file.connections_max),
            connection_idle_ms: self.connection_idle_ms.or(file.connection_idle_ms),
            connection_age_ms: self.connection_age_ms.or(file.connection_age_ms),
            snapshot_entries: self.snapshot_entries.or(file.snapshot_entries),
            snapshot_bytes: self.snapshot_bytes.or(file.snapshot_bytes),
            snapshot_interval_ms: self.snapshot_interval_ms.or(file.snapshot_interval_ms),
            snapshot_interval_entries: self
                .snapshot_interval_entries
                .or(file.snapshot_interval_entries),
            keep_entries: self.keep_entries.or(file.keep_entries),
            keep_bytes: self.keep_bytes.or(file.keep_bytes),
            catch_up_bytes: self.catch_up_bytes.or(file.catch_up_bytes),
            snapshot_stall_ms: self.snapshot_stall_ms.or(file.snapshot_stall_ms),
            checkpoint_interval_ms: self.checkpoint_interval_ms.or(file.checkpoint_interval_ms),
            log_format: self.log_format.or(file.log_format),
            compile_cache: self.compile_cache.or(file.compile_cache),
            exit_on_stdin_close: self.exit_on_stdin_close,
        }
    }
}
