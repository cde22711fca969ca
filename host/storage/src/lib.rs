//! Storage of a node: identity, keys, log, vote, metadata entries and snapshots on disk.
//!
//! ```text
//! DATA/lock               held while the node runs; contains the process id
//! DATA/identity           cluster id, node id and initial component of this directory
//! DATA/keyring            the data keys, wrapped by the master key
//! DATA/initial-component  the cluster's initial component, sealed
//! DATA/compiled/          compiled components, sealed; optional, as components can be recompiled
//! DATA/watermark          the durable watermark: how much of the log must be present
//! DATA/log/               sled: log, vote, committed and purged ids, metadata entries; values sealed
//! DATA/snapshots/         <term>-<index>.snap
//! ```
//!
//! # Contract
//!
//! - **Acknowledged data is on stable storage.** All log data becomes durable through one function,
//!   [`tree::Tree::sync`]. Whole files are written under a temporary name, synced and renamed, and
//!   then the directory is synced. `append` completes only after the sync. Concurrent appends share
//!   one sync.
//! - **A failed sync poisons the store.** The kernel's state of the data is then unknown. The store
//!   rejects every later call with the first failure.
//! - **Data loss is always detected.** These are errors that name the file or index, at open or at
//!   read: a directory of another node, a wrong key, a corrupted byte, a misplaced value, and a log
//!   without its end. Nothing is written then. There is no repair: rebuild the node from its peers,
//!   under a new id.
//! - Nothing leaves memory unsealed, except names, indexes, sizes and key ids.
//! - A directory is created atomically. Until its identity file exists, the file `creating` marks
//!   its contents as incomplete, or the file `restoring` those of a backup.
//!
//! # Caveats
//!
//! Calls block on the disk unless they are async. An older copy of a whole directory cannot be
//! distinguished from the newest one. Never run a node on an older copy: it would vote twice. Only
//! this crate uses sled, and only in `tree.rs`.
//!
//! `docs/disk-format.md` describes the formats.

mod backup;
mod check;
mod compact;
mod compiled;
pub mod convert;
mod copy;
mod error;
mod files;
mod format;
#[doc(hidden)]
pub mod fuzz;
mod group_commit;
mod identity;
mod initial_component;
mod keys;
mod lock;
mod log_store;
mod ops;
pub mod raft_types;
mod reader;
mod restoring;
mod sizes;
mod snapshots;
mod staging;
mod state;
mod tree;
mod watermark;
mod writer;

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

pub use backup::{
    Backup, BackupAbout, BackupError, BackupInfo, BackupKey, BackupReader, Frames, SealedBackup,
    WrappedBy,
};
pub use compiled::{COMPILED_BYTES_MAX, CompiledStore};
pub use error::{Error, Reason};
pub use group_commit::BatchWindow;
pub use identity::{Identity, Restored};
pub use keys::Keys;
pub use log_store::{Extent, LogStore};
pub use restoring::{RestoreTarget, Restoring};
pub use snapshots::{CHUNK_BYTES_MAX, SnapshotFile, SnapshotReader, SnapshotStore, SnapshotWriter};

use self::{check::Recovered, lock::Lock, tree::Tree, watermark::WatermarkFile};
use crate::raft_types::LogId;
use conclave_crypto::{KeyId, MasterKey};
use conclave_types::{ComponentId, NodeId};

/// The options for opening a data directory.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory. Created if it does not exist.
    pub dir: PathBuf,
    /// The cluster that the directory must belong to.
    pub cluster_id: String,
    /// The node that the directory must belong to.
    pub node_id: NodeId,
    /// The initial component of a new directory. An existing directory keeps its own.
    pub component: Bytes,
    /// The id of `component`.
    pub component_id: ComponentId,
    /// The master key of the directory's keyring.
    pub master_key: MasterKey,
}

/// An open data directory. Its lock is released when the last clone of its parts is dropped.
pub struct Storage {
    /// The directory's identity.
    pub identity: Identity,
    /// The cluster's initial component.
    pub initial_component: Bytes,
    /// The log, the vote and metadata entries.
    pub log: LogStore,
    /// The snapshots.
    pub snapshots: SnapshotStore,
    /// The compiled components.
    pub compiled: CompiledStore,
    /// The data keys.
    pub keys: Keys,
}

