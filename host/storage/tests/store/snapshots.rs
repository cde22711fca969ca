//! Tests of snapshot files.

use std::{fs, path::Path};

use conclave_storage::{CHUNK_BYTES_MAX, SnapshotFile, Storage};

use crate::support::*;

fn write(storage: &Storage, index: u64, chunks: &[&[u8]]) -> SnapshotFile {
    let mut writer = storage.snapshots.create(3, index, b"the header").unwrap();
    for chunk in chunks {
        writer.write(chunk).unwrap();
    }
    writer.commit().unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let names = files(&dir.join("snapshots")).into_iter();
    names.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn the_newest_snapshot_comes_back_and_older_ones_go() {
    let (dir, storage) = fresh();
    assert!(storage.snapshots.latest().unwrap().is_none());
    let large = vec![7; CHUNK_BYTES_MAX * 2 + 5];
    let first = write(&storage, 9, &[b"one", b"", b"two", &large]);
    let second = write(&storage, 10, &[]);
    assert_eq!(names(dir.path()), ["00000000000000000003-00000000000000000010.snap"]);
    // An open reader can still read the older snapshot.
    let sizes: Vec<_> = chunks(&first).iter().map(|chunk| chunk.len()).collect();
    assert_eq!(sizes, [3, 3, CHUNK_BYTES_MAX, CHUNK_BYTES_MAX, 5]);
    assert_eq!(first.bytes(), large.len() as u64 + 6);
    assert_eq!((second.term(), second.index(), &second.header()[..]), (3, 10, &b"the header"[..]));
    assert!(chunks(&second).is_empty());
    drop((first, second, storage));
    let latest = open(dir.path()).snapshots.latest().unwrap().unwrap();
    assert_eq!((latest.term(), latest.index(), &latest.header()[..]), (3, 10, &b"the header"[..]));
}

#[test]
fn an_unfinished_snapshot_leaves_nothing() {
    let (dir, storage) = fresh();
    let mut writer = storage.snapshots.create(3, 9, b"").unwrap();
    writer.write(b"chunk").unwrap();
    assert_eq!(names(dir.path()).len(), 1);
    assert!(storage.snapshots.latest().unwrap().is_none());
    // The state after a crash.
    let crashed = copy(dir.path());
    drop(writer);
    assert!(names(dir.path()).is_empty());
    let storage = open(crashed.path());
    assert!(storage.snapshots.latest().unwrap().is_none());
    assert!(names(crashed.path()).is_empty());
}

/// A received snapshot is complete before it is used. It becomes the newest one only by its installation.
#[test]
fn a_snapshot_that_is_not_installed_counts_for_nothing() {
    let (dir, storage) = fresh();
    let whole = |index| {
        let mut writer = storage.snapshots.create(3, index, b"the header").unwrap();
        writer.write(b"chunk").unwrap();
        writer.finish().unwrap()
    };
    let latest = || storage.snapshots.latest().unwrap().map(|latest| latest.index());
    write(&storage, 9, &[]);
    let dropped = whole(10);
    let installed = whole(11);
    assert_eq!((latest(), names(dir.path()).len()), (Some(9), 3));
    assert_eq!((dropped.index(), chunks(&installed).len()), (10, 1));
    drop(dropped);
    let again = storage.snapshots.install(&installed).unwrap();
    drop(installed);
    storage.snapshots.install(&again).unwrap();
    assert_eq!(latest(), Some(11));
    assert_eq!(names(dir.path()), ["00000000000000000003-00000000000000000011.snap"]);
}

/// A newer snapshot may be installed during a search for the newest one.
#[test]
fn the_newest_snapshot_is_found_while_it_is_replaced() {
    let (_dir, storage) = fresh();
    write(&storage, 0, &[]);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| (1..400).for_each(|index| drop(write(&storage, index, &[]))));
        let mut newest = 0;
        while !writing.is_finished() {
            let found = storage.snapshots.latest().unwrap().unwrap().index();
            assert!(found >= newest, "{found} after {newest}");
            newest = found;
        }
    });
}

/// A flipped bit, a truncation, exchanged chunks, another node's file, and another position's name
/// are errors that name the file.
#[test]
fn a_damaged_snapshot_is_refused_by_name_and_never_skipped() {
    let (dir, storage) = fresh();
    write(&storage, 9, &[b"chunk one", b"chunk two", b"chunk 333"]);
    let name = names(dir.path()).remove(0);
    let path = dir.path().join("snapshots").join(&name);
    let whole = fs::read(&path).unwrap();
    let refused = |content: &[u8]| {
        fs::write(&path, content).unwrap();
        let read = storage
            .snapshots
            .latest()
            .and_then(|latest| latest.unwrap().read()?.collect::<Result<Vec<_>, _>>());
        let error = read.unwrap_err().to_string();
        assert!(
            error.contains(&name) && error.contains("damaged") || error.contains("version"),
            "{error}"
        );
    };
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 0x40;
        refused(&changed);
        refused(&whole[..at]);
    }
    refused(&[&whole[..], b"more"].concat());
    // Two chunks of equal size are exchanged, and one chunk is omitted.
    let record = 5 + 33 + 9;
    let chunks_at = 42 + 5 + 33 + 10;
    let mut swapped = whole.clone();
    swapped[chunks_at..chunks_at + 2 * record].rotate_left(record);
    refused(&swapped);
    refused(&[&whole[..chunks_at], &whole[chunks_at + record..]].concat());
    fs::write(&path, &whole).unwrap();
    assert_eq!(chunks(&storage.snapshots.latest().unwrap().unwrap()).len(), 3);

    // A snapshot of another position, or of another node, under this name.
    let other_position = write(&storage, 11, &[b"chunk"]).path().to_owned();
    let content = fs::read(&other_position).unwrap();
    fs::remove_file(other_position).unwrap();
    refused(&content);
    let (_other_dir, other) = fresh();
    refused(&fs::read(write(&other, 9, &[b"chunk"]).path()).unwrap());
}
