//! Validation of the settings and of the rules between them.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use zeroize::Zeroizing;

use super::{
    ComponentSource, Config, ConfigError, ConnectionLimits, HumanDuration, Limits, MasterKeySource,
    Settings, SnapshotPolicy, StoppedNode, Timing, addresses,
    environment::{self, MASTER_KEY_VARIABLE},
    error::invalid,
    settings::{ADMIN_PORT, CLIENT_PORT, PEER_PORT},
};
use conclave_types::limits::{self, ClusterLimits, Limit, LimitError, LimitsChange};

impl Config {
    /// Reads the file, if one is named, applies the defaults and checks every rule.
    pub fn load(settings: Settings) -> Result<Self, ConfigError> {
        environment::check_names()?;
        Self::from_settings(settings.with_file()?, environment::master_key())
    }

    /// Applies the defaults and checks every rule, for a program that embeds a node. Does not read
    /// files or the environment. Host names in listen addresses are resolved. `master_key_value` is
    /// the key as text, if no file contains it.
    pub fn from_settings(
        settings: Settings,
        master_key_value: Option<Zeroizing<String>>,
    ) -> Result<Self, ConfigError> {
        let node_id = settings.node_id.ok_or(ConfigError::Missing {
            name: "node_id",
            flag: "node-id",
            variable: "CONCLAVE_NODE_ID",
        })?;
        if node_id == 0 {
            return Err(invalid("node_id", node_id, "must be 1 or more"));
        }
        settings.check_ranges()?;
        Ok(Self {
            node_id,
            cluster_id: cluster_id(settings.cluster_id.as_deref())?,
            data_dir: data_dir(&settings)?,
            listen_client: client_address(&settings)?,
            listen_peer: addresses::listen(
                "listen_peer",
                settings.listen_peer.as_deref(),
                PEER_PORT,
            )?,
            listen_admin: addresses::listen(
                "listen_admin",
                settings.listen_admin.as_deref(),
                ADMIN_PORT,
            )?,
            members: addresses::members(&settings.members, node_id)?,
            connections: connections(&settings),
            master_key: master_key(settings.master_key_file.clone(), master_key_value)?,
            component: settings.component.clone().map(ComponentSource::File),
            timing: timing(&settings)?,
            limits: limits(&settings)?,
            snapshot: snapshot_policy(&settings)?,
            consistency_check_interval: unless_never(
                limits::CONSISTENCY_CHECK_INTERVAL,
                settings.consistency_check_interval,
            ),
            log_format: settings.log_format.unwrap_or_default(),
            compile_cache: settings.compile_cache.clone(),
            exit_on_stdin_close: settings.exit_on_stdin_close,
        })
    }
}

impl StoppedNode {
    /// Loads the subset of settings that offline inspection needs. A node's configuration file can
    /// be passed unchanged.
    pub fn load(settings: Settings) -> Result<Self, ConfigError> {
        let settings = settings.with_file()?;
        Ok(Self {
            data_dir: data_dir(&settings)?,
            master_key: master_key(settings.master_key_file.clone(), environment::master_key())?,
        })
    }
}

/// Returns the address at which a node with these settings listens for clients.
pub fn client_address(settings: &Settings) -> Result<std::net::SocketAddr, ConfigError> {
    addresses::listen("listen_client", settings.listen_client.as_deref(), CLIENT_PORT)
}

fn data_dir(settings: &Settings) -> Result<PathBuf, ConfigError> {
    settings.data_dir.clone().ok_or(ConfigError::Missing {
        name: "data_dir",
        flag: "data-dir",
        variable: "CONCLAVE_DATA_DIR",
    })
}

fn cluster_id(given: Option<&str>) -> Result<String, ConfigError> {
    let id = given.ok_or(ConfigError::Missing {
        name: "cluster_id",
        flag: "cluster-id (a name of your choice, the same on every node; clusters created before the name was required \
               are named \"conclave\")",
        variable: "CONCLAVE_CLUSTER_ID",
    })?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if id.is_empty() || id.len() > 64 || !id.chars().all(allowed) {
        let rule = "must be 1 to 64 letters, digits, '-', '_' or '.'";
        return Err(invalid("cluster_id", id, rule));
    }
    Ok(id.to_owned())
}

