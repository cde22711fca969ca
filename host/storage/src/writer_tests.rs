//! Crashes in the middle of a batch.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{path::Path, sync::mpsc};

use openraft::storage::IOFlushed;

use super::*;
use crate::{
    Disk, Identity, Keys, check, format,
    raft_types::{LogId, Payload},
    watermark::Watermark,
};
use conclave_crypto::MasterKey;
use conclave_types::ComponentId;

fn entries(term: u64, indexes: std::ops::Range<u64>) -> Op {
    let blank =
        |index| Entry { log_id: LogId::new_term_index(term, index), payload: Payload::Blank };
    let entries = indexes.map(blank).collect();
    Op::Append { entries, bytes: 0, epoch: 0, flushed: IOFlushed::noop() }
}

fn writer(dir: &Path) -> Writer {
    let incarnation = [3; 16];
    let component_id = ComponentId([1; 32]);
    let identity =
        Identity { cluster_id: "c".into(), node_id: 1, incarnation, component_id, restored: None };
    let keys = Keys::create(dir, identity, MasterKey::from_bytes([7; 32])).unwrap();
    let tree = Tree::create(&dir.join("log"), keys.clone(), Arc::new(Disk)).unwrap();
    crate::birth(&tree, &incarnation).unwrap();
    WatermarkFile::create(dir, keys.clone(), &Watermark::default()).unwrap();
    let (watermark_file, watermark) = WatermarkFile::open(dir, keys).unwrap();
    let recovered = check::check(&tree, &incarnation, &watermark).unwrap();
    let shared = Arc::new(Shared::new(&recovered));
    Writer::new(shared, Arc::new(tree), watermark_file, recovered, mpsc::channel().1)
}

impl Writer {
    fn commit_all(&mut self, ops: Vec<Op>, committed: Option<LogId>) -> io::Result<()> {
        let lazy = Lazy { committed: committed.map(Some), ..Lazy::default() };
        self.commit(ops, lazy, true, false, &mut Vec::new())
    }
}

/// The committed id is written after the truncation and the entries that it may refer to. If it
/// were written first, it could refer to truncated entries after a crash.
#[test]
fn what_rides_along_is_never_there_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = writer(dir.path());
    writer.commit_all(vec![entries(1, 0..11)], None).unwrap();
    // The truncation fails late, because the block that it cuts is missing.
    let mut batch = Batch::default();
    batch.remove(format::part_key(0, 0));
    Tree::apply(&writer.tree, batch).unwrap();
    let ops = vec![Op::Truncate(Some(7)), entries(2, 8..9)];
    let committed = LogId::new_term_index(2, 8);
    writer.commit_all(ops, Some(committed)).unwrap_err();
    assert!(Tree::get(&writer.tree, format::COMMITTED).unwrap().is_none());
}

/// An entry after a purge beyond the end of the log never exists without the purge, whatever its
/// position in a batch.
#[test]
fn a_purge_keeps_its_place_in_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = writer(dir.path());
    writer.commit_all(vec![entries(1, 0..11)], None).unwrap();
    let purge = Op::Purge(LogId::new_term_index(2, 50));
    let ops = vec![Op::Truncate(Some(7)), purge, entries(2, 51..60), Op::Truncate(Some(55))];
    writer.commit_all(ops, None).unwrap();
    let found = check::check(&writer.tree, &[3; 16], &Watermark::default()).unwrap();
    assert_eq!(found.purged, Some(LogId::new_term_index(2, 50)));
    assert_eq!(found.last, Some(LogId::new_term_index(2, 55)));
}

/// A snapshot covers entries that still wait for the disk. These entries, the purge and the next
/// entries form one batch.
#[test]
fn entries_on_both_sides_of_a_purge_are_not_one_pack() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = writer(dir.path());
    let purge = Op::Purge(LogId::new_term_index(2, 50));
    writer.commit_all(vec![entries(1, 0..11), purge, entries(2, 51..60)], None).unwrap();
    let found = check::check(&writer.tree, &[3; 16], &Watermark::default()).unwrap();
    assert_eq!(found.purged, Some(LogId::new_term_index(2, 50)));
    assert_eq!(found.last, Some(LogId::new_term_index(2, 59)));
}
