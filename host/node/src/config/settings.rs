//! Settings from flags, environment and file, in this order of precedence.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{ConfigError, environment, error::malformed};

/// Declares the settings. Each row is one setting: its help text, its name in the file, its type, its
/// environment variable, and the name of its value in the help text. The flag is the name with hyphens.
macro_rules! settings {
    ($($(#[$help:meta])* $name:ident: $type:ty, $variable:literal, $value:literal $(, [$($option:tt)+])?;)*) => {
        /// The settings as given. Flags, environment and file share this struct, so that every
        /// setting has the same name in each: `--node-id`, `CONCLAVE_NODE_ID`, `node_id = 1`.
        #[derive(Clone, Debug, Default, Deserialize)]
        #[cfg_attr(feature = "command-line", derive(clap::Args))]
        #[serde(deny_unknown_fields)]
        pub struct Settings {
            /// Read settings from this TOML file; flags and environment variables override it
            #[cfg_attr(
                feature = "command-line",
                arg(long, env = "CONCLAVE_CONFIG", value_name = "FILE")
            )]
            #[serde(skip)]
            pub config: Option<PathBuf>,

            /// Add an initial member, including this node. Give it once per member, or all members
            /// in the environment variable, separated by `;`
            #[cfg_attr(
                feature = "command-line",
                arg(
                    long = "member",
                    env = "CONCLAVE_MEMBERS",
                    value_delimiter = ';',
                    value_name = "ID=PEER_HOST:PORT,CLIENT_HOST:PORT"
                )
            )]
            #[serde(default)]
            pub members: Vec<String>,

            $(
                $(#[$help])*
                #[cfg_attr(
                    feature = "command-line",
                    arg(long, env = $variable, value_name = $value $(, $($option)+)?)
                )]
                pub $name: Option<$type>,
            )*

            /// Stop when standard input closes
            #[cfg_attr(feature = "command-line", arg(long, hide = true))]
            #[serde(skip)]
            pub exit_on_stdin_close: bool,
        }

        impl Settings {
            /// Takes missing settings from `other`.
            fn or(self, other: Self) -> Self {
                Self {
                    config: self.config,
                    members: if self.members.is_empty() { other.members } else { self.members },
                    $($name: self.$name.or(other.$name),)*
                    exit_on_stdin_close: self.exit_on_stdin_close,
                }
            }
        }

        /// The names of settings with their environment variables.
        #[cfg(test)]
        const VARIABLES: &[(&str, &str)] = &[$((stringify!($name), $variable)),*];
    };
}

