//! Settings from flags, environment and file, in this order of precedence.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{ConfigError, HumanDuration, environment, error::malformed};
use conclave_types::limits::{self, LimitError};

/// The default ports. The default address is that of the host itself.
pub(super) const CLIENT_PORT: u16 = 7101;
pub(super) const PEER_PORT: u16 = 7201;
pub(super) const ADMIN_PORT: u16 = 7301;

/// Declares the settings. Each row is one setting: its help text, its name in the file, its type, its
/// limit (default and range) if it has one, its environment variable, and the name of its value in
/// the help text. The flag is the name with hyphens. The default and the range are added to the help
/// text.
macro_rules! settings {
    ($(
        $(#[doc = $help:literal])*
        $name:ident: $type:ty $(= $limit:ident)?, $variable:literal, $value:literal $(, [$($option:tt)+])?;
    )*) => {
        /// The settings as given. Flags, environment and file share this struct, so that every
        /// setting has the same name in each: `--node-id`, `CONCLAVE_NODE_ID`, `node_id = 1`.
        /// [`conclave_types::limits`] has the defaults and the ranges.
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
                $(#[doc = $help])*
                #[cfg_attr(
                    feature = "command-line",
                    arg(
                        long,
                        env = $variable,
                        value_name = $value,
                        help = help(concat!($($help),*), &[$(limits::$limit.help())?])
                        $(, $($option)+)?
                    )
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

            /// Rejects values that are out of range.
            pub(super) fn check_ranges(&self) -> Result<(), LimitError> {
                $($(
                    if let Some(given) = self.$name {
                        limits::$limit.check(stringify!($name), given.into())?;
                    }
                )?)*
                Ok(())
            }
        }

        /// The names of settings with their environment variables.
        pub(super) const VARIABLES: &[(&str, &str)] = &[$((stringify!($name), $variable)),*];

        /// The rows of the table, for tests.
        #[cfg(test)]
        pub(super) fn rows() -> Vec<Row> {
            vec![$(Row {
                name: stringify!($name),
                help: help(concat!($($help),*), &[$(limits::$limit.help())?]),
                limit: None$(.or(Some(Bounds::of(stringify!($limit), &limits::$limit))))?,
            }),*]
        }
    };
}

/// Returns the help text of a setting with its default and range.
#[cfg(any(test, feature = "command-line"))]
fn help(text: &str, limit: &[String]) -> String {
    [text.trim()].into_iter().chain(limit.iter().map(String::as_str)).collect::<Vec<_>>().join(" ")
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

    /// Interval of the leader's heartbeats
    heartbeat: HumanDuration = HEARTBEAT, "CONCLAVE_HEARTBEAT", "DURATION";

    /// Minimum time without a heartbeat before a follower starts an election; 8 heartbeats by default
    /// if that is longer
    election_min: HumanDuration = ELECTION_MIN, "CONCLAVE_ELECTION_MIN", "DURATION";

    /// Maximum time without a heartbeat before a follower starts an election, the same on every node;
    /// 10 heartbeats by default if that is longer
    election_max: HumanDuration = ELECTION_MAX, "CONCLAVE_ELECTION_MAX", "DURATION";

    /// Deadline of requests whose caller set none
    request_timeout: HumanDuration = REQUEST_TIMEOUT, "CONCLAVE_REQUEST_TIMEOUT", "DURATION";

    /// Maximum size of a request message
    request_bytes_max: usize = REQUEST_BYTES_MAX, "CONCLAVE_REQUEST_BYTES_MAX", "BYTES";

    /// Maximum size of a response message, for a new cluster; request_bytes_max by default if that is
    /// larger
    response_bytes_max: usize = RESPONSE_BYTES_MAX, "CONCLAVE_RESPONSE_BYTES_MAX", "BYTES";

    /// Maximum size of the events of one command (topics, payloads and 64 bytes per event), for a
    /// new cluster; twice request_bytes_max by default if that is larger
    event_bytes_max: usize = EVENT_BYTES_MAX, "CONCLAVE_EVENT_BYTES_MAX", "BYTES";

    /// Fuel for one command, about one unit per wasm instruction, for a new cluster
    fuel_per_call: u64 = FUEL_PER_CALL, "CONCLAVE_FUEL_PER_CALL", "UNITS";

    /// Fuel for one query or subscription, for a new cluster; half of fuel_per_call if that is set
    fuel_per_query: u64 = FUEL_PER_QUERY, "CONCLAVE_FUEL_PER_QUERY", "UNITS";

    /// Fuel for one call that saves or restores the whole state, for a new cluster
    fuel_per_state_call: u64 = FUEL_PER_STATE_CALL, "CONCLAVE_FUEL_PER_STATE_CALL", "UNITS";

    /// Maximum linear memory of one instance of the state machine, for a new cluster; twice as much
    /// while its state is saved or restored
    memory_bytes_max: usize = MEMORY_BYTES_MAX, "CONCLAVE_MEMORY_BYTES_MAX", "BYTES";

    /// Maximum number of in-flight commands on the leader
    commands_in_flight_max: usize = COMMANDS_IN_FLIGHT_MAX, "CONCLAVE_COMMANDS_IN_FLIGHT_MAX", "COUNT";

    /// Maximum number of subscriptions per node
    subscriptions_max: usize = SUBSCRIPTIONS_MAX, "CONCLAVE_SUBSCRIPTIONS_MAX", "COUNT";

    /// Maximum number of subscriptions per connection
    subscriptions_per_connection_max: usize = SUBSCRIPTIONS_PER_CONNECTION_MAX, "CONCLAVE_SUBSCRIPTIONS_PER_CONNECTION_MAX", "COUNT";

    /// Maximum number of client connections; fewer by default if the limit of open files is low
    connections_max: usize = CONNECTIONS_MAX, "CONCLAVE_CONNECTIONS_MAX", "COUNT";

    /// Close a client connection that has begun no call for this time, once its calls have ended; 0
    /// disables it
    connection_idle: HumanDuration = CONNECTION_IDLE, "CONCLAVE_CONNECTION_IDLE", "DURATION";

    /// Close a client connection at this age, once its calls have ended, so that clients spread
    /// over restarted nodes again; 0 disables it
    connection_age: HumanDuration = CONNECTION_AGE, "CONCLAVE_CONNECTION_AGE", "DURATION";

    /// Take a snapshot after this number of entries since the last one
    snapshot_entries: u64 = SNAPSHOT_ENTRIES, "CONCLAVE_SNAPSHOT_ENTRIES", "COUNT";

    /// Take a snapshot after this many bytes of entries since the last one
    snapshot_bytes: u64 = SNAPSHOT_BYTES, "CONCLAVE_SNAPSHOT_BYTES", "BYTES";

    /// Take a snapshot after this time since the last one, if there are enough new entries; 0
    /// disables it
    snapshot_interval: HumanDuration = SNAPSHOT_INTERVAL, "CONCLAVE_SNAPSHOT_INTERVAL", "DURATION";

    /// Minimum number of new entries for a snapshot by time
    snapshot_interval_entries: u64 = SNAPSHOT_INTERVAL_ENTRIES, "CONCLAVE_SNAPSHOT_INTERVAL_ENTRIES", "COUNT";

    /// Number of entries that stay in the log although a snapshot covers them
    keep_entries: u64 = KEEP_ENTRIES, "CONCLAVE_KEEP_ENTRIES", "COUNT";

    /// Bytes of entries that stay in the log although a snapshot covers them
    keep_bytes: u64 = KEEP_BYTES, "CONCLAVE_KEEP_BYTES", "BYTES";

    /// Bytes of log that a leader retains for a follower that is catching up. Writes are slowed
    /// down once half of them are used
    catch_up_bytes: u64 = CATCH_UP_BYTES, "CONCLAVE_CATCH_UP_BYTES", "BYTES";

    /// Retry the transfer of a snapshot that makes no progress for this time
    snapshot_stall: HumanDuration = SNAPSHOT_STALL, "CONCLAVE_SNAPSHOT_STALL", "DURATION";

    /// Interval between consistency checks of the replicas; 0 disables them
    consistency_check_interval: HumanDuration = CONSISTENCY_CHECK_INTERVAL, "CONCLAVE_CONSISTENCY_CHECK_INTERVAL", "DURATION";

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

/// A row of the table of settings.
#[cfg(test)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) help: String,
    pub(super) limit: Option<Bounds>,
}

/// A limit of a setting as text.
#[cfg(test)]
pub(super) struct Bounds {
    constant: &'static str,
    pub(super) default: String,
    pub(super) min: String,
    pub(super) max: String,
    pub(super) or_never: bool,
}

#[cfg(test)]
impl Bounds {
    fn of<T: limits::LimitValue>(constant: &'static str, limit: &limits::Limit<T>) -> Self {
        Self {
            constant,
            default: limit.default.text(),
            min: limit.min.text(),
            max: limit.max.text(),
            or_never: limit.or_never,
        }
    }
}

#[cfg(test)]
#[allow(clippy::panic, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn variables_and_limits_have_the_names_of_settings() {
        for (name, variable) in VARIABLES {
            assert_eq!(*variable, format!("CONCLAVE_{}", name.to_uppercase()));
        }
        for row in rows() {
            assert!(row.limit.is_none_or(|limit| limit.constant == row.name.to_uppercase()));
        }
    }

    #[test]
    fn help_shows_the_default_and_the_range_of_every_limit() {
        let rows = rows();
        let help = |name| rows.iter().find(|row| row.name == name).map(|row| &*row.help);
        let heartbeat = "Interval of the leader's heartbeats [default: 100ms; 10ms to 10s]";
        assert_eq!(help("heartbeat"), Some(heartbeat));
        for row in rows.iter().filter(|row| row.limit.is_some()) {
            assert_eq!(row.help.matches("[default").count(), 1, "{}", row.help);
        }
        for (name, port) in [
            ("listen_client", CLIENT_PORT),
            ("listen_peer", PEER_PORT),
            ("listen_admin", ADMIN_PORT),
        ] {
            let default = format!("[default: 127.0.0.1:{port}]");
            assert!(help(name).is_some_and(|help| help.ends_with(&default)), "{name}");
        }
    }

    /// Returns a value as the page of limits shows it: bytes in the largest unit that divides them,
    /// and numbers with thousands separators.
    fn shown(name: &str, text: &str) -> String {
        let Ok(number) = text.parse::<u64>() else { return text.to_owned() };
        let units = [(40, " TiB"), (30, " GiB"), (20, " MiB"), (10, " KiB")];
        let unit = units.into_iter().find(|(shift, _)| {
            name.contains("bytes") && number > 0 && number.trailing_zeros() >= *shift
        });
        let (shift, unit) = unit.unwrap_or((0, ""));
        let digits = (number >> shift).to_string();
        let mut grouped = String::new();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                grouped.push(',');
            }
            grouped.push(digit);
        }
        grouped + unit
    }

    #[test]
    fn page_of_limits_agrees_with_the_table() {
        let page = include_str!("../../../../docs/operating/limits.md");
        for Row { name, limit, .. } in rows() {
            let Some(limit) = limit else { continue };
            let begins = format!("| `{name}`");
            let lines: Vec<_> = page.lines().filter(|line| line.starts_with(&begins)).collect();
            let [line] = lines[..] else { panic!("{name}: not one row, but {lines:?}") };
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            let [default, min, max] =
                [&limit.default, &limit.min, &limit.max].map(|text| shown(name, text));
            let never = if limit.or_never { ", or 0 for never" } else { "" };
            assert_eq!(cells[2..4], [default, format!("{min} to {max}{never}")], "{name}");
        }
    }
}