/// The operation that makes a file durable. Tests replace it to simulate a failing disk.
#[doc(hidden)]
pub trait Medium: Send + Sync + 'static {
    /// `fdatasync`.
    fn sync(&self, file: &File) -> io::Result<()>;
}

/// The real disk.
struct Disk;

impl Medium for Disk {
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}

/// The name of the file that exists while a directory is being created.
const CREATING: &str = "creating";
const LOG_DIR: &str = "log";

impl Storage {
    /// Returns the initial component of a directory, or `None` if the directory is not created yet.
    /// Reads only the identity file.
    pub fn made_for(dir: &Path) -> Result<Option<ComponentId>, Error> {
        Ok(Identity::read(dir)?.map(|identity| identity.component_id))
    }

    /// Opens a data directory, or creates it. A directory that belongs to another node, or is
    /// incomplete, is an error. Blocks while the whole log is read.
    pub fn open(options: Options) -> Result<Self, Error> {
        Self::open_on(options, Arc::new(Disk))
    }

    /// Opens the directory of a stopped node, as that node would.
    ///
    /// # Errors
    /// As for [`Storage::open`]; also if the node is running, or the directory is not a data directory.
    pub fn open_stopped(dir: &Path, master_key: MasterKey) -> Result<Self, Error> {
        let no_node = || Error::NoNode { dir: dir.to_owned() };
        let identity = Identity::read(dir)?.ok_or_else(no_node)?;
        let Identity { cluster_id, node_id, component_id, .. } = identity;
        // Not used, because the directory already exists.
        let (dir, component) = (dir.to_owned(), Bytes::new());
        Self::open(Options { dir, cluster_id, node_id, component, component_id, master_key })
    }

    /// The same as [`Storage::open`], on another medium.
    #[doc(hidden)]
    pub fn open_on(options: Options, medium: Arc<dyn Medium>) -> Result<Self, Error> {
        let Options { dir, cluster_id, node_id, component, component_id, master_key } = options;
        files::create_dir(&dir)?;
        files::restrict_dir(&dir)?;
        let lock = Arc::new(Lock::take(&dir)?);
        let identity = match Identity::read(&dir)? {
            Some(identity) => identity,
            None => {
                let incarnation = incarnation(&dir)?;
                let identity = Identity {
                    cluster_id: cluster_id.clone(),
                    node_id,
                    incarnation,
                    component_id,
                    restored: None,
                };
                create(&dir, &identity, &component, &master_key, &medium)?;
                identity
            }
        };
        identity.check(&dir, &cluster_id, node_id)?;
        finish_creation(&dir)?;
        let keys = Keys::open(&dir, identity.clone(), master_key)?;
        let (watermark_file, watermark) = WatermarkFile::open(&dir, keys.clone())?;
        // While sled opens the log, it changes its file. A loss by a power failure must be detected.
        watermark_file.sync()?;
        files::remove_temporary(&dir)?;
        // File names that an earlier process created may not be durable yet.
        files::sync_dir(&dir)?;
        let log_dir = dir.join(LOG_DIR);
        compact::remove_leftover(&log_dir)?;
        let tree = Tree::open(&log_dir, keys.clone(), Arc::clone(&medium))?;
        let recovered = check::check(&tree, &identity.incarnation, &watermark)?;
        let initial_component = initial_component::open(&dir, &keys, &identity)?;
        let tree = compact::compact(tree, &recovered, &keys, medium)?;
        let snapshots = SnapshotStore::open(&dir, keys.clone(), Arc::clone(&lock))?;
        let newest = snapshots.latest()?;
        let compiled = CompiledStore::open(&dir, keys.clone());
        retire_unused(&keys, &recovered, newest.as_ref())?;
        let log = LogStore::start(Arc::new(tree), watermark_file, recovered, lock)?;
        if let Some(newest) = newest {
            log.give_way(LogId::new_term_index(newest.term(), newest.index()))
                .map_err(Error::io("cannot truncate", &log_dir))?;
        }
        Ok(Self { identity, initial_component, log, snapshots, compiled, keys })
    }
}

fn incarnation(dir: &Path) -> Result<[u8; 16], Error> {
    let mut incarnation = [0; 16];
    getrandom::fill(&mut incarnation)
        .map_err(|error| Error::io("no random bytes for", dir)(error.into()))?;
    Ok(incarnation)
}