/// Returns whether a text that should be a path is a key: 64 hexadecimal digits, or 32 bytes in base64.
fn is_key(path: &Path) -> bool {
    let Some(text) = path.to_str() else { return false };
    let is_base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '-' | '_');
    let has = |test: fn(char) -> bool| text.contains(test);
    match (text.len(), text.strip_suffix('=')) {
        (64, None) => text.chars().all(|c| c.is_ascii_hexdigit()),
        (44, Some(digits)) => digits.chars().all(is_base64),
        (43, None) => {
            text.chars().all(is_base64)
                && !text.starts_with('/')
                && has(|c| c.is_ascii_uppercase())
                && has(|c| c.is_ascii_lowercase())
                && has(|c| c.is_ascii_digit())
        }
        _ => false,
    }
}

fn master_key(
    file: Option<PathBuf>,
    value: Option<Zeroizing<String>>,
) -> Result<MasterKeySource, ConfigError> {
    match (file, value) {
        (Some(path), _) if is_key(&path) => Err(invalid(
            "master_key_file",
            "(not shown)",
            format!(
                "this is a key and not the name of a file: write the key to a file that only its owner can read, or set \
                 {MASTER_KEY_VARIABLE}. The key may have been visible to others, so consider replacing it"
            ),
        )),
        (Some(path), None) => Ok(MasterKeySource::File(path)),
        (None, Some(value)) => Ok(MasterKeySource::Value(value)),
        (Some(path), Some(_)) => Err(invalid(
            "master_key_file",
            path.display(),
            format!("{MASTER_KEY_VARIABLE} is set as well: keep one of the two"),
        )),
        (None, None) => Err(ConfigError::Missing {
            name: "master_key_file",
            flag: "master-key-file (make one with `conclave key generate FILE`)",
            variable: "CONCLAVE_MASTER_KEY_FILE, or the key itself in CONCLAVE_MASTER_KEY,",
        }),
    }
}

fn timing(settings: &Settings) -> Result<Timing, LimitError> {
    let given = |duration: Option<HumanDuration>| duration.map(Into::into);
    Timing::new(
        given(settings.heartbeat),
        given(settings.election_min),
        given(settings.election_max),
        given(settings.request_timeout),
    )
}

fn limits(settings: &Settings) -> Result<Limits, LimitError> {
    let request_bytes_max = limits::REQUEST_BYTES_MAX.or_default(settings.request_bytes_max);
    // The defaults grow with the maximum request size.
    let at_least = |default, needed| (needed > default).then_some(needed);
    let response = at_least(limits::RESPONSE_BYTES_MAX.default, request_bytes_max);
    let events = at_least(limits::EVENT_BYTES_MAX.default, 2 * request_bytes_max);
    let cluster = LimitsChange {
        memory_bytes_max: settings.memory_bytes_max,
        fuel_per_call: settings.fuel_per_call,
        fuel_per_query: settings.fuel_per_query,
        fuel_per_state_call: settings.fuel_per_state_call,
        response_bytes_max: settings.response_bytes_max.or(response),
        event_bytes_max: settings.event_bytes_max.or(events),
    };
    ClusterLimits::DEFAULT.changed(&cluster, request_bytes_max)?;
    let commands_in_flight_max =
        limits::COMMANDS_IN_FLIGHT_MAX.or_default(settings.commands_in_flight_max);
    Ok(Limits { request_bytes_max, cluster, commands_in_flight_max })
}

fn snapshot_policy(settings: &Settings) -> Result<SnapshotPolicy, ConfigError> {
    let keep_bytes = limits::KEEP_BYTES.or_default(settings.keep_bytes);
    let catch_up_bytes =
        settings.catch_up_bytes.unwrap_or(keep_bytes.max(limits::CATCH_UP_BYTES.default));
    if catch_up_bytes < keep_bytes {
        let rule = format!("must be at least keep_bytes ({keep_bytes})");
        return Err(invalid("catch_up_bytes", catch_up_bytes, rule));
    }
    Ok(SnapshotPolicy {
        entries: limits::SNAPSHOT_ENTRIES.or_default(settings.snapshot_entries),
        bytes: limits::SNAPSHOT_BYTES.or_default(settings.snapshot_bytes),
        interval: unless_never(limits::SNAPSHOT_INTERVAL, settings.snapshot_interval),
        interval_entries: limits::SNAPSHOT_INTERVAL_ENTRIES
            .or_default(settings.snapshot_interval_entries),
        keep_entries: limits::KEEP_ENTRIES.or_default(settings.keep_entries),
        keep_bytes,
        catch_up_bytes,
        stall: limits::SNAPSHOT_STALL.or_default(settings.snapshot_stall),
    })
}