settings! {
    /// Node id (1, 2, 3, …). Never reuse an id
    node_id: u64, "CONCLAVE_NODE_ID", "N";

    /// Cluster name, the same on every node: 1 to 64 letters, digits, '-', '_' or '.'
    cluster_id: String, "CONCLAVE_CLUSTER_ID", "NAME";

    /// Data directory for the log, snapshots and keyring
    data_dir: PathBuf, "CONCLAVE_DATA_DIR", "DIR";

    /// Listen address for clients; without a host, all IPv4 addresses [default: 127.0.0.1:7101]
    listen_client: String, "CONCLAVE_LISTEN_CLIENT", "HOST:PORT";

    /// Listen address for the other members [default: 127.0.0.1:7201]
    listen_peer: String, "CONCLAVE_LISTEN_PEER", "HOST:PORT";

    /// Listen address for metrics and probes [default: 127.0.0.1:7301]
    listen_admin: String, "CONCLAVE_LISTEN_ADMIN", "HOST:PORT";

    /// File with the master key: 32 bytes, raw, in hexadecimal or in base64. Alternatively the
    /// environment variable CONCLAVE_MASTER_KEY may hold the key itself
    master_key_file: PathBuf, "CONCLAVE_MASTER_KEY_FILE", "FILE";

    /// Initial component of a new cluster, the same on every node. A node with data continues with
    /// its cluster's component, see `conclave component` [default: the key-value store]
    component: PathBuf, "CONCLAVE_COMPONENT", "FILE.wasm";

    /// Interval of the leader's heartbeats, in milliseconds [default: 100]
    heartbeat_ms: u64, "CONCLAVE_HEARTBEAT_MS", "MS";

    /// Minimum time without a heartbeat before a follower starts an election, in
    /// milliseconds [default: 800]
    election_min_ms: u64, "CONCLAVE_ELECTION_MIN_MS", "MS";

    /// Maximum time without a heartbeat before a follower starts an election, in
    /// milliseconds [default: 1000]
    election_max_ms: u64, "CONCLAVE_ELECTION_MAX_MS", "MS";

    /// Deadline of requests whose caller set none, in milliseconds [default: 10000]
    request_timeout_ms: u64, "CONCLAVE_REQUEST_TIMEOUT_MS", "MS";

    /// Maximum size of a request message [default: 4194304]
    request_bytes_max: usize, "CONCLAVE_REQUEST_BYTES_MAX", "BYTES";

    /// Maximum size of a response message, for a new cluster [default: 4194304, or
    /// request_bytes_max if that is larger]
    response_bytes_max: usize, "CONCLAVE_RESPONSE_BYTES_MAX", "BYTES";

    /// Maximum size of the events of one command (topics, payloads and 64 bytes per event), for a
    /// new cluster [default: 8388608, or twice request_bytes_max if that is larger]
    event_bytes_max: usize, "CONCLAVE_EVENT_BYTES_MAX", "BYTES";

    /// Fuel for one command, about one unit per wasm instruction, for a new cluster [default: 2000000000]
    fuel_per_call: u64, "CONCLAVE_FUEL_PER_CALL", "UNITS";

    /// Fuel for one query or subscription, for a new cluster [default: half of fuel_per_call]
    fuel_per_query: u64, "CONCLAVE_FUEL_PER_QUERY", "UNITS";

    /// Fuel for one call that saves or restores the whole state, for a new cluster [default: 200000000000]
    fuel_per_state_call: u64, "CONCLAVE_FUEL_PER_STATE_CALL", "UNITS";

    /// Maximum linear memory of one instance of the state machine, for a new cluster; twice as much
    /// while its state is saved or restored [default: 1073741824]
    memory_bytes_max: usize, "CONCLAVE_MEMORY_BYTES_MAX", "BYTES";

    /// Maximum number of in-flight commands on the leader [default: 8192]
    commands_in_flight_max: usize, "CONCLAVE_COMMANDS_IN_FLIGHT_MAX", "COUNT";

    /// Maximum number of subscriptions per node [default: 10000]
    subscriptions_max: usize, "CONCLAVE_SUBSCRIPTIONS_MAX", "COUNT";

    /// Maximum number of subscriptions per connection [default: 512]
    subscriptions_per_connection_max: usize, "CONCLAVE_SUBSCRIPTIONS_PER_CONNECTION_MAX", "COUNT";

    /// Maximum number of client connections [default: 4096, or fewer if the limit of open files is low]
    connections_max: usize, "CONCLAVE_CONNECTIONS_MAX", "COUNT";

    /// Close a client connection that has begun no call for this time, once its calls have ended; 0
    /// disables it [default: 1800000]
    connection_idle_ms: u64, "CONCLAVE_CONNECTION_IDLE_MS", "MS";

    /// Close a client connection at this age, once its calls have ended, so that clients spread
    /// over restarted nodes again; 0 disables it [default: 0]
    connection_age_ms: u64, "CONCLAVE_CONNECTION_AGE_MS", "MS";

    /// Take a snapshot after this number of entries since the last one [default: 50000]
    snapshot_entries: u64, "CONCLAVE_SNAPSHOT_ENTRIES", "COUNT";

    /// Take a snapshot after this many bytes of entries since the last one [default: 67108864]
    snapshot_bytes: u64, "CONCLAVE_SNAPSHOT_BYTES", "BYTES";

    /// Take a snapshot after this time since the last one, if there are enough new entries; 0
    /// disables it [default: 3600000]
    snapshot_interval_ms: u64, "CONCLAVE_SNAPSHOT_INTERVAL_MS", "MS";

    /// Minimum number of new entries for a snapshot by time [default: 1000]
    snapshot_interval_entries: u64, "CONCLAVE_SNAPSHOT_INTERVAL_ENTRIES", "COUNT";

    /// Number of entries that stay in the log although a snapshot covers them [default: 5000]
    keep_entries: u64, "CONCLAVE_KEEP_ENTRIES", "COUNT";

    /// Bytes of entries that stay in the log although a snapshot covers them [default: 67108864]
    keep_bytes: u64, "CONCLAVE_KEEP_BYTES", "BYTES";

    /// Bytes of log that a leader retains for a follower that is catching up. Writes are slowed
    /// down once half of them are used [default: 1073741824]
    catch_up_bytes: u64, "CONCLAVE_CATCH_UP_BYTES", "BYTES";

    /// Retry the transfer of a snapshot that makes no progress for this time [default: 30000]
    snapshot_stall_ms: u64, "CONCLAVE_SNAPSHOT_STALL_MS", "MS";

    /// Interval between consistency checks of the replicas, in milliseconds; 0 disables
    /// them [default: 10000]
    consistency_check_interval_ms: u64, "CONCLAVE_CONSISTENCY_CHECK_INTERVAL_MS", "MS";

    /// Format of the node's log on standard error [default: text]
    log_format: LogFormat, "CONCLAVE_LOG_FORMAT", "FORMAT", [value_enum];

    /// Share compiled components with the nodes of the same cluster that use this directory
    compile_cache: PathBuf, "CONCLAVE_COMPILE_CACHE", "DIR", [hide = true];
}

/// The format of the node's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "command-line", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text for humans.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl Settings {
    /// Fills missing settings from the configuration file, if one is named, and then from the file
    /// of defaults, if the environment names one.
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
}

#[cfg(test)]
mod tests {
    use super::VARIABLES;

    #[test]
    fn variables_have_the_names_of_settings() {
        for (name, variable) in VARIABLES {
            assert_eq!(*variable, format!("CONCLAVE_{}", name.to_uppercase()));
        }
    }
}
