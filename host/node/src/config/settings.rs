//! Flags, environment and file, in this order of precedence.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{ConfigError, environment, error::malformed};

/// Declares the settings. Each row is one setting: its help text, its name in the file, its type, its environment
/// variable, and the name of its value in the help text. The flag has the name with hyphens.
macro_rules! settings {
    ($($(#[$help:meta])* $name:ident: $type:ty, $variable:literal, $value:literal $(, [$($option:tt)+])?;)*) => {
        /// The settings as they were given. One struct for flags, environment and file, so that each has every setting
        /// under the same name: `--node-id`, `CONCLAVE_NODE_ID`, `node_id = 1`.
        #[derive(Clone, Debug, Default, Deserialize)]
        #[cfg_attr(feature = "command-line", derive(clap::Args))]
        #[serde(deny_unknown_fields)]
        pub struct Settings {
            /// Read settings from this TOML file; flags and environment win over it
            #[cfg_attr(
                feature = "command-line",
                arg(long, env = "CONCLAVE_CONFIG", value_name = "FILE")
            )]
            #[serde(skip)]
            pub config: Option<PathBuf>,

            /// An initial member, this node included; give it once per member, or all in the environment
            /// variable with `;` between them
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
            /// Takes settings that are not given from `other`.
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
    /// This node's number in the cluster: 1, 2, 3, … Never reuse one
    node_id: u64, "CONCLAVE_NODE_ID", "N";

    /// The cluster's name, of your choice and the same on every node: 1 to 64 letters, digits, '-', '_' or '.'
    cluster_id: String, "CONCLAVE_CLUSTER_ID", "NAME";

    /// Where this node keeps its log, snapshots and keyring
    data_dir: PathBuf, "CONCLAVE_DATA_DIR", "DIR";

    /// Listen here for clients; without a host, on all IPv4 addresses [default: 127.0.0.1:7101]
    listen_client: String, "CONCLAVE_LISTEN_CLIENT", "HOST:PORT";

    /// Listen here for the other members [default: 127.0.0.1:7201]
    listen_peer: String, "CONCLAVE_LISTEN_PEER", "HOST:PORT";

    /// Listen here for metrics and probes [default: 127.0.0.1:7301]
    listen_admin: String, "CONCLAVE_LISTEN_ADMIN", "HOST:PORT";

    /// The file that holds the master key: 32 bytes, raw, in hexadecimal or in base64. Instead of a
    /// file the environment variable CONCLAVE_MASTER_KEY may hold the key itself
    master_key_file: PathBuf, "CONCLAVE_MASTER_KEY_FILE", "FILE";

    /// The machine's component that a new cluster begins with, the same on every node; a node with data
    /// goes on with its cluster's, see `conclave component` [default: the key-value store]
    component: PathBuf, "CONCLAVE_COMPONENT", "FILE.wasm";

    /// How often a leader shows that it lives [default: 100]
    heartbeat_ms: u64, "CONCLAVE_HEARTBEAT_MS", "MS";

    /// The shortest silence after which a follower starts an election [default: 800]
    election_min_ms: u64, "CONCLAVE_ELECTION_MIN_MS", "MS";

    /// The longest silence after which a follower starts an election [default: 1000]
    election_max_ms: u64, "CONCLAVE_ELECTION_MAX_MS", "MS";

    /// How long a request may take whose caller set no deadline [default: 10000]
    request_timeout_ms: u64, "CONCLAVE_REQUEST_TIMEOUT_MS", "MS";

    /// The largest request message [default: 4194304]
    request_bytes_max: usize, "CONCLAVE_REQUEST_BYTES_MAX", "BYTES";

    /// The largest response message in a new cluster [default: 4194304, or request_bytes_max if that is larger]
    response_bytes_max: usize, "CONCLAVE_RESPONSE_BYTES_MAX", "BYTES";

    /// The events of one command in a new cluster: topics, payloads and 64 bytes per event [default: 8388608, or
    /// twice request_bytes_max if that is larger]
    event_bytes_max: usize, "CONCLAVE_EVENT_BYTES_MAX", "BYTES";

    /// Fuel for one command in a new cluster, about one unit per wasm instruction [default: 2000000000]
    fuel_per_call: u64, "CONCLAVE_FUEL_PER_CALL", "UNITS";

    /// Fuel for one query or subscription in a new cluster [default: half of fuel_per_call]
    fuel_per_query: u64, "CONCLAVE_FUEL_PER_QUERY", "UNITS";

    /// Fuel for one call that saves or restores the whole state in a new cluster [default: 200000000000]
    fuel_per_state_call: u64, "CONCLAVE_FUEL_PER_STATE_CALL", "UNITS";

    /// Linear memory of one instance of the state machine in a new cluster, twice as much while its state is saved or
    /// restored [default: 1073741824]
    memory_bytes_max: usize, "CONCLAVE_MEMORY_BYTES_MAX", "BYTES";

    /// Commands that a leader holds at once [default: 8192]
    commands_in_flight_max: usize, "CONCLAVE_COMMANDS_IN_FLIGHT_MAX", "COUNT";

    /// Subscriptions of a node at once [default: 10000]
    subscriptions_max: usize, "CONCLAVE_SUBSCRIPTIONS_MAX", "COUNT";

    /// Subscriptions of one connection at once [default: 512]
    subscriptions_per_connection_max: usize, "CONCLAVE_SUBSCRIPTIONS_PER_CONNECTION_MAX", "COUNT";

    /// Connections that clients may hold at once [default: 4096, or what the limit of open files leaves]
    connections_max: usize, "CONCLAVE_CONNECTIONS_MAX", "COUNT";

    /// Close a client's connection that has begun no call for so long, once its calls have ended; 0 for never
    /// [default: 1800000]
    connection_idle_ms: u64, "CONCLAVE_CONNECTION_IDLE_MS", "MS";

    /// Close a client's connection at this age, once its calls have ended, so that clients spread over restarted
    /// nodes again; 0 for never [default: 0]
    connection_age_ms: u64, "CONCLAVE_CONNECTION_AGE_MS", "MS";

    /// Take a snapshot after so many entries since the last [default: 50000]
    snapshot_entries: u64, "CONCLAVE_SNAPSHOT_ENTRIES", "COUNT";

    /// Take a snapshot after so many bytes of entries since the last [default: 67108864]
    snapshot_bytes: u64, "CONCLAVE_SNAPSHOT_BYTES", "BYTES";

    /// Take a snapshot after this time since the last, if there are enough new entries; 0 for never [default: 3600000]
    snapshot_interval_ms: u64, "CONCLAVE_SNAPSHOT_INTERVAL_MS", "MS";

    /// New entries that a snapshot by time needs [default: 1000]
    snapshot_interval_entries: u64, "CONCLAVE_SNAPSHOT_INTERVAL_ENTRIES", "COUNT";

    /// Entries that stay in the log although a snapshot covers them [default: 5000]
    keep_entries: u64, "CONCLAVE_KEEP_ENTRIES", "COUNT";

    /// Bytes of entries that stay in the log although a snapshot covers them [default: 67108864]
    keep_bytes: u64, "CONCLAVE_KEEP_BYTES", "BYTES";

    /// Bytes of log that a leader keeps for a follower that is catching up; it slows writers down when half of
    /// them are used [default: 1073741824]
    catch_up_bytes: u64, "CONCLAVE_CATCH_UP_BYTES", "BYTES";

    /// Retry the transfer of a snapshot that makes no progress for so long [default: 30000]
    snapshot_stall_ms: u64, "CONCLAVE_SNAPSHOT_STALL_MS", "MS";

    /// How often the replicas compare what came of their entries, to find one that has diverged; 0 for never
    /// [default: 10000]
    consistency_check_interval_ms: u64, "CONCLAVE_CONSISTENCY_CHECK_INTERVAL_MS", "MS";

    /// How the node's log looks, on standard error [default: text]
    log_format: LogFormat, "CONCLAVE_LOG_FORMAT", "FORMAT", [value_enum];

    /// Share compiled components with the nodes of the same cluster that use this directory
    compile_cache: PathBuf, "CONCLAVE_COMPILE_CACHE", "DIR", [hide = true];
}

/// How the node's log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "command-line", derive(clap::ValueEnum))]
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
