//! Trees that are closed late, or cut off while sled opens them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use super::*;
use crate::{Disk, Identity};
use conclave_crypto::MasterKey;
use conclave_types::ComponentId;

#[test]
fn a_tree_that_is_still_being_closed_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let keys = keys(dir.path());
    let log = dir.path().join("log");
    drop(Tree::create(&log, keys.clone(), Arc::new(Disk)).unwrap());
    wait_until_closed(&log, CLOSING_TIME_MAX).unwrap();
    let file = File::open(log.join("db")).unwrap();
    file.try_lock().unwrap();
    let refused = wait_until_closed(&log, Duration::from_millis(20));
    assert!(matches!(refused, Err(Error::InUse { .. })), "{refused:?}");
    let closing = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        drop(file);
    });
    let began = Instant::now();
    Tree::open(&log, keys, Arc::new(Disk)).unwrap();
    assert!(began.elapsed() >= Duration::from_millis(250));
    closing.join().unwrap();
}

fn keys(dir: &Path) -> Keys {
    let component_id = ComponentId([1; 32]);
    let identity = Identity {
        cluster_id: "c".into(),
        node_id: 1,
        incarnation: [3; 16],
        component_id,
        restored: None,
    };
    Keys::create(dir, identity, MasterKey::from_bytes([7; 32])).unwrap()
}

/// Copies the files of a tree, as a kill of the process leaves them.
fn copy_files(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// Returns the last value of a tree whose directory has the names of `names`, and the content
/// that sled wrote while it opened the tree there: the names were not synced, the content was.
fn last_after_power_cut(names: &Path, keys: &Keys, dir: &Path) -> Option<Vec<u8>> {
    let (opened, cut) = (dir.join("opened"), dir.join("cut"));
    copy_files(names, &opened);
    copy_files(names, &cut);
    let tree = open_quiet(&opened, keys);
    fs::copy(opened.join("db"), cut.join("db")).unwrap();
    drop(tree);
    let tree = Tree::open_any(&cut, keys.clone(), Arc::new(Disk)).ok()?;
    tree.get(b"last").ok()?
}

/// Opens a tree without sled's background thread.
fn open_quiet(dir: &Path, keys: &Keys) -> Tree {
    let db = config(dir).flush_every_ms(None).open().unwrap();
    let file = File::open(dir.join("db")).unwrap();
    Tree { db, file, medium: Arc::new(Disk), keys: keys.clone(), dir: dir.to_owned() }
}

/// A tree like a log that is written and purged: its older segments are soon unused.
#[test]
fn a_power_cut_while_sled_opens_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, keys) = (dir.path(), keys(dir.path()));
    let (log, killed) = (dir.join("log"), dir.join("killed"));
    let tree = Tree::create(&log, keys.clone(), Arc::new(Disk)).unwrap();
    let sealed = tree.seal(b"last", b"").unwrap();
    tree.apply(Batch { writes: vec![(b"last".to_vec(), Some(sealed))] }).unwrap();
    tree.sync().unwrap();
    drop(tree);
    let tree = open_quiet(&log, &keys);
    let mut endangered = 0;
    for number in 0..200_u64 {
        let last = tree.seal(b"last", &number.to_be_bytes()).unwrap();
        let mut batch = Batch::default();
        batch.insert(number.to_be_bytes().to_vec(), vec![number as u8; VALUE_BYTES_MAX]);
        if let Some(purged) = number.checked_sub(20) {
            batch.remove(purged.to_be_bytes().to_vec());
        }
        batch.insert(b"last".to_vec(), last);
        tree.apply(batch).unwrap();
        tree.sync().unwrap();
        if number < 60 || number % 4 > 0 {
            continue;
        }
        copy_files(&log, &killed);
        let expected = Some(number.to_be_bytes().to_vec());
        if last_after_power_cut(&killed, &keys, dir) == expected {
            continue;
        }
        let before = fs::read(killed.join("db")).unwrap();
        recover_copy_first(&killed).unwrap();
        assert!(fs::read(killed.join("db")).unwrap() == before, "sled's file was changed");
        assert_eq!(last_after_power_cut(&killed, &keys, dir), expected, "{number}");
        assert_eq!(snapshots(&killed).unwrap().len(), 1);
        endangered += 1;
        if endangered == 2 {
            return;
        }
    }
    panic!("sled never overwrote a segment that its older snapshot needs");
}
