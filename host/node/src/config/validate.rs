//! Validation of the settings and of the rules between them.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use zeroize::Zeroizing;

use super::{
    ComponentSource, Config, ConfigError, ConnectionLimits, Limits, MasterKeySource, Settings,
    SnapshotPolicy, StoppedNode, Timing, addresses,
    environment::{self, MASTER_KEY_VARIABLE},
    error::invalid,
};
use conclave_types::{
    limits as defaults,
    limits::{ClusterLimits, LimitError, LimitsChange},
};

const MIB: usize = 1024 * 1024;

impl Config {
    /// Reads the file, if one is named, applies the defaults and checks every rule.
    pub fn load(settings: Settings) -> Result<Self, ConfigError> {
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
        Ok(Self {
            node_id,
            cluster_id: cluster_id(settings.cluster_id.as_deref())?,
            data_dir: data_dir(&settings)?,
            listen_client: client_address(&settings)?,
            listen_peer: addresses::listen("listen_peer", settings.listen_peer.as_deref(), 7201)?,
            listen_admin: addresses::listen(
                "listen_admin",
                settings.listen_admin.as_deref(),
                7301,
            )?,
            members: addresses::members(&settings.members, node_id)?,
            connections: connections(&settings)?,
            master_key: master_key(settings.master_key_file.clone(), master_key_value)?,
            component: settings.component.clone().map(ComponentSource::File),
            timing: timing(&settings)?,
            limits: limits(&settings)?,
            snapshot: snapshot_policy(&settings)?,
            consistency_check_interval: consistency_check_interval(&settings)?,
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
    addresses::listen("listen_client", settings.listen_client.as_deref(), 7101)
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

fn timing(settings: &Settings) -> Result<Timing, ConfigError> {
    let heartbeat = settings.heartbeat_ms.unwrap_or(100);
    // Each default is derived from the other value. Both follow from the heartbeat interval if
    // that is long.
    let (election_min, election_max) = match (settings.election_min_ms, settings.election_max_ms) {
        (Some(min), Some(max)) => (min, max),
        (Some(min), None) => (min, min.saturating_mul(10) / 8),
        (None, Some(max)) => (max.saturating_mul(8) / 10, max),
        (None, None) => {
            (heartbeat.saturating_mul(8).max(800), heartbeat.saturating_mul(10).max(1000))
        }
    };
    let request_timeout = settings.request_timeout_ms.unwrap_or(10_000);
    if !(10..=10_000).contains(&heartbeat) {
        return Err(invalid("heartbeat_ms", heartbeat, "must be between 10 and 10000"));
    }
    if election_min < election_max / 2 + heartbeat * 2 || election_min > 120_000 {
        let rule = format!(
            "must be at least half of election_max_ms ({election_max}) and 2 times heartbeat_ms \
             ({heartbeat}) together, so {}, and at most 120000: a shorter timeout elects a new leader \
             whenever a few heartbeats are late",
            election_max / 2 + heartbeat * 2
        );
        return Err(invalid("election_min_ms", election_min, rule));
    }
    if election_max < election_min + heartbeat || election_max > 120_000 {
        let rule = format!(
            "must be at least election_min_ms + heartbeat_ms ({}) and at most 120000: if all nodes \
             start their elections at once, no node wins",
            election_min + heartbeat
        );
        return Err(invalid("election_max_ms", election_max, rule));
    }
    if !(100..=300_000).contains(&request_timeout) {
        let rule = "must be between 100 and 300000, the maximum time of a call on a node";
        return Err(invalid("request_timeout_ms", request_timeout, rule));
    }
    Ok(Timing {
        heartbeat: Duration::from_millis(heartbeat),
        election_min: Duration::from_millis(election_min),
        election_max: Duration::from_millis(election_max),
        request_timeout: Duration::from_millis(request_timeout),
    })
}

fn limits(settings: &Settings) -> Result<Limits, ConfigError> {
    let within = |name, value: usize, least: usize, most: usize| {
        if (least..=most).contains(&value) {
            Ok(value)
        } else {
            Err(invalid(name, value, format!("must be between {least} and {most}")))
        }
    };
    let request_bytes_max = within(
        "request_bytes_max",
        settings.request_bytes_max.unwrap_or(defaults::REQUEST_BYTES),
        1024,
        16 * MIB,
    )?;
    // The defaults grow with the maximum request size.
    let at_least = |default, needed| (needed > default).then_some(needed);
    let response = at_least(defaults::RESPONSE_BYTES, request_bytes_max);
    let events = at_least(defaults::EVENT_BYTES, 2 * request_bytes_max);
    let limits = Limits {
        request_bytes_max,
        cluster: LimitsChange {
            memory_bytes_max: settings.memory_bytes_max,
            fuel_per_call: settings.fuel_per_call,
            fuel_per_query: settings.fuel_per_query,
            fuel_per_state_call: settings.fuel_per_state_call,
            response_bytes_max: settings.response_bytes_max.or(response),
            event_bytes_max: settings.event_bytes_max.or(events),
        },
        commands_in_flight_max: within(
            "commands_in_flight_max",
            settings.commands_in_flight_max.unwrap_or(8192),
            1,
            1_000_000,
        )?,
    };
    let changed = ClusterLimits::DEFAULT.changed(&limits.cluster, request_bytes_max);
    changed.map_err(|LimitError { name, value, rule }| invalid(name, value, rule))?;
    Ok(limits)
}

fn snapshot_policy(settings: &Settings) -> Result<SnapshotPolicy, ConfigError> {
    let entries = settings.snapshot_entries.unwrap_or(50_000);
    let bytes = settings.snapshot_bytes.unwrap_or(64 * MIB as u64);
    if !(100..=100_000_000).contains(&entries) {
        return Err(invalid("snapshot_entries", entries, "must be between 100 and 100000000"));
    }
    if !(MIB as u64..=1 << 40).contains(&bytes) {
        return Err(invalid("snapshot_bytes", bytes, "must be between 1 MiB and 1 TiB"));
    }
    let keep_entries = settings.keep_entries.unwrap_or(5_000);
    if keep_entries > 10_000_000 {
        return Err(invalid("keep_entries", keep_entries, "must be at most 10000000"));
    }
    let keep_bytes = settings.keep_bytes.unwrap_or(64 * MIB as u64);
    if keep_bytes > 1 << 40 {
        return Err(invalid("keep_bytes", keep_bytes, "must be at most 1 TiB"));
    }
    let catch_up_bytes = settings.catch_up_bytes.unwrap_or(keep_bytes.max(1024 * MIB as u64));
    if !(MIB as u64..=1 << 40).contains(&catch_up_bytes) || catch_up_bytes < keep_bytes {
        let rule = "must be between 1 MiB and 1 TiB, and at least keep_bytes";
        return Err(invalid("catch_up_bytes", catch_up_bytes, rule));
    }
    let stall_ms = settings.snapshot_stall_ms.unwrap_or(30_000);
    if !(1_000..=600_000).contains(&stall_ms) {
        return Err(invalid("snapshot_stall_ms", stall_ms, "must be between 1000 and 600000"));
    }
    let stall = Duration::from_millis(stall_ms);
    let interval = match settings.snapshot_interval_ms.unwrap_or(3_600_000) {
        0 => None,
        interval @ 1_000..=604_800_000 => Some(Duration::from_millis(interval)),
        interval => {
            let rule = "must be between 1000 and 604800000, or 0 for never";
            return Err(invalid("snapshot_interval_ms", interval, rule));
        }
    };
    let interval_entries = settings.snapshot_interval_entries.unwrap_or(1_000);
    if !(1..=100_000_000).contains(&interval_entries) {
        let rule = "must be between 1 and 100000000";
        return Err(invalid("snapshot_interval_entries", interval_entries, rule));
    }
    Ok(SnapshotPolicy {
        entries,
        bytes,
        interval,
        interval_entries,
        keep_entries,
        keep_bytes,
        catch_up_bytes,
        stall,
    })
}

fn connections(settings: &Settings) -> Result<ConnectionLimits, ConfigError> {
    if let Some(max) = settings.connections_max
        && !(1..=1_000_000).contains(&max)
    {
        return Err(invalid("connections_max", max, "must be between 1 and 1000000"));
    }
    let time = |name, given: Option<u64>, default| match given.unwrap_or(default) {
        0 => Ok(None),
        time @ 1_000..=604_800_000 => Ok(Some(Duration::from_millis(time))),
        time => Err(invalid(name, time, "must be between 1000 and 604800000, or 0 for no limit")),
    };
    let count = |name, given: Option<usize>, default, most| match given.unwrap_or(default) {
        count if (1..=most).contains(&count) => Ok(count),
        count => Err(invalid(name, count, format!("must be between 1 and {most}"))),
    };
    let each = settings.subscriptions_per_connection_max;
    Ok(ConnectionLimits {
        subscriptions: count("subscriptions_max", settings.subscriptions_max, 10_000, 1_000_000)?,
        subscriptions_each: count("subscriptions_per_connection_max", each, 512, 1_000)?,
        max: settings.connections_max,
        idle: time("connection_idle_ms", settings.connection_idle_ms, 1_800_000)?,
        age: time("connection_age_ms", settings.connection_age_ms, 0)?,
    })
}

fn consistency_check_interval(settings: &Settings) -> Result<Option<Duration>, ConfigError> {
    match settings.consistency_check_interval_ms.unwrap_or(10_000) {
        0 => Ok(None),
        interval @ 100..=3_600_000 => Ok(Some(Duration::from_millis(interval))),
        interval => {
            let rule = "must be between 100 and 3600000, or 0 for never";
            Err(invalid("consistency_check_interval_ms", interval, rule))
        }
    }
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
            (|s| s.connection_idle_ms = Some(1), "or 0 for no limit"),
            (|s| s.snapshot_interval_ms = Some(1), "or 0 for never"),
            (|s| s.cluster_id = Some("a b".into()), "letters, digits"),
            (|s| s.heartbeat_ms = Some(1), "between 10"),
            (|s| s.election_min_ms = Some(200), "2 times heartbeat_ms"),
            (|s| s.election_max_ms = Some(300), "2 times heartbeat_ms"),
            (
                |s| (s.election_min_ms, s.election_max_ms) = (Some(900), Some(950)),
                "at least election_min_ms + heartbeat_ms",
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
            (|s| s.consistency_check_interval_ms = Some(1), "or 0 for never"),
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
                    "node_id = 1\nheartbeet_ms = 3".to_owned(),
                    "line 2, column 1: unknown field `heartbeet_ms`",
                ),
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
