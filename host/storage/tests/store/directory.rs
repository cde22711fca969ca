//! The data directory: its owner, its lock, and the files that it may contain.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use conclave_crypto::MasterKey;
use conclave_storage::{Error, Options, Storage, raft_types::Vote};
use conclave_types::ComponentId;
use openraft::{RaftLogReader, storage::RaftLogStorage};

use crate::support::*;

fn refusal(options: Options) -> String {
    match Storage::open(options) {
        Ok(_) => panic!("opened"),
        Err(error) => error.to_string(),
    }
}

/// Returns name and content of every file except the lock.
fn image(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let files = files(dir).into_iter().filter(|path| !path.ends_with("lock"));
    files.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn a_second_opening_is_told_who_has_it() {
    let (dir, storage) = fresh();
    let error = refusal(options(dir.path()));
    assert!(error.contains("in use"), "{error}");
    assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    let snapshots = storage.snapshots.clone();
    drop(storage);
    assert!(refusal(options(dir.path())).contains("in use"), "a part of the storage still exists");
    drop(snapshots);
    open(dir.path());
}

/// A separate file system has `lost+found`, and backup tools leave files.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_names_among_the_snapshots_are_ignored() {
    let (dir, storage) = fresh();
    drop(storage);
    let snapshots = dir.path().join("snapshots");
    fs::create_dir(snapshots.join("lost+found")).unwrap();
    fs::write(snapshots.join(".nfs0001"), b"x").unwrap();
    let storage = open(dir.path());
    assert!(storage.snapshots.latest().unwrap().is_none());
    drop(storage);
    // A snapshot with a damaged name may be the only one, so it is an error.
    fs::write(snapshots.join("1-x.snap"), b"x").unwrap();
    let error = refusal(options(dir.path()));
    assert!(error.contains("1-x.snap") && error.contains("damaged"), "{error}");
}

/// Leftovers of interrupted writes occupy disk space, and are removed.
#[test]
fn leftovers_of_interrupted_writes_are_removed() {
    let (dir, storage) = fresh();
    drop(storage);
    for name in ["keyring.tmp", "initial-component.tmp", "identity.tmp"] {
        fs::write(dir.path().join(name), b"half").unwrap();
    }
    drop(open(dir.path()));
    assert!(files(dir.path()).iter().all(|path| path.extension() != Some("tmp".as_ref())));
}

/// A directory that another user owns is not reported as damaged.
#[test]
fn missing_permissions_are_named_as_such() {
    let (dir, storage) = fresh();
    drop(storage);
    let keyring = dir.path().join("keyring");
    fs::set_permissions(&keyring, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(&keyring).is_ok() {
        // The superuser can read everything.
        return;
    }
    let error = refusal(options(dir.path()));
    assert!(error.contains("user that the node runs as") && !error.contains("damaged"), "{error}");
}

/// A directory of another node or cluster, and a wrong key, are reported by name, and nothing is written.
#[tokio::test(flavor = "multi_thread")]
async fn a_mix_up_is_named_and_changes_nothing() {
    let (dir, storage) = fresh();
    append(&storage.log, vec![entry(1, 0, 100)]).await.unwrap();
    drop(storage);
    let before = image(dir.path());
    let ours = || options(dir.path());
    let cases = [
        (Options { cluster_id: "other".into(), ..ours() }, "cluster"),
        (Options { node_id: 2, ..ours() }, "node 1"),
        (Options { master_key: MasterKey::generate().unwrap(), ..ours() }, "wrong master key"),
    ];
    for (options, expected) in cases {
        let error = refusal(options);
        assert!(error.contains(expected), "{error}");
        assert!(image(dir.path()) == before, "{expected}: something was written");
    }
    assert_eq!(all(&open(dir.path()).log).len(), 1);
}

/// A newer program has another default component. The cluster keeps its own.
#[test]
fn a_directory_keeps_the_component_that_it_was_made_for() {
    let (dir, storage) = fresh();
    assert!(storage.initial_component == component());
    drop(storage);
    assert_eq!(Storage::made_for(dir.path()).unwrap(), Some(ComponentId::of(&component())));
    let other = bytes::Bytes::from_static(b"another");
    let other =
        Options { component_id: ComponentId::of(&other), component: other, ..options(dir.path()) };
    let storage = Storage::open(other.clone()).unwrap();
    assert!(storage.initial_component == component());
    assert_eq!(storage.identity.component_id, ComponentId::of(&component()));
    // Any damage to the file is detected.
    drop(storage);
    let path = dir.path().join("initial-component");
    let whole = fs::read(&path).unwrap();
    let (first, second) = (14 + (1 << 20) + 33, 14 + 2 * ((1 << 20) + 37) - 4);
    for damaged in [
        &[][..],
        &whole[..9],
        &whole[..first],
        &whole[..whole.len() - 1],
        &[&whole[..10], &whole[first..second], &whole[10..first]].concat(),
        &whole.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at == 99)).collect::<Vec<_>>(),
    ] {
        fs::write(&path, damaged).unwrap();
        let error = refusal(options(dir.path()));
        assert!(error.contains("initial-component") && error.contains("damaged"), "{error}");
    }
    fs::remove_file(&path).unwrap();
    for options in [other, options(dir.path())] {
        let error = refusal(options);
        assert!(error.contains("initial-component is missing"), "{error}");
    }
}

