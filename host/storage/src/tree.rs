//! The encrypted tree: with its submodule, the only file that uses sled.
//!
//! # Contract
//!
//! - After [`Tree::apply`] returns, the whole batch is readable. After a crash, either all of the
//!   batch or none of it is present.
//! - After [`Tree::sync`] returns, everything that was applied before is on stable storage. sled's
//!   own `flush` is not enough: on Linux it ends in `sync_file_range`, which flushes neither the
//!   device's cache nor the file's size. A sync is therefore a flush, and an `fdatasync` on a
//!   descriptor of our own.
//! - Values are sealed envelopes, bound to their keys. sled and the disk see only keys and sizes.
//!
//! # Caveats
//!
//! sled panics where it should return errors, and reports corruption only sometimes. Every call of
//! sled is therefore guarded against panics. After damage, sled may also open with *less* data than
//! was written. `check.rs` detects such loss.

mod guard;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use self::guard::guard;
use super::{Error, Keys, Medium, files};
use conclave_crypto::KeyId;

/// The largest segment that sled supports. sled writes values above a quarter of a segment to blob
/// files, which it never syncs. It also writes a leaf of about 17 values as one. With values of at
/// most [`VALUE_BYTES_MAX`], no leaf reaches that size.
const SEGMENT_BYTES: usize = 16 << 20;

/// The largest sealed value: 17 such values are smaller than a quarter of a segment.
pub(super) const VALUE_BYTES_MAX: usize = 240 << 10;

/// sled's cache. The log is read from memory, except for peers that lag, so a small cache is
/// enough. sled actually uses a multiple of this memory.
const CACHE_BYTES: u64 = 4 << 20;

/// The interval of sled's background thread. The thread also collects garbage, so it stays enabled,
/// with sled's default interval.
const FLUSHER_MS: u64 = 500;

/// The longest wait until a closed tree releases its file.
const CLOSING_TIME_MAX: Duration = Duration::from_secs(10);

/// The directory for a copy of the tree, in the tree's directory.
const COPY: &str = "copy";

/// The suffix of a snapshot of sled's page table that is being written.
const UNFINISHED: &str = "generating";

/// The place in the associated data of all values.
const PLACE: &str = "log";

/// Changes that are applied atomically.
#[derive(Default)]
pub(super) struct Batch {
    writes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    /// Adds a write. `sealed` comes from [`Tree::seal`] with the same key.
    pub(super) fn insert(&mut self, key: Vec<u8>, sealed: Vec<u8>) {
        debug_assert!(sealed.len() <= VALUE_BYTES_MAX);
        self.writes.push((key, Some(sealed)));
    }

