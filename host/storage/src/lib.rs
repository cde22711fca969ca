//! What a node keeps on disk: its identity and keys, the log, the vote, small records, snapshots.
//!
//! ```text
//! DATA/lock        held while the node runs; tells who
//! DATA/identity    whose directory this is
//! DATA/keyring     the data keys, wrapped by the master key
//! DATA/genesis     the component that the cluster was begun with, sealed
//! DATA/compiled/   compiled code of components, sealed; without it components are compiled
//! DATA/mark        how far the log had got: what must be there
//! DATA/log/        sled: log, vote, committed and purged ids, records; values sealed
//! DATA/snapshots/  <term>-<index>.snap
//! ```
//!
//! # Contract
//!
//! - **What was acknowledged is on stable storage**, and everything goes there through one function,
//!   [`tree::Tree::sync`] for the log, and temp, sync, rename, sync directory for whole files. Who
//!   appends is answered after it, in a batch with everybody who came meanwhile.
//! - **A failed sync poisons the store**: what the kernel holds is then unknown, so nothing is
//!   accepted any more, and every later call names the first failure.
//! - **Nothing is silently less than it was.** A directory that is another node's, a wrong key, a
//!   changed byte, a record moved elsewhere, a log that lost its end: each is refused by name, at
//!   open or at read, and nothing is written. There is no repair: the node is rebuilt from its peers
//!   under a new id.
//! - Nothing leaves memory unsealed, but for names, indexes, sizes and key ids.
//! - A directory comes into being whole: until its identity is there, the file `creating` says that
//!   nothing in it counts.
//!
//! # Caveats
//!
//! Calls block on the disk unless they are async. A whole directory put back from an older copy
//! cannot be told from the newest one, and must never be: it would vote twice. Only this component sees
//! sled, and only `tree.rs` of it.
//!
//! Formats: `docs/disk-format.md`.

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

pub use compiled::{COMPILED_BYTES_MAX, CompiledStore};
pub use error::Error;
pub use group_commit::BatchWindow;
pub use identity::Identity;
pub use keys::Keys;
pub use log_store::{Extent, LogStore};
pub use snapshots::{CHUNK_BYTES_MAX, SnapshotFile, SnapshotReader, SnapshotStore, SnapshotWriter};

use self::{check::Recovered, lock::Lock, tree::Tree, watermark::WatermarkFile};
use crate::raft_types::LogId;
use conclave_crypto::{KeyId, MasterKey};
use conclave_types::{ComponentId, NodeId};

/// What it takes to open a data directory.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory. Made if it is not there.
    pub dir: PathBuf,
    /// The cluster that it must belong to.
    pub cluster_id: String,
    /// The node that it must belong to.
    pub node_id: NodeId,
    /// The component that a new directory is made for. One that is there already goes on with its own.
    pub component: Bytes,
    /// Its name.
    pub component_id: ComponentId,
    /// The key that opens its keyring.
    pub master_key: MasterKey,
}

/// An open data directory. It is given back when the last clone of its parts is gone.
pub struct Storage {
    /// Whose it is.
    pub identity: Identity,
    /// The component that the cluster was begun with.
    pub initial_component: Bytes,
    /// The log, the vote, records.
    pub log: LogStore,
    /// The snapshots.
    pub snapshots: SnapshotStore,
    /// Compiled code of components.
    pub compiled: CompiledStore,
    /// The data keys.
    pub keys: Keys,
}

/// How a file is made durable: the seam at which tests let a disk fail.
#[doc(hidden)]
pub trait Medium: Send + Sync + 'static {
    /// `fdatasync`.
    fn sync(&self, file: &File) -> io::Result<()>;
}

/// The real one.
struct Disk;

impl Medium for Disk {
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}

/// There while a directory is being made: nothing in it counts yet.
const CREATING: &str = "creating";
const LOG_DIR: &str = "log";