/// The initial component must not keep an old data key in use, nor be lost with a retired one.
#[test]
fn the_component_survives_rotations_of_the_data_key() {
    let (dir, storage) = fresh();
    drop(storage);
    for _ in 0..4 {
        let storage = open(dir.path());
        storage.keys.rotate().unwrap();
        drop(storage);
        assert!(open(dir.path()).initial_component == component());
    }
    assert!(open(dir.path()).keys.status().len() <= 2, "old keys are retired");
}

#[test]
fn a_newer_format_is_not_touched() {
    for file in ["identity", "keyring", "initial-component"] {
        let (dir, storage) = fresh();
        drop(storage);
        let path = dir.path().join(file);
        let mut content = fs::read(&path).unwrap();
        content[9] = 9;
        fs::write(&path, content).unwrap();
        let error = refusal(options(dir.path()));
        assert!(error.contains("version 9"), "{error}");
    }
}

#[test]
fn only_the_owner_may_look() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("a/b");
    let storage = open(&dir);
    for dir in [dir.clone(), parent.path().join("a"), dir.join("snapshots")] {
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700, "{dir:?}");
    }
    for name in ["identity", "keyring", "initial-component", "watermark", "lock"] {
        assert_eq!(fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777, 0o600);
    }
    drop(storage);
    // A directory that was opened to other users is restricted again. This also protects sled's
    // files, whose own permissions depend on the umask.
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    open(&dir);
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_directory_with_something_else_in_it_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.txt"), "dear").unwrap();
    assert!(refusal(options(dir.path())).contains("thesis.txt"));
    assert_eq!(fs::read(dir.path().join("thesis.txt")).unwrap(), b"dear");
}

/// Any missing file is reported by name. sled would silently create its files again.
#[test]
fn a_missing_part_is_named() {
    for name in ["keyring", "watermark", "log", "log/db", "log/conf", "snapshots", "identity"] {
        let (dir, storage) = fresh();
        drop(storage);
        let path = dir.path().join(name);
        if path.is_dir() {
            fs::remove_dir_all(&path).unwrap()
        } else {
            fs::remove_file(&path).unwrap()
        }
        let error = Storage::open(options(dir.path())).err().expect(name);
        let named =
            matches!(&error, Error::Missing { path } if path.to_string_lossy().contains(name));
        assert!(named || matches!(error, Error::NotEmpty { .. }), "{name}: {error}");
    }
}

/// A crash at any point of the creation leaves a directory that can be created again.
#[test]
fn an_unfinished_directory_is_made_anew() {
    let (dir, storage) = fresh();
    drop(storage);
    for missing in [
        &["identity"][..],
        &["identity", "watermark"],
        &["identity", "watermark", "log/db"],
        &["identity", "watermark", "log", "keyring", "snapshots"],
    ] {
        let crashed = copy(dir.path());
        for name in missing {
            let path = crashed.path().join(name);
            if path.is_dir() {
                fs::remove_dir_all(path).unwrap()
            } else {
                fs::remove_file(path).unwrap()
            }
        }
        fs::write(crashed.path().join("creating"), "").unwrap();
        drop(open(crashed.path()));
        assert!(!crashed.path().join("creating").exists());
        drop(open(crashed.path()));
    }
}

