//! Rebuilding the tree by copy.
//!
//! sled keeps space for far longer than what lay in it. A tree that has grown out of proportion is
//! copied into a new one at open, and the two change places in one step of the file system's. A
//! crash leaves one whole tree under the right name, and something beside it to be removed.

use std::{path::Path, sync::Arc};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{
    Error, Keys, Medium,
    check::Recovered,
    files,
    tree::{Batch, Tree},
};

/// Below this a tree is never rebuilt: a few of sled's segments of 16 MiB, which it always has.
const DISK_BYTES_MIN: u64 = 512 << 20;

/// A tree is rebuilt when it takes this many times what is in it.
const AMPLIFICATION_MAX: u64 = 4;

/// How much is copied as one.
const BATCH_VALUES: usize = 32;

/// What the new tree is called while it is made, and the old one while it is removed.
const OTHER: &str = "log.rebuild";

/// Removes what an interrupted rebuilding left.
pub(super) fn remove_leftover(log_dir: &Path) -> Result<(), Error> {
    files::remove_dir(&log_dir.with_file_name(OTHER))
}

/// Rebuilds the tree if it takes far more than it holds.
pub(super) fn compact(
    tree: Tree,
    recovered: &Recovered,
    keys: &Keys,
    medium: Arc<dyn Medium>,
) -> Result<Tree, Error> {
    let disk_bytes = tree.disk_bytes();
    if disk_bytes < DISK_BYTES_MIN || disk_bytes / AMPLIFICATION_MAX < recovered.live_bytes {
        return Ok(tree);
    }
    tracing::info!(disk_bytes, live_bytes = recovered.live_bytes, "the log is rebuilt");
    rebuild(tree, keys, medium)
}

pub(super) fn rebuild(tree: Tree, keys: &Keys, medium: Arc<dyn Medium>) -> Result<Tree, Error> {
    let log_dir = tree.dir().to_owned();
    let other_dir = log_dir.with_file_name(OTHER);
    let other = Tree::create(&other_dir, keys.clone(), Arc::clone(&medium))?;
    let written = Error::io("cannot copy the log to", &other_dir);
    copy(&tree, &other).map_err(written)?;
    drop(other);
    drop(tree);
    renameat_with(CWD, &log_dir, CWD, &other_dir, RenameFlags::EXCHANGE)
        .map_err(|error| Error::io("cannot put the rebuilt log into", &log_dir)(error.into()))?;
    files::sync_dir(log_dir.parent().unwrap_or(Path::new(".")))?;
    remove_leftover(&log_dir)?;
    Tree::open(&log_dir, keys.clone(), medium)
}

/// Values are copied as they are: they are bound to their keys, not to the tree.
fn copy(from: &Tree, to: &Tree) -> std::io::Result<()> {
    let mut batch = Batch::default();
    for (number, item) in from.scan().enumerate() {
        let (key, sealed) = item?;
        batch.insert(key.to_vec(), sealed.to_vec());
        if number % BATCH_VALUES == 0 {
            to.apply(std::mem::take(&mut batch))?;
        }
    }
    if !batch.is_empty() {
        to.apply(batch)?;
    }
    to.sync()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::{
        crypto::MasterKey,
        storage::{Disk, Identity, LOG_DIR, Options, Storage},
        types::ModuleId,
    };

    /// A rebuilt tree has what the old one had, takes less, and leaves nothing beside it. What a
    /// crash in the middle leaves is removed by the next open.
    #[test]
    fn a_rebuilt_tree_is_the_same_and_smaller() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let master_key = MasterKey::generate().unwrap();
        let options = || Options {
            dir: dir.to_owned(),
            cluster_id: "c".into(),
            node_id: 1,
            module_id: ModuleId([1; 32]),
            master_key: master_key.clone(),
        };
        let storage = Storage::open(options()).unwrap();
        for round in 0..300 {
            for name in 0..10 {
                let value = vec![round as u8; 100_000];
                storage.log.put_record(&format!("record {name}"), Some(value)).unwrap();
            }
            if round % 20 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(250));
            }
        }
        let records = storage.log.list_records("").unwrap();
        drop(storage);

        let identity = Identity::read(dir).unwrap().unwrap();
        let keys = Keys::open(dir, identity, master_key.clone()).unwrap();
        let log_dir = dir.join(LOG_DIR);
        let tree = Tree::open(&log_dir, keys.clone(), Arc::new(Disk)).unwrap();
        let before = tree.disk_bytes();
        let tree = rebuild(tree, &keys, Arc::new(Disk)).unwrap();
        let after = tree.disk_bytes();
        assert!(after < before, "{before} to {after}");
        drop((tree, keys));
        assert!(!dir.join(OTHER).exists());
        std::fs::create_dir(dir.join(OTHER)).unwrap();
        std::fs::write(dir.join(OTHER).join("db"), "half").unwrap();
        let storage = Storage::open(options()).unwrap();
        assert!(storage.log.list_records("").unwrap() == records);
        assert!(!dir.join(OTHER).exists());
    }
}