    pub(super) fn remove(&mut self, key: Vec<u8>) {
        self.writes.push((key, None));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

/// The tree that holds the log, the vote and the metadata entries.
pub(super) struct Tree {
    db: sled::Db,
    /// Our own descriptor of sled's file, for the sync.
    file: File,
    medium: Arc<dyn Medium>,
    keys: Keys,
    dir: PathBuf,
}

impl Tree {
    /// Creates an empty tree. Removes the previous contents of the directory.
    pub(super) fn create(dir: &Path, keys: Keys, medium: Arc<dyn Medium>) -> Result<Self, Error> {
        files::remove_dir(dir)?;
        files::create_dir(dir)?;
        let tree = Self::open_any(dir, keys, medium)?;
        // sled syncs neither the names of its files nor its configuration file.
        tree.sync().map_err(Error::io("cannot sync", dir))?;
        for name in ["conf", "db"] {
            let path = dir.join(name);
            let synced = File::open(&path).and_then(|file| file.sync_all());
            synced.map_err(Error::io("cannot sync", &path))?;
        }
        files::sync_dir(dir)?;
        Ok(tree)
    }

    /// Opens a tree that [`Self::create`] created.
    pub(super) fn open(dir: &Path, keys: Keys, medium: Arc<dyn Medium>) -> Result<Self, Error> {
        for name in ["conf", "db"] {
            // sled would silently create missing files again, without the data.
            let path = dir.join(name);
            match fs::metadata(&path) {
                Ok(metadata) if metadata.len() > 0 => {}
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("cannot read", &path)(error));
                }
                _ => return Err(Error::Missing { path }),
            }
        }
        let unreadable = Error::io("cannot read directory", dir);
        let names: io::Result<Vec<_>> =
            fs::read_dir(dir).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
        for path in names.map_err(unreadable)? {
            // A crash interrupted sled while it wrote a snapshot of its page table. sled would take
            // this file for a complete snapshot.
            if path.extension().is_some_and(|extension| extension == UNFINISHED) {
                files::remove(&path)?;
            }
        }
        wait_until_closed(dir, CLOSING_TIME_MAX)?;
        forget_what_is_not_on_disk(&dir.join("db"), &*medium)?;
        files::remove_dir(&dir.join(COPY))?;
        files::sync_dir(dir)?;
        if let Err(error) = recover_copy_first(dir) {
            tracing::warn!(
                %error,
                dir = %dir.display(),
                "cannot recover a copy of the log first; if the power fails during this start, entries may be lost"
            );
        }
        files::remove_dir(&dir.join(COPY))?;
        let tree = Self::open_any(dir, keys, medium)?;
        files::sync_dir(dir)?;
        Ok(tree)
    }

    fn open_any(dir: &Path, keys: Keys, medium: Arc<dyn Medium>) -> Result<Self, Error> {
        wait_until_closed(dir, CLOSING_TIME_MAX)?;
        let db = guard(|| config(dir).open());
        let db = db.map_err(|error| {
            Error::unreadable(format!("the log in {}", dir.display()), dir, error)
        })?;
        let path = dir.join("db");
        let file = File::options().read(true).write(true).open(&path);
        let file = file.map_err(Error::io("cannot open", &path))?;
        Ok(Self { db, file, medium, keys, dir: dir.to_owned() })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn active_key(&self) -> KeyId {
        self.keys.active()
    }

    pub(super) fn seal(&self, key: &[u8], plaintext: &[u8]) -> io::Result<Vec<u8>> {
        Ok(self.keys.seal(PLACE, key, plaintext)?)
    }

    /// Reads and decrypts a value.
    pub(super) fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let sealed = guard(|| self.db.get(key))?;
        sealed.map(|sealed| self.open_value(key, &sealed)).transpose()
    }

    /// Returns the last key that is at most `key` and begins with `prefix`.
    pub(super) fn last_key_up_to(&self, prefix: u8, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let from: &[u8] = &[prefix];
        let last = guard(|| self.db.range(from..=key).next_back().transpose())?;
        Ok(last.map(|(key, _)| key.to_vec()))
    }

    /// Returns all keys with their sealed values, in the order of the keys.
    pub(super) fn scan(&self) -> impl Iterator<Item = io::Result<(sled::IVec, sled::IVec)>> {
        let mut items = self.db.iter();
        std::iter::from_fn(move || guard(|| items.next().transpose()).transpose())
    }

    pub(super) fn open_value(&self, key: &[u8], sealed: &[u8]) -> io::Result<Vec<u8>> {
        self.keys
            .open_sealed(PLACE, key, sealed)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Applies a batch. It is durable only after a [`Self::sync`].
    pub(super) fn apply(&self, batch: Batch) -> io::Result<()> {
        let mut writes = batch.writes;
        if writes.len() == 1
            && let Some((key, value)) = writes.pop()
        {
            // A single write needs no batch. In sled a batch costs two more messages in its log.
            return guard(|| match value {
                Some(value) => self.db.insert(key, value),
                None => self.db.remove(key),
            })
            .map(drop);
        }
        let mut batch = sled::Batch::default();
        for (key, value) in writes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        guard(|| self.db.apply_batch(batch))
    }

    /// Makes all applied batches durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        guard(|| self.db.flush())?;
        self.medium.sync(&self.file)
    }

