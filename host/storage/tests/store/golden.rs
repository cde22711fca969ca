//! Every later version must read the files that this version of the formats wrote. The fixture is a
//! data directory: our own files as they are, and the tree's keys and sealed values, which are put
//! into a new sled tree.

use std::{fs, path::PathBuf};

use conclave_storage::{
    Options, Storage,
    raft_types::{Entry, Payload, Vote},
};
use conclave_types::{
    Command, CommandKind, ComponentId,
    components::{About, Activation, ComponentCommand, ComponentPart},
};
use openraft::{RaftLogReader, storage::RaftLogStorage};

use crate::support::*;

const SNAPSHOT: &str = "00000000000000000002-00000000000000000001.snap";

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/store").join(name)
}

/// A part of a component, and its activation.
fn component_entries() -> [Entry; 2] {
    let (component, from) = (ComponentId([8; 32]), ComponentId([9; 32]));
    let about = About { name: "name".into(), version: "1.2".into(), state_version: 3 };
    let part = ComponentPart {
        component,
        total_bytes: 100,
        at: 0,
        bytes: b"piece"[..].into(),
        about: Some(about),
    };
    let activation = Activation { component, from, voters: [1, 2, 3].into() };
    [(6, ComponentCommand::Part(part)), (7, ComponentCommand::Activate(activation))].map(
        |(index, command)| Entry {
            log_id: log_id(2, index),
            payload: Payload::Normal(Command {
                time_ms: index,
                kind: CommandKind::Component(command),
            }),
        },
    )
}

fn sled_config() -> sled::Config {
    sled::Config::default().segment_size(16 << 20)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_this_version_is_read() {
    let files = ["identity", "keyring", "watermark", "initial-component"];
    is_read("golden", &files, of_small_component, &component_entries()).await;
}

/// A component that is small enough for a fixture.
fn of_small_component(options: Options) -> Options {
    let component = bytes::Bytes::from_static(b"a component");
    Options { component_id: ComponentId::of(&component), component, ..options }
}

async fn is_read(
    name: &str,
    names: &[&str],
    made_for: impl FnOnce(Options) -> Options,
    more: &[Entry],
) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("snapshots")).unwrap();
    for file in names {
        fs::copy(fixture(name).join(file), dir.path().join(file)).unwrap();
    }
    let snapshot = dir.path().join("snapshots").join(SNAPSHOT);
    fs::copy(fixture(name).join("snapshot"), snapshot).unwrap();
    let db = sled_config().path(dir.path().join("log")).open().unwrap();
    for line in fs::read_to_string(fixture(name).join("log.hex")).unwrap().lines() {
        let (key, value) = line.split_once(' ').unwrap();
        db.insert(hex::decode(key).unwrap(), hex::decode(value).unwrap()).unwrap();
    }
    drop(db);
    let options = made_for(options(dir.path()));
    let component = options.component.clone();
    let storage = Storage::open(options).unwrap();
    let mut log = storage.log.clone();
    let mut expected: Vec<_> = (2..6).map(|index| entry(2, index, 10)).collect();
    expected.extend_from_slice(more);
    assert!(all(&log) == expected);
    assert!(storage.initial_component == component);
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new_committed(2, 1)));
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(2, 3)));
    assert_eq!(log.get_log_state().await.unwrap().last_purged_log_id, Some(log_id(2, 1)));
    assert_eq!(log.list_records("").unwrap(), [("name".to_owned(), b"value".to_vec())]);
    let snapshot = storage.snapshots.latest().unwrap().unwrap();
    assert_eq!(
        (&snapshot.header()[..], &chunks(&snapshot)[0][..]),
        (&b"header"[..], &b"chunk"[..])
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes the fixture; run when a new version of a format is made"]
async fn write_fixture() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(of_small_component(options(dir.path()))).unwrap();
    let mut log = storage.log.clone();
    log.save_vote(&Vote::new_committed(2, 1)).await.unwrap();
    append(&log, (0..4).map(|index| entry(2, index, 10)).collect()).await.unwrap();
    append(&log, (4..9).map(|index| entry(2, index, 10)).collect()).await.unwrap();
    log.truncate_after(Some(log_id(2, 5))).await.unwrap();
    append(&log, component_entries().to_vec()).await.unwrap();
    log.save_committed(Some(log_id(2, 3))).await.unwrap();
    log.purge(log_id(2, 1)).await.unwrap();
    log.put_record("name", Some(b"value".to_vec())).unwrap();
    log.put_record("gone", Some(b"value".to_vec())).unwrap();
    log.shutdown();
    let mut writer = storage.snapshots.create(2, 1, b"header").unwrap();
    writer.write(b"chunk").unwrap();
    writer.commit().unwrap();
    drop((log, storage));
    // A removed metadata entry leaves a value in the tree.
    let storage = Storage::open(of_small_component(options(dir.path()))).unwrap();
    storage.log.put_record("gone", None).unwrap();
    drop(storage);
    fs::create_dir_all(fixture("golden")).unwrap();
    for name in ["identity", "keyring", "watermark", "initial-component"] {
        fs::copy(dir.path().join(name), fixture("golden").join(name)).unwrap();
    }
    fs::copy(dir.path().join("snapshots").join(SNAPSHOT), fixture("golden").join("snapshot"))
        .unwrap();
    let db = sled_config().path(dir.path().join("log")).open().unwrap();
    let lines = db.iter().map(|item| {
        let (key, value) = item.unwrap();
        format!("{} {}\n", hex::encode(key), hex::encode(value))
    });
    fs::write(fixture("golden").join("log.hex"), lines.collect::<String>()).unwrap();
}
