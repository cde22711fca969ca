//! Snapshot files.
//!
//! # Contract
//!
//! - A snapshot is created atomically. It is written and synced under a temporary name. Installing
//!   it renames the file and syncs the directory, and only then removes older snapshots. After a
//!   crash in between, the older snapshot is still there, and the next open removes the leftover.
//! - Every chunk is sealed with its position and the file's own random id, and the end is sealed
//!   with the counts. Truncated, reordered or changed data, and data from two files, are errors
//!   that name the file. An older snapshot never replaces a damaged newest one, because the log
//!   between the two was purged.
//! - One write is one chunk, or several if it exceeds the largest chunk. An empty write adds no chunk.
//!
//! # Caveats
//!
//! All calls block. A file that is open for reading stays readable after a newer one replaced it,
//! and takes disk space until then. [`SnapshotStore::latest`] authenticates the header and the end.
//! The chunks are authenticated when they are read.
//!
//! `docs/disk-format.md` describes the format.

mod format;
mod reader;
mod writer;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

pub use reader::{SnapshotFile, SnapshotReader};
pub use writer::SnapshotWriter;

use super::{Error, Keys, files, lock::Lock};

/// The largest chunk. Bounds the memory that reading takes.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

/// The node's snapshots. Clones share the store.
#[derive(Clone)]
pub struct SnapshotStore {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    keys: Keys,
    /// The newest snapshot that was opened or installed, with its header in memory.
    known: Mutex<Option<SnapshotFile>>,
    _lock: Arc<Lock>,
}

impl SnapshotStore {
    pub(super) const DIR: &str = "snapshots";

    /// Opens the store, and removes the leftovers of a crash.
    pub(super) fn open(dir: &Path, keys: Keys, lock: Arc<Lock>) -> Result<Self, Error> {
        let dir = dir.join(Self::DIR);
        if !dir.is_dir() {
            return Err(Error::Missing { path: dir });
        }
        for path in list(&dir)? {
            if path.extension().is_some_and(|extension| extension == files::TEMPORARY) {
                files::remove(&path)?;
            }
        }
        // A renamed snapshot may soon be the only one, so its name must be durable.
        files::sync_dir(&dir)?;
        Ok(Self { inner: Arc::new(Inner { dir, keys, known: Mutex::default(), _lock: lock }) })
    }

    /// Starts a snapshot of the state at a position of the log. The caller defines the header.
    pub fn create(&self, term: u64, index: u64, header: &[u8]) -> Result<SnapshotWriter, Error> {
        SnapshotWriter::create(self.clone(), term, index, header)
    }

    /// Opens the newest snapshot, if there is one.
    pub fn latest(&self) -> Result<Option<SnapshotFile>, Error> {
        let mut missed = None;
        loop {
            let Some((_, _, path)) = self.positions()?.into_iter().max() else { return Ok(None) };
            match SnapshotFile::open(&path, &self.inner.keys) {
                // A newer snapshot was installed meanwhile, and this one was removed.
                Err(Error::Io { source, .. })
                    if source.kind() == io::ErrorKind::NotFound
                        && missed.as_ref() != Some(&path) =>
                {
                    missed = Some(path);
                }
                opened => {
                    let file = opened?;
                    self.know(&file);
                    return Ok(Some(file));
                }
            }
        }
    }

    /// Returns the newest snapshot as of its last opening or installation. The file may have been
    /// damaged since.
    pub fn known(&self) -> Option<SnapshotFile> {
        self.inner.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the free space of the snapshots' file system, in bytes.
    pub fn free_bytes(&self) -> Result<u64, Error> {
        let dir = &self.inner.dir;
        let found = rustix::fs::statvfs(dir).map_err(io::Error::from);
        let found = found.map_err(Error::io("cannot read the free space of", dir))?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn know(&self, file: &SnapshotFile) {
        let mut known = self.inner.known.lock().unwrap_or_else(PoisonError::into_inner);
        let position = |file: &SnapshotFile| (file.term(), file.index());
        if known.as_ref().is_none_or(|known| position(known) <= position(file)) {
            *known = Some(file.clone());
        }
    }

    /// Makes a finished snapshot the newest one durably, and removes the older ones. Has no effect
    /// on a snapshot that is already installed.
    pub fn install(&self, snapshot: &SnapshotFile) -> Result<SnapshotFile, Error> {
        if !snapshot.is_temporary() {
            return Ok(snapshot.clone());
        }
        let (term, index) = (snapshot.term(), snapshot.index());
        let dir = &self.inner.dir;
        let path = dir.join(format::name(term, index));
        fs::rename(snapshot.path(), &path).map_err(Error::io("cannot rename to", &path))?;
        files::sync_dir(dir)?;
        let installed = SnapshotFile::open(&path, &self.inner.keys)?;
        self.know(&installed);
        self.remove_older(term, index);
        Ok(installed)
    }

    /// Returns term, index and path of every installed snapshot.
    fn positions(&self) -> Result<Vec<(u64, u64, PathBuf)>, Error> {
        let mut positions = Vec::new();
        for path in list(&self.inner.dir)? {
            if path.extension().is_some_and(|extension| extension == files::TEMPORARY) {
                // The file is still being written.
                continue;
            }
            match format::parse_name(&path) {
                Some((term, index)) => positions.push((term, index, path)),
                None if path
                    .extension()
                    .is_some_and(|extension| extension == format::EXTENSION) =>
                {
                    let reason = "its name is not a valid snapshot name".into();
                    return Err(Error::Snapshot { path, reason });
                }
                // Another file, such as `lost+found` of a file system, or a file of a backup tool.
                None => {}
            }
        }
        Ok(positions)
    }

    /// Removes the snapshots before a position. A failure is harmless, because the next
    /// installation retries.
    fn remove_older(&self, term: u64, index: u64) {
        for (other_term, other_index, path) in self.positions().unwrap_or_default() {
            if (other_term, other_index) < (term, index)
                && let Err(error) = files::remove(&path)
            {
                tracing::warn!(%error, "cannot remove an older snapshot");
            }
        }
    }
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries =
        fs::read_dir(dir).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    entries.map_err(Error::io("cannot read directory", dir))
}