/// A directory with an identity file is complete, and must not be created again.
#[tokio::test(flavor = "multi_thread")]
async fn a_finished_directory_is_never_made_anew() {
    let (dir, storage) = fresh();
    storage.log.clone().save_vote(&Vote::new(4, 1)).await.unwrap();
    drop(storage);
    fs::write(dir.path().join("creating"), "").unwrap();
    assert_eq!(open(dir.path()).log.read_vote().await.unwrap(), Some(Vote::new(4, 1)));
}

/// sled would take an interrupted snapshot of its page table for a complete one.
#[test]
fn what_sled_left_half_written_is_removed() {
    let (dir, storage) = fresh();
    drop(storage);
    let leftover = dir.path().join("log/snap.FFFFFFFFFFFFFFFF.generating");
    fs::write(&leftover, "half").unwrap();
    open(dir.path());
    assert!(!leftover.exists());
}

/// No stored content appears in any file in plaintext.
#[tokio::test(flavor = "multi_thread")]
async fn no_file_shows_plaintext() {
    const NEEDLE: &[u8] = b"SEVENTEEN-PURPLE-ELEPHANTS";
    let (dir, storage) = fresh();
    for index in 0..50 {
        let request = NEEDLE.repeat(1 + 700 * (index as usize % 20));
        append(&storage.log, vec![entry_of(1, index, request)]).await.unwrap();
    }
    storage.log.put_record("name", Some(NEEDLE.to_vec())).unwrap();
    let mut writer = storage.snapshots.create(1, 3, NEEDLE).unwrap();
    writer.write(&NEEDLE.repeat(1000)).unwrap();
    writer.commit().unwrap();
    storage.log.shutdown();
    drop(storage);
    let mut bytes = 0;
    for (path, content) in image(dir.path()) {
        bytes += content.len();
        // Parts of the content and the method's name must not appear either.
        for needle in [&NEEDLE[..8], &NEEDLE[8..18], b"kv.v1.KV"] {
            let found = content.windows(needle.len()).any(|window| window == needle);
            assert!(!found, "{} shows plaintext", path.display());
        }
    }
    assert!(bytes > 1_000_000, "the test reads enough bytes");
}

/// Rotated keys still open data, and a start retires those that are no longer needed. After a
/// rekey, only the new master key opens the directory.
#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_and_the_master_key_changes() {
    let (dir, storage) = fresh();
    let mut log = storage.log.clone();
    append(&log, vec![entry(1, 0, 100)]).await.unwrap();
    log.save_vote(&Vote::new(4, 1)).await.unwrap();
    assert_eq!(storage.keys.rotate().unwrap().0, 2);
    append(&log, vec![entry(1, 1, 100)]).await.unwrap();
    assert_eq!(storage.keys.rotate().unwrap().0, 3);
    append(&log, vec![entry(1, 2, 100)]).await.unwrap();
    let new = MasterKey::generate().unwrap();
    storage.keys.rekey(new.clone()).unwrap();
    assert_eq!(storage.keys.master_key_id(), new.id());
    drop((log, storage));
    assert!(refusal(options(dir.path())).contains("wrong master key"));
    let ours = || Options { master_key: new.clone(), ..options(dir.path()) };
    let storage = Storage::open(ours()).unwrap();
    assert_eq!(all(&storage.log).len(), 3);
    assert_eq!(storage.keys.status().len(), 3, "all are in use");
    // Old data is rewritten or purged in time. The next start then retires its keys.
    storage.log.clone().purge(log_id(1, 2)).await.unwrap();
    append(&storage.log, vec![entry(1, 3, 100)]).await.unwrap();
    drop(storage);
    let storage = Storage::open(ours()).unwrap();
    let ids: Vec<_> = storage.keys.status().iter().map(|key| key.id.0).collect();
    assert_eq!(ids, [2, 3]);
    assert_eq!(storage.log.clone().read_vote().await.unwrap(), Some(Vote::new(4, 1)));
}
