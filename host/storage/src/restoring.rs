//! Creation of a data directory from a backup.
//!
//! # Contract
//! - The directory must be empty. Its identity file is written last, after the snapshot is installed.
//!   Until then the file `restoring` marks it, and no node starts on it.
//! - If a restore fails, everything that it has written is removed. After a crash the directory keeps
//!   the marker, and an operator must empty it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    CompiledStore, Disk, Error, Identity, Keys, LOG_DIR, SnapshotStore, files, identity::Restored,
    incarnation, initial_component, lock::Lock, watermark::WatermarkFile, write_contents,
};
use conclave_crypto::MasterKey;
use conclave_types::{ComponentId, NodeId};

/// A data directory that a backup is restored into.
#[derive(Clone, Debug)]
pub struct RestoreTarget {
    /// The directory. Created if it does not exist.
    pub dir: PathBuf,
    /// The node that the directory will belong to.
    pub node_id: NodeId,
    /// The master key of the directory's keyring.
    pub master_key: MasterKey,
}

/// A data directory that is being made from a backup. Dropping it before [`Restoring::finish`]
/// empties the directory.
pub struct Restoring {
    dir: PathBuf,
    identity: Identity,
    snapshots: SnapshotStore,
    finished: bool,
    _lock: Arc<Lock>,
}

impl Restoring {
    /// The file that exists while a backup is being restored into the directory.
    pub(super) const MARKER: &str = "restoring";

    /// Writes everything that a new directory has, except its snapshot and its identity.
    ///
    /// # Errors
    /// The directory is not empty, is in use, or cannot be written.
    pub fn begin(
        target: RestoreTarget,
        cluster_id: &str,
        component: &[u8],
        restored: Restored,
    ) -> Result<Self, Error> {
        let RestoreTarget { dir, node_id, master_key } = target;
        files::create_dir(&dir)?;
        check_empty(&dir)?;
        files::restrict_dir(&dir)?;
        let lock = Arc::new(Lock::take(&dir)?);
        let identity = Identity {
            cluster_id: cluster_id.to_owned(),
            node_id,
            incarnation: incarnation(&dir)?,
            component_id: ComponentId::of(component),
            restored: Some(restored),
        };
        let written = (|| {
            files::write_atomically(&dir.join(Self::MARKER), b"")?;
            let medium: Arc<dyn super::Medium> = Arc::new(Disk);
            let keys = write_contents(&dir, &identity, component, &master_key, &medium)?;
            SnapshotStore::open(&dir, keys, Arc::clone(&lock))
        })();
        match written {
            Ok(snapshots) => Ok(Self { dir, identity, snapshots, finished: false, _lock: lock }),
            Err(error) => {
                empty(&dir);
                Err(error)
            }
        }
    }

    /// The snapshots of the directory. The caller installs one before [`Restoring::finish`].
    pub fn snapshots(&self) -> &SnapshotStore {
        &self.snapshots
    }

    /// Writes the identity. From here on a node can start on the directory.
    ///
    /// # Errors
    /// There is no snapshot, or the directory cannot be written.
    pub fn finish(mut self) -> Result<(), Error> {
        let no_snapshot = || Error::Missing { path: self.dir.join(SnapshotStore::DIR) };
        self.snapshots.latest()?.ok_or_else(no_snapshot)?;
        files::write_atomically(&self.dir.join(Identity::FILE), &self.identity.encode())?;
        self.finished = true;
        super::finish_creation(&self.dir)
    }
}

impl Drop for Restoring {
    fn drop(&mut self) {
        if !self.finished {
            empty(&self.dir);
        }
    }
}

/// Rejects a directory with files. `lost+found` is created by file systems, and the lock by an
/// attempt that found the directory in use.
fn check_empty(dir: &Path) -> Result<(), Error> {
    let names = fs::read_dir(dir).and_then(|entries| {
        entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()
    });
    for name in names.map_err(Error::io("cannot read directory", dir))? {
        if name == Restoring::MARKER {
            return Err(Error::Unrestored { dir: dir.to_owned() });
        }
        if name != Lock::FILE && name != "lost+found" {
            let found = name.to_string_lossy().into_owned();
            return Err(Error::Occupied { dir: dir.to_owned(), found });
        }
    }
    Ok(())
}

