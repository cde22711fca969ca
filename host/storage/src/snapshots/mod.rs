//! Snapshot files.
//!
//! # Contract
//!
//! - A snapshot is there whole or not at all: it is written under another name, synced, and when it
//!   is installed renamed, and the directory synced. Only then are older ones removed. A crash in
//!   between leaves a file that the next open removes, and the older snapshot.
//! - Every chunk is sealed with its position and the file's own random id; the end is sealed with the
//!   count. What was cut, reordered, changed, or put together from two files is an error that names
//!   the file. A damaged newest snapshot is never passed over for an older one: the log between them
//!   is gone.
//! - One write is one chunk, unless it is larger than a chunk may be; an empty one is none.
//!
//! # Caveats
//!
//! All calls block. A file that somebody still reads stays readable after a newer one replaced it,
//! and takes its space until then. [`SnapshotStore::latest`] authenticates the header and the end;
//! what lies between is authenticated as it is read.
//!
//! The format is in `docs/disk-format.md`.

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

/// The largest chunk. It bounds what reading takes in memory.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

/// The node's snapshots. Cloning shares.
#[derive(Clone)]
pub struct SnapshotStore {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    keys: Keys,
    /// The newest one that was read or installed, with its header in memory.
    known: Mutex<Option<SnapshotFile>>,
    _lock: Arc<Lock>,
}

impl SnapshotStore {
    pub(super) const DIR: &str = "snapshots";

    /// Removes what a crash left half-written.
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
        // A snapshot that was renamed may be the only one soon: its name must last.
        files::sync_dir(&dir)?;
        Ok(Self { inner: Arc::new(Inner { dir, keys, known: Mutex::default(), _lock: lock }) })
    }

    /// Begins a snapshot of the state at a position of the log. The header is the caller's.
    pub fn create(&self, term: u64, index: u64, header: &[u8]) -> Result<SnapshotWriter, Error> {
        SnapshotWriter::create(self.clone(), term, index, header)
    }

    /// The newest snapshot, if there is one.
    pub fn latest(&self) -> Result<Option<SnapshotFile>, Error> {
        let mut missed = None;
        loop {
            let Some((_, _, path)) = self.positions()?.into_iter().max() else { return Ok(None) };
            match SnapshotFile::open(&path, &self.inner.keys) {
                // A newer one was installed meanwhile, and this one removed.
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

    /// The newest snapshot as it was when it was last read or installed. The file may have been damaged since.
    pub fn known(&self) -> Option<SnapshotFile> {
        self.inner.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn know(&self, file: &SnapshotFile) {
        let mut known = self.inner.known.lock().unwrap_or_else(PoisonError::into_inner);
        let position = |file: &SnapshotFile| (file.term(), file.index());
        if known.as_ref().is_none_or(|known| position(known) <= position(file)) {
            *known = Some(file.clone());
        }
    }

    /// Makes a whole snapshot the newest one, durably, and removes the older ones. Nothing happens to
    /// one that is installed already.
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

    /// Term, index and path of every whole snapshot.
    fn positions(&self) -> Result<Vec<(u64, u64, PathBuf)>, Error> {
        let mut positions = Vec::new();
        for path in list(&self.inner.dir)? {
            if path.extension().is_some_and(|extension| extension == files::TEMPORARY) {
                // Somebody is writing it.
                continue;
            }
            match format::parse_name(&path) {
                Some((term, index)) => positions.push((term, index, path)),
                None if path
                    .extension()
                    .is_some_and(|extension| extension == format::EXTENSION) =>
                {
                    let reason = "its name is none that a snapshot has".to_owned();
                    return Err(Error::Snapshot { path, reason });
                }
                // `lost+found` of a file system of its own, or a file of a backup tool.
                None => {}
            }
        }
        Ok(positions)
    }

    /// Removes the snapshots before a position. Failing is no harm: the next one tries again.
    fn remove_older(&self, term: u64, index: u64) {
        for (other_term, other_index, path) in self.positions().unwrap_or_default() {
            if (other_term, other_index) < (term, index)
                && let Err(error) = files::remove(&path)
            {
                tracing::warn!(%error, "an older snapshot stays");
            }
        }
    }
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries =
        fs::read_dir(dir).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    entries.map_err(Error::io("cannot read directory", dir))
}
