//! Damage to any file leads either to an error at open, or to the complete content. It never leads
//! to a panic or to missing data.
//!
//! Method: copy a directory with all kinds of content, change one byte of one file, open the copy
//! and read all of it.

use std::{fs, io, path::Path};

use conclave_storage::{
    Storage,
    raft_types::{Entry, LogId, Vote},
};
use openraft::{RaftLogReader, storage::RaftLogStorage};
use tempfile::TempDir;

use crate::support::*;

type Snapshot = (Vec<u8>, Vec<Vec<u8>>);

/// All content that the layers above can read.
#[derive(Debug, PartialEq)]
struct Content {
    entries: Vec<Entry>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    records: Vec<(String, Vec<u8>)>,
    snapshot: Option<Snapshot>,
}

async fn content(storage: &Storage) -> io::Result<Content> {
    let mut log = storage.log.clone();
    let snapshot = storage.snapshots.latest()?.map(|latest| {
        let chunks = latest.read()?.map(|chunk| Ok::<_, io::Error>(chunk?.to_vec()));
        Ok::<Snapshot, io::Error>((latest.header().to_vec(), chunks.collect::<Result<_, _>>()?))
    });
    Ok(Content {
        entries: log.entries(0..u64::MAX, usize::MAX)?,
        vote: log.read_vote().await?,
        committed: log.read_committed().await?,
        purged: log.get_log_state().await?.last_purged_log_id,
        records: log.list_records("")?,
        snapshot: snapshot.transpose()?,
    })
}

/// Creates a directory with all kinds of content, and closes it cleanly.
async fn directory() -> TempDir {
    let (dir, storage) = fresh();
    let mut log = storage.log.clone();
    for first in (0..120).step_by(4) {
        append(&log, (first..first + 4).map(|index| entry(1, index, 500)).collect()).await.unwrap();
        if first % 12 == 0 {
            log.save_vote(&Vote::new_committed(first, 1)).await.unwrap();
            log.put_record(&format!("record/{first}"), Some(vec![first as u8; 40])).unwrap();
        }
    }
    append(&log, vec![entry(1, 120, 600_000)]).await.unwrap();
    log.truncate_after(Some(log_id(1, 117))).await.unwrap();
    append(&log, vec![entry(2, 118, 50)]).await.unwrap();
    log.save_committed(Some(log_id(1, 100))).await.unwrap();
    log.purge(log_id(1, 21)).await.unwrap();
    log.put_record("record/12", None).unwrap();
    log.save_vote(&Vote::new_committed(500, 2)).await.unwrap();
    let mut writer = storage.snapshots.create(1, 21, b"header").unwrap();
    writer.write(&[9; 3000]).unwrap();
    writer.commit().unwrap();
    dir
}

/// Opens a copy. Both an error and the same content are correct.
async fn refused_or_same(dir: &Path, expected: &Content, what: &str) -> bool {
    let storage = match Storage::open(options(dir)) {
        Ok(storage) => storage,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return true;
        }
    };
    match content(&storage).await {
        Ok(found) => {
            let same = found == *expected;
            assert!(
                same,
                "{what}: silently wrong: {} entries of {}, vote {:?}, committed {:?}, {} records",
                found.entries.len(),
                expected.entries.len(),
                found.vote,
                found.committed,
                found.records.len()
            );
            false
        }
        Err(_) => true,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_byte_in_any_file_is_refused_or_changes_nothing() {
    let dir = directory().await;
    let expected = content(&open(dir.path())).await.unwrap();
    assert_eq!((expected.entries.len(), expected.records.len()), (97, 9));
    let mut refusals = 0;
    let mut tried = 0;
    for path in files(dir.path()) {
        let relative = path.strip_prefix(dir.path()).unwrap();
        let whole = fs::read(&path).unwrap();
        // Samples bytes evenly. Small files are tested completely.
        let used: Vec<_> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
        let tries = if relative.starts_with("log") { 150 } else { 60 };
        for at in used.iter().step_by(used.len().div_ceil(tries).max(1)) {
            let damaged = copy(dir.path());
            let mut changed = whole.clone();
            changed[*at] ^= 0x21;
            fs::write(damaged.path().join(relative), changed).unwrap();
            let what = format!("{}, byte {at} of {}", relative.display(), whole.len());
            let started = std::time::Instant::now();
            refusals += usize::from(refused_or_same(damaged.path(), &expected, &what).await);
            assert!(started.elapsed().as_secs() < 20, "{what}: took {:?}", started.elapsed());
            tried += 1;
        }
    }
    println!("{refusals} of {tried} changes refused");
    assert!(refusals > 200, "{refusals} of {tried}: the test damages relevant bytes");
}

/// sled takes a truncated log for one that a crash cut short. The watermark detects the truncation.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_log_is_refused() {
    let dir = directory().await;
    let expected = content(&open(dir.path())).await.unwrap();
    let length = fs::metadata(dir.path().join("log/db")).unwrap().len();
    let whole = fs::read(dir.path().join("log/db")).unwrap();
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap() as u64;
    let mut refusals = 0;
    for cut in [length - 1, used, used - 1, used - 100, used / 2, used / 10, 4096, 1, 0] {
        let damaged = copy(dir.path());
        let db = fs::File::options().write(true).open(damaged.path().join("log/db")).unwrap();
        db.set_len(cut).unwrap();
        drop(db);
        let what = format!("log cut at {cut} of {length}");
        refusals += usize::from(refused_or_same(damaged.path(), &expected, &what).await);
    }
    assert!(refusals >= 5, "{refusals}");
}

