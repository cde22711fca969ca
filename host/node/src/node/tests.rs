//! Tests of a whole node.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{collections::BTreeMap, path::Path};

use conclave_testing::wat::Wat;
use conclave_types::limits::{self, Limit, LimitValue};
use tokio::time::sleep;

use super::*;
use crate::config::Settings;

fn free_address() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Returns the configuration of a single node. The key is in a file, since settings contain no secrets.
fn config(dir: &Path) -> Config {
    let key = dir.join("master.key");
    let [client, peer, admin] = [(); 3].map(|()| free_address());
    fs::write(&key, std::array::from_fn::<u8, 32, _>(|at| at as u8)).unwrap();
    let settings = Settings {
        node_id: Some(1),
        cluster_id: Some("test".into()),
        data_dir: Some(dir.join("data")),
        master_key_file: Some(key),
        listen_client: Some(client.to_string()),
        listen_peer: Some(peer.to_string()),
        listen_admin: Some(admin.to_string()),
        members: vec![format!("1={peer},{client}")],
        ..Settings::default()
    };
    let mut config = Config::load(settings).unwrap();
    config.component = Some(ComponentSource::Bytes(Wat::default().component()));
    config
}

/// Goal: the engine accepts all combinations of limits that the configuration accepts.
#[test]
fn limits_at_their_ends_can_be_set_together() {
    fn pick<T>(limit: &Limit<T>, end: fn(T, T) -> T) -> Option<T>
    where
        T: LimitValue,
    {
        Some(end(limit.min, limit.max))
    }
    let limits = |bytes: fn(usize, usize) -> usize, fuel: fn(u64, u64) -> u64| {
        let settings = Settings {
            node_id: Some(1),
            cluster_id: Some("test".into()),
            data_dir: Some("/tmp/none".into()),
            master_key_file: Some("/tmp/key".into()),
            members: vec!["1=127.0.0.1:7201,127.0.0.1:7101".into()],
            request_bytes_max: pick(&limits::REQUEST_BYTES_MAX, bytes),
            response_bytes_max: pick(&limits::RESPONSE_BYTES_MAX, bytes),
            event_bytes_max: pick(&limits::EVENT_BYTES_MAX, bytes),
            fuel_per_call: pick(&limits::FUEL_PER_CALL, fuel),
            fuel_per_query: pick(&limits::FUEL_PER_QUERY, fuel),
            fuel_per_state_call: pick(&limits::FUEL_PER_STATE_CALL, fuel),
            memory_bytes_max: pick(&limits::MEMORY_BYTES_MAX, bytes),
            commands_in_flight_max: pick(&limits::COMMANDS_IN_FLIGHT_MAX, bytes),
            ..Settings::default()
        };
        Config::from_settings(settings, None).unwrap().limits
    };
    for limits in [limits(usize::min, u64::min), limits(usize::max, u64::max)] {
        let cluster = limits.configured();
        Engine::new(&machine::Limits { cluster, ..machine::Limits::default() }).unwrap();
    }
}

/// Goal: the error of a start keeps its causes as values.
#[test]
fn failed_start_keeps_its_causes() {
    use std::error::Error as _;

    use conclave_crypto::{Error as CryptoError, MasterKeyError};

    let path = Path::new("/nowhere/master.key");
    let error = master_key(&MasterKeySource::File(path.to_owned())).unwrap_err();
    let cause = error.source().unwrap();
    let reason = cause.downcast_ref::<CryptoError>().unwrap().source().unwrap();
    assert!(matches!(reason.downcast_ref(), Some(MasterKeyError::Unreadable(_))));
    assert_eq!(
        chain(&error),
        "master key from /nowhere/master.key: cannot be read: No such file or directory (os error 2)"
    );
}

/// Goal: if any task of the node panics, the node ends with an error that names the task.
#[tokio::test(flavor = "multi_thread")]
async fn node_ends_when_one_of_its_tasks_panics() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::default();
    let break_a_task = |replica: &Replica| {
        replica.supervisor().spawn("a task", async { panic!("broken") });
    };
    let running = run_replica(config(dir.path()), &registry, break_a_task, std::future::pending());
    let ended = timeout(Duration::from_secs(60), running).await.expect("the node ends");
    let error = ended.unwrap_err();
    assert!(error.to_string().contains("the task a task panicked: broken"), "{error}");
}

/// The rows of the tables in `docs/operating/metrics.md`, by the metric's name: type, unit and labels.
fn documented() -> BTreeMap<&'static str, [&'static str; 3]> {
    let page = include_str!("../../../../docs/operating/metrics.md");
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<_> = line.strip_prefix("| `")?.split('|').map(str::trim).collect();
        let [name, kind, unit, labels, _meaning, _end] = cells.try_into().ok()?;
        Some((name.trim_end_matches('`'), [kind, unit, labels]))
    });
    rows.collect()
}

/// Goal: `docs/operating/metrics.md` lists exactly the metrics that a node has, with their types, units and labels.
/// Method: a node runs until it serves. Its registry also describes the metrics that have no sample yet.
#[tokio::test(flavor = "multi_thread")]
async fn documentation_lists_every_metric() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::default();
    let (stop, stopped) = watch::channel(false);
    let running = run_replica(config(dir.path()), &registry, |_| (), until(stopped));
    let serving = async {
        while !registry.page().contains("\nconclave_ready 1\n") {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let scraping = async {
        timeout(Duration::from_secs(60), serving).await.expect("the node serves");
        let scraped = (registry.page(), registry.descriptors());
        stop.send_replace(true);
        scraped
    };
    let (ended, (page, found)) = tokio::join!(running, scraping);
    ended.unwrap();

    for line in ["conclave_raft_is_leader 1", "conclave_raft_leader 1", "conclave_standby 1"] {
        assert!(page.contains(&format!("\n{line}\n")), "{line} is not in:\n{page}");
    }
    let mut documented = documented();
    for descriptor in found {
        let name = descriptor.name;
        let row = documented.remove(name);
        let [kind, unit, labels] = row.unwrap_or_else(|| panic!("{name} is not documented"));
        assert_eq!(kind, descriptor.kind.name(), "the type of {name}");
        let base_unit = Some(unit).filter(|unit| ["seconds", "bytes"].contains(unit));
        assert_eq!(base_unit, descriptor.unit(), "the unit of {name}");
        let names: Vec<_> = descriptor.labels.iter().map(|label| format!("`{label}`")).collect();
        let expected = if names.is_empty() { "–".to_owned() } else { names.join(", ") };
        assert_eq!(labels, expected, "the labels of {name}");
    }
    assert!(documented.is_empty(), "documented, but no node has them: {documented:?}");
}