    /// The tree's size on disk, in bytes.
    pub(super) fn disk_bytes(&self) -> u64 {
        guard(|| self.db.size_on_disk()).unwrap_or(0)
    }
}

fn config(dir: &Path) -> sled::Config {
    sled::Config::default()
        .path(dir)
        .segment_size(SEGMENT_BYTES)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(Some(FLUSHER_MS))
        .mode(sled::Mode::LowSpace)
        .use_compression(false)
}

/// Makes the snapshot of its page table durable that sled would write when it opens the tree.
///
/// sled does this itself, but then overwrites the segments that the snapshot does not use before
/// the snapshot's name is durable. If the power fails meanwhile, sled begins with the older
/// snapshot, takes an overwritten segment for the end of its log, and silently discards all later
/// segments (`check_contiguity_in_unstable_tail` in sled's `pagecache/iterator.rs`). Therefore sled
/// opens a copy first. The copy is not synced, and is removed.
fn recover_copy_first(dir: &Path) -> io::Result<()> {
    if fs::metadata(dir.join("db"))?.len() <= SEGMENT_BYTES as u64 {
        // No segment precedes the one in use.
        return Ok(());
    }
    if fs::read_dir(dir.join("blobs")).is_ok_and(|mut blobs| blobs.next().is_some()) {
        return Err(io::Error::other("the log has values in files of their own"));
    }
    let copy = dir.join(COPY);
    fs::create_dir(&copy)?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), copy.join(entry.file_name()))?;
        }
    }
    drop(guard(|| config(&copy).flush_every_ms(None).open())?);
    let older = snapshots(dir)?;
    let Some(newest) = snapshots(&copy)?.pop_last() else { return Ok(()) };
    if !older.contains(&newest) {
        let unfinished = dir.join(&newest).with_added_extension(UNFINISHED);
        fs::write(&unfinished, fs::read(copy.join(&newest))?)?;
        File::open(&unfinished)?.sync_all()?;
        fs::rename(&unfinished, dir.join(&newest))?;
    }
    File::open(dir)?.sync_all()?;
    for name in older.iter().filter(|name| **name != newest) {
        fs::remove_file(dir.join(name))?;
    }
    Ok(())
}

/// Returns the names of sled's snapshots in a directory, oldest first.
fn snapshots(dir: &Path) -> io::Result<BTreeSet<OsString>> {
    let names: io::Result<BTreeSet<_>> =
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect();
    let mut names = names?;
    names.retain(|name| name.as_encoded_bytes().starts_with(b"snap."));
    Ok(names)
}

/// Syncs a file that an earlier process wrote, and drops the kernel's cached pages of it. Later
/// reads therefore return data from the disk. After a failed sync, the kernel marks its pages as
/// clean and serves them from memory (Rebello et al., "Can Applications Recover from fsync
/// Failures?", USENIX ATC 2020).
fn forget_what_is_not_on_disk(path: &Path, medium: &dyn Medium) -> Result<(), Error> {
    let file = File::options().read(true).write(true).open(path);
    let file = file.map_err(Error::io("cannot open", path))?;
    medium.sync(&file).map_err(Error::io("cannot sync", path))?;
    // This is only a hint. File systems without a page cache reject it.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    Ok(())
}

/// Waits until sled has released its lock on the file. sled's threads may hold the lock a moment
/// longer than the last handle exists. The directory's own lock excludes other nodes, so any longer
/// holder counts as another user of the directory.
fn wait_until_closed(dir: &Path, limit: Duration) -> Result<(), Error> {
    // If the file cannot be opened, sled reports the error.
    let Ok(file) = File::open(dir.join("db")) else { return Ok(()) };
    let began = Instant::now();
    while let Err(TryLockError::WouldBlock) = file.try_lock() {
        if began.elapsed() >= limit {
            return Err(Error::InUse { dir: dir.to_owned(), pid: None });
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