/// Removes everything that an unfinished restore has written, the marker last.
fn empty(dir: &Path) {
    let files = [Identity::FILE, Keys::FILE, WatermarkFile::FILE, initial_component::FILE];
    let dirs = [LOG_DIR, SnapshotStore::DIR, CompiledStore::DIR];
    let removed = files
        .iter()
        .try_for_each(|name| files::remove(&dir.join(name)))
        .and_then(|()| dirs.iter().try_for_each(|name| files::remove_dir(&dir.join(name))))
        .and_then(|()| files::remove(&dir.join(Restoring::MARKER)));
    if let Err(error) = removed {
        tracing::warn!(%error, "cannot remove the files of an unfinished restore");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::{Options, Storage};

    const RESTORED: Restored = Restored { restore_id: [1; 32], seed: [2; 32] };
    const COMPONENT: &[u8] = b"component";

    fn target(dir: &Path) -> RestoreTarget {
        let master_key = Options::for_test(dir).master_key;
        RestoreTarget { dir: dir.to_owned(), node_id: 1, master_key }
    }

    fn begin(dir: &Path) -> Result<Restoring, Error> {
        Restoring::begin(target(dir), "test", COMPONENT, RESTORED)
    }

    fn snapshot(restoring: &Restoring) {
        let mut writer = restoring.snapshots().create(0, 42, b"header").unwrap();
        writer.write(b"state").unwrap();
        writer.commit().unwrap();
    }

    #[test]
    fn finished_directory_opens_with_its_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let restoring = begin(dir.path()).unwrap();
        snapshot(&restoring);
        restoring.finish().unwrap();
        let storage = Storage::open(Options::for_test(dir.path())).unwrap();
        assert_eq!(storage.identity.restored, Some(RESTORED));
        assert_eq!(storage.identity.seed(), RESTORED.seed);
        assert_eq!(storage.initial_component, COMPONENT);
        assert_eq!(storage.snapshots.latest().unwrap().unwrap().index(), 42);
        assert!(!dir.path().join(Restoring::MARKER).exists());
        drop(storage);
        let refused = begin(dir.path()).err().unwrap();
        assert!(matches!(refused, Error::Occupied { .. }), "{refused}");
    }

    #[test]
    fn unfinished_restore_leaves_an_empty_directory() {
        let dir = tempfile::tempdir().unwrap();
        let restoring = begin(dir.path()).unwrap();
        assert!(restoring.finish().is_err(), "there is no snapshot");
        let restoring = begin(dir.path()).unwrap();
        snapshot(&restoring);
        drop(restoring);
        check_empty(dir.path()).unwrap();
    }

    #[test]
    fn no_node_starts_on_a_directory_whose_restore_was_interrupted() {
        let dir = tempfile::tempdir().unwrap();
        let restoring = begin(dir.path()).unwrap();
        snapshot(&restoring);
        // A copy is as the directory after a crash: nothing is removed.
        let copy = tempfile::tempdir().unwrap();
        for name in [Restoring::MARKER, Keys::FILE] {
            fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
        }
        let refused = Storage::open(Options::for_test(copy.path())).err().unwrap();
        assert!(matches!(refused, Error::Unrestored { .. }), "{refused}");
        let refused = begin(copy.path()).err().unwrap();
        assert!(matches!(refused, Error::Unrestored { .. }), "{refused}");
    }

    #[test]
    fn directory_with_files_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("notes"), "x").unwrap();
        let refused = begin(dir.path()).err().unwrap();
        assert!(refused.to_string().contains("notes is in it"), "{refused}");
        assert!(dir.path().join("notes").exists());
    }
}
