//! Compaction of the tree by copying it.
//!
//! sled keeps disk space long after its content was removed. A tree that takes far more space than
//! its content is copied into a new tree when it is opened. An atomic exchange of the two directory
//! names then replaces the old tree. A crash leaves one complete tree under the right name, and a
//! leftover that the next open removes. If the copy fails, for lack of space or because the file
//! system does not support the exchange of names, the old tree stays in use. It is intact.

use std::{path::Path, sync::Arc};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{
    Error, Keys, Medium,
    check::Recovered,
    files,
    tree::{Batch, Tree},
};

/// The least size of a tree to compact. sled always allocates a few segments of 16 MiB.
const DISK_BYTES_MIN: u64 = 512 << 20;

/// A tree is compacted if it takes this many times the size of its content.
const AMPLIFICATION_MAX: u64 = 4;

/// The number of values that are copied in one batch.
const BATCH_VALUES: usize = 32;

/// The name of the new tree during the copy, and of the old tree during its removal.
pub(super) const OTHER: &str = "log.rebuild";

/// Removes the leftover of an interrupted compaction.
pub(super) fn remove_leftover(log_dir: &Path) -> Result<(), Error> {
    files::remove_dir(&log_dir.with_file_name(OTHER))
}

/// Compacts the tree if it takes far more space than its content.
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
    tracing::info!(disk_bytes, live_bytes = recovered.live_bytes, "compacting the log on disk");
    rebuild(tree, keys, medium)
}

fn rebuild(tree: Tree, keys: &Keys, medium: Arc<dyn Medium>) -> Result<Tree, Error> {
    let log_dir = tree.dir().to_owned();
    let other_dir = log_dir.with_file_name(OTHER);
    if let Err(error) = copy_to(&other_dir, &tree, keys, Arc::clone(&medium)) {
        give_up(&log_dir, &error);
        return Ok(tree);
    }
    drop(tree);
    match exchange(&log_dir, &other_dir) {
        Ok(()) => {
            files::sync_dir(log_dir.parent().unwrap_or(Path::new(".")))?;
            remove_leftover(&log_dir)?;
        }
        Err(error) => give_up(&log_dir, &error),
    }
    Tree::open(&log_dir, keys.clone(), medium)
}

/// Keeps the unchanged old tree, and removes the incomplete copy.
fn give_up(log_dir: &Path, error: &Error) {
    tracing::warn!(%error, "cannot compact the log; it keeps its size, and the next start tries again");
    if let Err(error) = remove_leftover(log_dir) {
        tracing::warn!(%error, "cannot remove the incomplete copy of the log");
    }
}

fn exchange(log_dir: &Path, other_dir: &Path) -> Result<(), Error> {
    renameat_with(CWD, log_dir, CWD, other_dir, RenameFlags::EXCHANGE)
        .map_err(|error| Error::io("cannot move the compacted log to", log_dir)(error.into()))
}

fn copy_to(
    other_dir: &Path,
    tree: &Tree,
    keys: &Keys,
    medium: Arc<dyn Medium>,
) -> Result<(), Error> {
    let other = Tree::create(other_dir, keys.clone(), medium)?;
    copy(tree, &other).map_err(Error::io("cannot copy the log to", other_dir))
}

/// Copies sealed values unchanged, because they are bound to their keys and not to the tree.
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
    use crate::{Disk, Identity, LOG_DIR, Options, Storage};
    use conclave_crypto::MasterKey;
    use conclave_types::ComponentId;

    /// A medium without room for a copy.
    struct Full;

    impl Medium for Full {
        fn sync(&self, _: &std::fs::File) -> std::io::Result<()> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
    }

    fn options(dir: &Path) -> Options {
        let component = bytes::Bytes::from_static(b"component");
        Options {
            dir: dir.to_owned(),
            cluster_id: "c".into(),
            node_id: 1,
            component_id: ComponentId::of(&component),
            component,
            master_key: MasterKey::from_bytes([7; 32]),
        }
    }

    fn tree(dir: &Path) -> (Tree, Keys) {
        let identity = Identity::read(dir).unwrap().unwrap();
        let keys = Keys::open(dir, identity, options(dir).master_key).unwrap();
        (Tree::open(&dir.join(LOG_DIR), keys.clone(), Arc::new(Disk)).unwrap(), keys)
    }

    /// A tree that cannot be compacted keeps working.
    #[test]
    fn a_tree_that_cannot_be_rebuilt_serves_on() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let storage = Storage::open(options(dir)).unwrap();
        storage.log.put_record("record", Some(b"value".to_vec())).unwrap();
        drop(storage);
        let (old, keys) = tree(dir);
        let count = old.scan().count();
        let old = rebuild(old, &keys, Arc::new(Full)).unwrap();
        assert_eq!(old.scan().count(), count);
        assert!(!dir.join(OTHER).exists());
        // The other directory does not exist, so the exchange fails as on a file system without
        // support for it.
        assert!(exchange(old.dir(), &dir.join(OTHER)).is_err());
        drop((old, keys));
        let storage = Storage::open(options(dir)).unwrap();
        assert_eq!(storage.log.get_record("record").unwrap().unwrap(), b"value");
    }

    /// A compacted tree has the same content, takes less space, and leaves no leftover. The next
    /// open removes the leftover of a crash.
    #[test]
    fn a_rebuilt_tree_is_the_same_and_smaller() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        // Each iteration opens the storage and writes all metadata entries again. Within one
        // iteration the storage thread may write only the last version of each.
        let mut records = Vec::new();
        for life in 0..40_u8 {
            let storage = Storage::open(options(dir)).unwrap();
            for name in 0..10 {
                let value = vec![life; 100_000];
                storage.log.put_record(&format!("record {name}"), Some(value)).unwrap();
            }
            records = storage.log.list_records("").unwrap();
        }

        let (tree, keys) = tree(dir);
        let before = tree.disk_bytes();
        let tree = rebuild(tree, &keys, Arc::new(Disk)).unwrap();
        let after = tree.disk_bytes();
        assert!(after < before, "{before} to {after}");
        drop((tree, keys));
        assert!(!dir.join(OTHER).exists());
        std::fs::create_dir(dir.join(OTHER)).unwrap();
        std::fs::write(dir.join(OTHER).join("db"), "half").unwrap();
        let storage = Storage::open(options(dir)).unwrap();
        assert!(storage.log.list_records("").unwrap() == records);
        assert!(!dir.join(OTHER).exists());
    }
}