/// Creates a directory. The identity file is written last: if it exists, everything else exists.
fn create(
    dir: &Path,
    identity: &Identity,
    component: &[u8],
    master_key: &MasterKey,
    medium: &Arc<dyn Medium>,
) -> Result<(), Error> {
    let creating = dir.join(CREATING);
    if !creating.exists() {
        let unreadable = Error::io("cannot read directory", dir);
        let names: io::Result<Vec<_>> = std::fs::read_dir(dir)
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
        // File systems create `lost+found` in their root directory.
        let expected = [Lock::FILE, "creating.tmp", "lost+found"];
        for name in names.map_err(unreadable)? {
            if name == Restoring::MARKER {
                return Err(Error::Unrestored { dir: dir.to_owned() });
            }
            if !expected.iter().any(|expected| name == *expected) {
                let found = name.to_string_lossy().into_owned();
                return Err(Error::NotEmpty { dir: dir.to_owned(), found });
            }
        }
        files::write_atomically(&creating, b"")?;
    }
    write_contents(dir, identity, component, master_key, medium)?;
    files::write_atomically(&dir.join(Identity::FILE), &identity.encode())
}

/// Writes everything that a new directory has except its identity. Removes the contents of an
/// interrupted creation.
fn write_contents(
    dir: &Path,
    identity: &Identity,
    component: &[u8],
    master_key: &MasterKey,
    medium: &Arc<dyn Medium>,
) -> Result<Keys, Error> {
    files::remove(&dir.join(Keys::FILE))?;
    files::remove(&dir.join(WatermarkFile::FILE))?;
    let snapshots = dir.join(SnapshotStore::DIR);
    files::remove_dir(&snapshots)?;
    files::create_dir(&snapshots)?;
    files::remove_dir(&dir.join(CompiledStore::DIR))?;
    let keys = Keys::create(dir, identity.clone(), master_key.clone())?;
    initial_component::write(dir, &keys, component)?;
    let tree = Tree::create(&dir.join(LOG_DIR), keys.clone(), Arc::clone(medium))?;
    let born = birth(&tree, &identity.incarnation).and_then(|()| tree.sync());
    born.map_err(Error::io("cannot write", tree.dir()))?;
    drop(tree);
    let watermark = watermark::Watermark { sequence: 1, ..watermark::Watermark::default() };
    WatermarkFile::create(dir, keys.clone(), &watermark)?;
    files::sync_dir(dir)?;
    Ok(keys)
}

/// Writes the tree's first value, which binds the tree to its directory.
fn birth(tree: &Tree, incarnation: &[u8]) -> io::Result<()> {
    let mut batch = tree::Batch::default();
    let sealed = tree.seal(format::BIRTH, &format::value(1, incarnation))?;
    batch.insert(format::BIRTH.to_vec(), sealed);
    tree.apply(batch)
}

/// Removes the file that marks an incomplete directory, because the complete directory must never be
/// created again.
fn finish_creation(dir: &Path) -> Result<(), Error> {
    for marker in [dir.join(CREATING), dir.join(Restoring::MARKER)] {
        if marker.exists() {
            files::remove(&marker)?;
            files::sync_dir(dir)?;
        }
    }
    Ok(())
}

/// Retires the data keys that no longer seal any data.
fn retire_unused(
    keys: &Keys,
    recovered: &Recovered,
    newest: Option<&SnapshotFile>,
) -> Result<(), Error> {
    let mut used: BTreeSet<KeyId> = recovered.key_ids.clone();
    used.extend(newest.into_iter().flat_map(SnapshotFile::key_ids).map(KeyId));
    for key in keys.status() {
        // The key before the active one may still seal a slot of the watermark.
        if key.id.0 + 1 < keys.active().0 && !used.contains(&key.id) {
            keys.retire(key.id)?;
            tracing::info!(key_id = %key.id, "retired a data key, because no data is sealed under it any more");
        }
    }
    Ok(())
}

impl Options {
    /// Returns the options of a node in a test, with a fixed key.
    #[doc(hidden)]
    pub fn for_test(dir: &Path) -> Self {
        let component = Bytes::from_static(b"component");
        Self {
            dir: dir.to_owned(),
            cluster_id: "test".into(),
            node_id: 1,
            component_id: ComponentId::of(&component),
            component,
            master_key: MasterKey::from_bytes([7; 32]),
        }
    }
}