impl Storage {
    /// Which component a directory was made for; nothing if it is yet to be made. Looks at nothing else.
    pub fn made_for(dir: &Path) -> Result<Option<ComponentId>, Error> {
        Ok(Identity::read(dir)?.map(|identity| identity.component_id))
    }

    /// Opens a data directory, or makes it; refuses it if it is not the one, or not whole. Blocking,
    /// for as long as reading the whole log takes.
    pub fn open(options: Options) -> Result<Self, Error> {
        Self::open_on(options, Arc::new(Disk))
    }

    /// Opens the directory of a stopped node as that node would.
    ///
    /// # Errors
    /// As for [`Storage::open`]; also if the node runs, or there is none.
    pub fn open_stopped(dir: &Path, master_key: MasterKey) -> Result<Self, Error> {
        let no_node = || Error::NoNode { dir: dir.to_owned() };
        let identity = Identity::read(dir)?.ok_or_else(no_node)?;
        let Identity { cluster_id, node_id, component_id, .. } = identity;
        // Nothing is created.
        let (dir, component) = (dir.to_owned(), Bytes::new());
        Self::open(Options { dir, cluster_id, node_id, component, component_id, master_key })
    }

    /// The same on another medium.
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
                let identity =
                    Identity { cluster_id: cluster_id.clone(), node_id, incarnation, component_id };
                create(&dir, &identity, &component, &master_key, &medium)?;
                identity
            }
        };
        identity.check(&dir, &cluster_id, node_id)?;
        finish_creation(&dir)?;
        let keys = Keys::open(&dir, identity.clone(), master_key)?;
        let (watermark_file, watermark) = WatermarkFile::open(&dir, keys.clone())?;
        files::remove_temporary(&dir)?;
        // Names that an earlier process gave may not be on the disk yet.
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

/// Makes a directory. The identity comes last: once it is there, all the rest is.
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
        // The last is what a file system puts at its root.
        let expected = [Lock::FILE, "creating.tmp", "lost+found"];
        for name in names.map_err(unreadable)? {
            if !expected.iter().any(|expected| name == *expected) {
                let found = name.to_string_lossy().into_owned();
                return Err(Error::NotEmpty { dir: dir.to_owned(), found });
            }
        }
        files::write_atomically(&creating, b"")?;
    }
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
    WatermarkFile::create(dir, keys, &watermark)?;
    files::sync_dir(dir)?;
    files::write_atomically(&dir.join(Identity::FILE), &identity.encode())
}

/// The tree's first value: whose it is.
fn birth(tree: &Tree, incarnation: &[u8]) -> io::Result<()> {
    let mut batch = tree::Batch::default();
    let sealed = tree.seal(format::BIRTH, &format::value(1, incarnation))?;
    batch.insert(format::BIRTH.to_vec(), sealed);
    tree.apply(batch)
}

/// The directory is made; it must never be taken for one in the making again.
fn finish_creation(dir: &Path) -> Result<(), Error> {
    let creating = dir.join(CREATING);
    if creating.exists() {
        files::remove(&creating)?;
        files::sync_dir(dir)?;
    }
    Ok(())
}

/// Forgets the data keys under which nothing is sealed any more.
fn retire_unused(
    keys: &Keys,
    recovered: &Recovered,
    newest: Option<&SnapshotFile>,
) -> Result<(), Error> {
    let mut used: BTreeSet<KeyId> = recovered.key_ids.clone();
    used.extend(newest.into_iter().flat_map(SnapshotFile::key_ids).map(KeyId));
    for key in keys.status() {
        // The one before the active key may still have sealed a slot of the watermark.
        if key.id.0 + 1 < keys.active().0 && !used.contains(&key.id) {
            keys.retire(key.id)?;
            tracing::info!(key_id = %key.id, "a data key with nothing left under it was retired");
        }
    }
    Ok(())
}

impl Options {
    /// The options of a node in a test, with a known key.
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
