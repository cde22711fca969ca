//! What version 1 of each format wrote must be read for ever. The fixture is a data directory: our
//! own files as they are, and the tree's keys and values, sealed, which are put into a fresh sled.

use std::{fs, path::PathBuf};

use conclave::types::raft::Vote;
use openraft::{RaftLogReader, storage::RaftLogStorage};

use crate::support::*;

const SNAPSHOT: &str = "00000000000000000002-00000000000000000001.snap";

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/store/golden")
}

fn sled_config() -> sled::Config {
    sled::Config::default().segment_size(16 << 20)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_version_1_is_read() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("snapshots")).unwrap();
    for (from, to) in [
        ("identity", "identity"),
        ("keyring", "keyring"),
        ("mark", "mark"),
        ("snapshot", &format!("snapshots/{SNAPSHOT}")),
    ] {
        fs::copy(fixture().join(from), dir.path().join(to)).unwrap();
    }
    let db = sled_config().path(dir.path().join("log")).open().unwrap();
    for line in fs::read_to_string(fixture().join("log.hex")).unwrap().lines() {
        let (key, value) = line.split_once(' ').unwrap();
        db.insert(hex::decode(key).unwrap(), hex::decode(value).unwrap()).unwrap();
    }
    drop(db);
    let storage = open(dir.path());
    let mut log = storage.log.clone();
    assert!(all(&log) == (2..6).map(|index| entry(2, index, 10)).collect::<Vec<_>>());
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
    let (dir, storage) = fresh();
    let mut log = storage.log.clone();
    log.save_vote(&Vote::new_committed(2, 1)).await.unwrap();
    append(&log, (0..4).map(|index| entry(2, index, 10)).collect()).await.unwrap();
    append(&log, (4..9).map(|index| entry(2, index, 10)).collect()).await.unwrap();
    log.truncate_after(Some(log_id(2, 5))).await.unwrap();
    log.save_committed(Some(log_id(2, 3))).await.unwrap();
    log.purge(log_id(2, 1)).await.unwrap();
    log.put_record("name", Some(b"value".to_vec())).unwrap();
    log.put_record("gone", Some(b"value".to_vec())).unwrap();
    log.shutdown();
    let mut writer = storage.snapshots.create(2, 1, b"header").unwrap();
    writer.write(b"chunk").unwrap();
    writer.commit().unwrap();
    drop((log, storage));
    // A record that is removed leaves its trace.
    let storage = open(dir.path());
    storage.log.put_record("gone", None).unwrap();
    drop(storage);
    fs::create_dir_all(fixture()).unwrap();
    for name in ["identity", "keyring", "mark"] {
        fs::copy(dir.path().join(name), fixture().join(name)).unwrap();
    }
    fs::copy(dir.path().join("snapshots").join(SNAPSHOT), fixture().join("snapshot")).unwrap();
    let db = sled_config().path(dir.path().join("log")).open().unwrap();
    let lines = db.iter().map(|item| {
        let (key, value) = item.unwrap();
        format!("{} {}\n", hex::encode(key), hex::encode(value))
    });
    fs::write(fixture().join("log.hex"), lines.collect::<String>()).unwrap();
}