/// After a failed sync, the kernel takes unsynced writes for written, and keeps them only in
/// memory. The store must therefore not trust its reads before a sync has succeeded.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_sync_failed_is_not_believed_before_another_sync_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, medium) = open_failing(dir.path());
    append(&storage.log, vec![entry(1, 0, 5)]).await.unwrap();
    medium.0.store(true, std::sync::atomic::Ordering::SeqCst);
    append(&storage.log, vec![entry(1, 1, 5)]).await.unwrap_err();
    drop(storage);
    let error = Storage::open_on(options(dir.path()), medium.clone()).err().unwrap().to_string();
    assert!(error.contains("on fire") && !error.contains("damaged"), "{error}");
    medium.0.store(false, std::sync::atomic::Ordering::SeqCst);
    let storage = Storage::open_on(options(dir.path()), medium).unwrap();
    assert!(!all(&storage.log).is_empty());
}

/// An older state of sled's files with the newest watermark: acknowledged writes are lost.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_log_is_refused() {
    let (dir, storage) = fresh();
    append(&storage.log, vec![entry(1, 0, 100)]).await.unwrap();
    let older = copy(dir.path());
    storage.log.clone().save_vote(&Vote::new(9, 1)).await.unwrap();
    drop(storage);
    let newer = copy(dir.path());
    fs::remove_dir_all(newer.path().join("log")).unwrap();
    fs::rename(older.path().join("log"), newer.path().join("log")).unwrap();
    let error = Storage::open(options(newer.path())).err().unwrap().to_string();
    assert!(error.contains("acknowledged writes are lost"), "{error}");
    assert!(error.contains("newest data directory"), "{error}");
}

/// Values that are exchanged, copied or removed in a tree that is intact for sled.
#[tokio::test(flavor = "multi_thread")]
async fn records_that_were_moved_or_removed_are_refused_by_name() {
    let dir = directory().await;
    let part_key = |first: u64| [b"e".as_slice(), &first.to_be_bytes(), &[0, 0]].concat();
    type Change = Box<dyn Fn(&sled::Db)>;
    let changes: Vec<(&str, Change)> = vec![
        (
            "log entry 40",
            Box::new(move |db| {
                let (a, b) = (
                    db.get(part_key(40)).unwrap().unwrap(),
                    db.get(part_key(44)).unwrap().unwrap(),
                );
                db.insert(part_key(40), b).unwrap();
                db.insert(part_key(44), a).unwrap();
            }),
        ),
        ("log entry 44", Box::new(move |db| drop(db.remove(part_key(40)).unwrap()))),
        ("log", Box::new(|db| drop(db.remove("mvote").unwrap()))),
        (
            "vote",
            Box::new(|db| {
                let committed = db.get("mcommitted").unwrap().unwrap();
                db.insert("mvote", committed).unwrap();
            }),
        ),
        ("log", Box::new(|db| drop(db.remove("rrecord/24").unwrap()))),
        ("log", Box::new(|db| db.clear().unwrap())),
        ("zebra", Box::new(|db| drop(db.insert("zebra", "stripes").unwrap()))),
    ];
    for (expected, change) in changes {
        let damaged = copy(dir.path());
        let db = sled::Config::default()
            .path(damaged.path().join("log"))
            .segment_size(16 << 20)
            .open()
            .unwrap();
        change(&db);
        drop(db);
        let error = Storage::open(options(damaged.path())).err().expect(expected).to_string();
        assert!(error.contains(expected) && error.contains("damaged"), "{expected}: {error}");
    }
}

/// Values of another directory of the same node cannot be decrypted.
#[tokio::test(flavor = "multi_thread")]
async fn another_directorys_log_is_refused() {
    let (one, two) = (directory().await, directory().await);
    let mixed = copy(one.path());
    fs::remove_dir_all(mixed.path().join("log")).unwrap();
    fs::rename(two.path().join("log"), mixed.path().join("log")).unwrap();
    assert!(Storage::open(options(mixed.path())).is_err());
    let mixed = copy(one.path());
    fs::copy(two.path().join("keyring"), mixed.path().join("keyring")).unwrap();
    assert!(Storage::open(options(mixed.path())).is_err());
}