fn connections(settings: &Settings) -> ConnectionLimits {
    ConnectionLimits {
        subscriptions: limits::SUBSCRIPTIONS_MAX.or_default(settings.subscriptions_max),
        subscriptions_each: limits::SUBSCRIPTIONS_PER_CONNECTION_MAX
            .or_default(settings.subscriptions_per_connection_max),
        max: settings.connections_max,
        idle: unless_never(limits::CONNECTION_IDLE, settings.connection_idle),
        age: unless_never(limits::CONNECTION_AGE, settings.connection_age),
    }
}

/// Returns the duration, or `None` if zero disables the function.
fn unless_never(limit: Limit<Duration>, given: Option<HumanDuration>) -> Option<Duration> {
    Some(limit.or_default(given)).filter(|duration| !duration.is_zero())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test")]
mod tests {
    use super::*;

    fn complete() -> Settings {
        Settings {
            node_id: Some(1),
            cluster_id: Some("test".into()),
            data_dir: Some("/tmp/none".into()),
            master_key_file: Some("/tmp/key".into()),
            members: vec!["1=127.0.0.1:7201,127.0.0.1:7101".into()],
            ..Settings::default()
        }
    }

    fn ms(milliseconds: u64) -> Option<HumanDuration> {
        Some(Duration::from_millis(milliseconds).into())
    }

    /// Each line: an invalid change to valid settings, and a part of the expected error.
    #[test]
    fn what_cannot_hold_is_refused_with_the_rule() {
        type Change = fn(&mut Settings);
        let cases: &[(Change, &str)] = &[
            (|s| s.node_id = None, "--node-id"),
            (|s| s.node_id = Some(0), "1 or more"),
            (|s| s.node_id = Some(2), "must be among the members"),
            (|s| s.data_dir = None, "--data-dir"),
            (|s| s.master_key_file = None, "key generate"),
            (|s| s.members.clear(), "--member"),
            (|s| s.members.push("1=127.0.0.1:7202,127.0.0.1:7102".into()), "given twice"),
            (|s| s.cluster_id = None, "--cluster-id"),
            (|s| s.listen_peer = Some("localhost".into()), "listen_peer = localhost"),
            (|s| s.connections_max = Some(0), "between 1 and"),
            (|s| s.subscriptions_max = Some(0), "subscriptions_max = 0: must be between 1 and"),
            (|s| s.subscriptions_per_connection_max = Some(1_024), "between 1 and 1000"),
            (|s| s.connection_idle = ms(1), "or 0 for never"),
            (|s| s.snapshot_interval = ms(1), "or 0 for never"),
            (|s| s.cluster_id = Some("a b".into()), "letters, digits"),
            (|s| s.heartbeat = ms(1), "heartbeat = 1ms: must be between 10ms and 10s"),
            (|s| s.election_min = ms(200), "2 times heartbeat"),
            (|s| s.election_max = ms(300), "2 times heartbeat"),
            (
                |s| (s.election_min, s.election_max) = (ms(900), ms(950)),
                "at least election_min + heartbeat",
            ),
            (|s| s.request_bytes_max = Some(1 << 30), "must be between"),
            (|s| s.response_bytes_max = Some(1 << 20), "may rely on"),
            (|s| s.event_bytes_max = Some(4 << 20), "may rely on"),
            (
                |s| (s.request_bytes_max, s.response_bytes_max) = (Some(8 << 20), Some(4 << 20)),
                "raise response_bytes_max or lower request_bytes_max",
            ),
            (
                |s| (s.request_bytes_max, s.event_bytes_max) = (Some(8 << 20), Some(8 << 20)),
                "raise event_bytes_max or lower request_bytes_max",
            ),
            (|s| s.snapshot_entries = Some(1), "must be between 100"),
            (|s| s.consistency_check_interval = ms(1), "or 0 for never"),
            (|s| s.keep_bytes = Some((1 << 40) + 1), "keep_bytes = 1099511627777: must be between"),
            (|s| (s.keep_bytes, s.catch_up_bytes) = (Some(2 << 20), Some(1 << 20)), "keep_bytes ("),
            (|s| s.snapshot_stall = Some(Duration::MAX.into()), "must be between 1s and 10m"),
        ];
        assert!(Config::from_settings(complete(), None).is_ok());
        for (change, says) in cases {
            let mut settings = complete();
            change(&mut settings);
            let refusal = Config::from_settings(settings, None).unwrap_err().to_string();
            assert!(refusal.contains(says), "{refusal:?} does not say {says:?}");
        }
    }

    #[test]
    fn the_fuel_of_queries_follows_that_of_commands() {
        let fuel = |fuel_per_call, fuel_per_query| {
            let settings = Settings { fuel_per_call, fuel_per_query, ..complete() };
            Config::from_settings(settings, None).unwrap().limits.configured().fuel_per_query
        };
        assert_eq!(fuel(None, None), 1_000_000_000);
        assert_eq!(fuel(Some(10_000_000_000), None), 5_000_000_000);
        assert_eq!(fuel(Some(1_000_000), None), 1_000_000);
        assert_eq!(fuel(None, Some(7_000_000)), 7_000_000);
    }

    #[test]
    fn limits_of_answers_follow_the_limit_of_requests() {
        let limits = |request_bytes_max| {
            let settings = Settings { request_bytes_max, ..complete() };
            let ClusterLimits { response_bytes_max, event_bytes_max, .. } =
                Config::from_settings(settings, None).unwrap().limits.configured();
            (response_bytes_max, event_bytes_max)
        };
        assert_eq!(limits(None), (4 << 20, 8 << 20));
        assert_eq!(limits(Some(1 << 20)), (4 << 20, 8 << 20));
        assert_eq!(limits(Some(16 << 20)), (16 << 20, 32 << 20));
    }

    #[test]
    fn a_key_in_file_and_environment_is_refused() {
        let value = Some(Zeroizing::new("secret".to_owned()));
        let refusal = Config::from_settings(complete(), value).unwrap_err().to_string();
        assert!(refusal.contains("keep one of the two") && !refusal.contains("secret"));
    }

    /// Each line: a configuration file with a mistake, and a part of the expected error. Keys
    /// are never shown.
    #[test]
    fn mistakes_in_the_file_are_named_and_keys_are_not_shown() {
        let hexadecimal = "6368616e676520746869732070617373776f726420746f206120736563726574";
        let base64 = "Y2hhbmdlIHRoaXMgcGFzc3dvcmQgdG8gYSBzZWNyZXQ=";
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        for key in [hexadecimal, base64, base64.trim_end_matches('=')] {
            for (text, says) in [
                (
                    "node_id = 1\nheartbeet = 3".to_owned(),
                    "line 2, column 1: unknown field `heartbeet`",
                ),
                (
                    "node_id = 1\nheartbeat_ms = 3".to_owned(),
                    "line 2, column 1: unknown setting heartbeat_ms: use heartbeat",
                ),
                (
                    "heartbeat = \"100\"".to_owned(),
                    "line 1, column 13: heartbeat: a duration needs a unit, such as 100ms or 10s",
                ),
                ("heartbeat = 100".to_owned(), "heartbeat: a duration needs a unit"),
                (format!("heartbeat = \"{key}\""), "heartbeat: "),
                (format!("node_id = 1\nmaster_key = \"{key}\""), "master_key_file"),
                (format!("node_id = \"{key}\""), "line 1, column 11"),
                (format!("master_key = {key}"), "line 1"),
                (format!("master_key_file = \"{key}\""), "is a key and not the name of a file"),
                (format!("cluster_id = \"{key} {key}\""), "must be 1 to 64"),
            ] {
                std::fs::write(&path, &text).unwrap();
                let config = Some(path.clone());
                let settings = Settings { config, node_id: Some(1), ..Settings::default() };
                let settings = settings.with_file().map(|file| Settings {
                    cluster_id: file.cluster_id.or(complete().cluster_id),
                    master_key_file: file.master_key_file.or(complete().master_key_file),
                    ..complete()
                });
                let loaded = settings.and_then(|settings| Config::from_settings(settings, None));
                let error = loaded.unwrap_err().to_string();
                assert!(error.contains(says), "{error:?} does not say {says:?}");
                assert!(!error.contains(&key[4..24]), "{error}");
            }
        }
    }
}
