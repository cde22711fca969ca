//! Storage of compiled components, sealed, so that a restart need not compile again.
//!
//! # Contract
//! - [`CompiledStore::get`] returns either nothing, or exactly the bytes that
//!   [`CompiledStore::put`] stored for the same component and engine. The safety of running the
//!   code depends on this, because compiled code runs unchecked. Each piece is authenticated under
//!   a key that only this node has (for a shared directory: this cluster). Each piece is bound to
//!   its file, the component, the engine, its number and the number of pieces.
//! - These files are an optimization. A damaged, foreign or stale file, or one of another version,
//!   is logged, ignored and removed. No disk error is returned to the callers of `get` and `put`.
//! - Each component has one file: code of a newer engine replaces it. [`CompiledStore::retain`]
//!   removes the files of components that are no longer needed.
//! - Each start reseals files under the active data key. The files therefore keep no old data key
//!   in use. A file whose key has been retired is removed.
//!
//! The file, all numbers big-endian; see also `docs/disk-format.md`:
//!
//! ```text
//! 0    8  magic "CNCLVCMP"
//! 8    2  version, 1
//! 10  16  file id, random
//! 26   4  number of pieces
//! then for each piece, of 1 MiB except the last one:
//!      4  length of the envelope
//!      n  sealed: the piece
//! ```

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Error, Keys, Reason, files};
use conclave_crypto as crypto;
use conclave_crypto::{Aad, KeyId, Keyring, MasterKey, OVERHEAD_BYTES};
use conclave_types::{ComponentId, error::chain};

const MAGIC: &[u8; 8] = b"CNCLVCMP";
const VERSION: u16 = 1;
const PREAMBLE_BYTES: usize = 8 + 2 + 16 + 4;
const PLACE: &str = "compiled";
const PIECE_BYTES: usize = 1 << 20;
/// The number of pieces written before a sync. The log's syncs wait for everything that a large
/// file has in the device's queue.
const PIECES_PER_SYNC: usize = 8;
/// The largest code that is stored. A component has at most 64 MiB.
pub const COMPILED_BYTES_MAX: usize = 512 << 20;
const EXTENSION: &str = "compiled";
/// The largest number of hexadecimal digits in an engine's name, which is the start of its
/// fingerprint's hash.
const ENGINE_CHARS_MAX: usize = 64;

/// The compiled code in one directory. Clones share it.
#[derive(Clone)]
pub struct CompiledStore {
    dir: PathBuf,
    sealer: Sealer,
}

/// The keys under which code is sealed.
#[derive(Clone)]
enum Sealer {
    /// The data keys of one node.
    Node(Keys),
    /// A key that the nodes of one cluster derive from their master key.
    Shared { keyring: Arc<Keyring>, cluster_id: String },
}

/// The node id for [`Sealer::Shared`]. No node has this id.
const NO_NODE: u64 = 0;
/// The number of pieces that one process may write into a shared directory. Each process has nonces
/// of its own.
const SHARED_USES_MAX: u64 = 1 << 30;
const SHARED_KEY: &str = "conclave 2026-11 compiled components";

/// The key of a stored file: the component, and the engine that compiled it.
struct Name<'a> {
    component: ComponentId,
    engine: &'a str,
}

impl Name<'_> {
    fn file(&self) -> String {
        format!("{}-{}.{EXTENSION}", self.component, self.engine)
    }
}

/// Parses the component and the engine from a file name.
fn parse(path: &Path) -> Option<(ComponentId, String)> {
    let name = path.file_name()?.to_str()?.strip_suffix(EXTENSION)?.strip_suffix('.')?;
    let (component, engine) = name.split_once('-')?;
    let mut id = [0; 32];
    hex::decode_to_slice(component, &mut id).ok()?;
    Some((ComponentId(id), engine.to_owned()))
}

impl CompiledStore {
    pub(super) const DIR: &str = "compiled";

    /// Opens the store of a data directory. Removes leftovers, and reseals files under the active
    /// data key.
    pub(super) fn open(data_dir: &Path, keys: Keys) -> Self {
        let store = Self { dir: data_dir.join(Self::DIR), sealer: Sealer::Node(keys) };
        for path in store.files() {
            match parse(&path) {
                Some((component, engine)) => store.renew(&Name { component, engine: &engine }),
                None => remove(&path, "its name is not that of a compiled component"),
            }
        }
        store
    }

    /// Opens a directory that the nodes of one cluster on one host share.
    ///
    /// # Errors
    /// The operating system returns no random bytes.
    pub fn shared(dir: PathBuf, master_key: &MasterKey, cluster_id: &str) -> Result<Self, Error> {
        let keyring = Keyring::of_key(master_key.derived(SHARED_KEY));
        let keyring = keyring.map_err(Error::keys(&dir))?.reserve(SHARED_USES_MAX);
        let cluster_id = cluster_id.to_owned();
        Ok(Self { dir, sealer: Sealer::Shared { keyring: Arc::new(keyring), cluster_id } })
    }

    /// Waits until no other process of a shared directory compiles this component. The lock is
    /// released when the returned file is dropped, or the process ends.
    pub fn turn(&self, component: ComponentId) -> Option<File> {
        let Sealer::Shared { .. } = self.sealer else { return None };
        let wait = || {
            files::create_dir(&self.dir)?;
            let path = self.lock_file(component);
            let file = files::create(&path)?;
            file.lock().map_err(Error::io("cannot lock", &path))?;
            Ok(file)
        };
        wait()
            .inspect_err(
                |error: &Error| tracing::warn!(%error, "cannot lock the shared compiled code; each node compiles components itself"),
            )
            .ok()
    }

    /// Returns the code of a component for an engine.
    pub fn get(&self, component: ComponentId, engine: &str) -> Option<Vec<u8>> {
        let name = Name { component, engine };
        let path = self.dir.join(name.file());
        match self.read(&path, &name) {
            Ok(code) => code,
            Err(why) => {
                remove(&path, &chain(&why));
                None
            }
        }
    }

    /// Stores the code of a component for an engine. Code of other engines for the component is removed.
    pub fn put(&self, component: ComponentId, engine: &str, code: &[u8]) {
        let name = Name { component, engine };
        if let Err(error) = self.write(&name, code) {
            tracing::warn!(
                %component,
                %error,
                "cannot store the compiled code of a component; it is compiled again at the next start"
            );
            return;
        }
        let newest = self.dir.join(name.file());
        for path in self.files() {
            if path != newest && parse(&path).is_some_and(|(other, _)| other == component) {
                remove(&path, "it was compiled by another engine");
            }
        }
    }

    /// Removes the code of all other components.
    pub fn retain(&self, keep: impl Fn(&ComponentId) -> bool) {
        for path in self.files() {
            if parse(&path).is_some_and(|(component, _)| !keep(&component)) {
                remove(&path, "the cluster no longer needs the component");
                // If a process waits for this lock right now, two processes may compile. That is harmless.
                if let Some((component, _)) = parse(&path) {
                    let _ = files::remove(&self.lock_file(component));
                }
            }
        }
    }

    fn lock_file(&self, component: ComponentId) -> PathBuf {
        self.dir.join(format!("{component}.lock"))
    }

    /// All files of the directory except lock files.
    fn files(&self) -> Vec<PathBuf> {
        let read = |dir: &Path| fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect();
        let files: io::Result<Vec<PathBuf>> = read(&self.dir);
        let mut files = match files {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            files => files
                .inspect_err(|error| tracing::warn!(dir = %self.dir.display(), %error, "cannot list compiled code"))
                .unwrap_or_default(),
        };
        files.retain(|path| path.extension().is_none_or(|extension| extension != "lock"));
        files
    }

    /// Reseals a file if its first and oldest piece is not sealed under the active key.
    fn renew(&self, name: &Name<'_>) {
        let path = self.dir.join(name.file());
        if first_key(&path) == Some(self.active_key()) {
            return;
        }
        if let Some(code) = self.get(name.component, name.engine) {
            tracing::info!(component = %name.component, "resealing compiled code under the active data key");
            self.put(name.component, name.engine, &code);
        }
    }

    fn active_key(&self) -> KeyId {
        match &self.sealer {
            Sealer::Node(keys) => keys.active(),
            Sealer::Shared { keyring, .. } => keyring.active(),
        }
    }

    /// Reads the code. An error contains the reason to discard the file.
    fn read(&self, path: &Path, name: &Name<'_>) -> Result<Option<Vec<u8>>, Reason> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut file = io::BufReader::with_capacity(PIECE_BYTES, file);
        let mut preamble = [0; PREAMBLE_BYTES];
        let unreadable = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => "it is truncated".into(),
            _ => Reason::from(error),
        };
        file.read_exact(&mut preamble).map_err(unreadable)?;
        let pieces = pieces_of(&preamble)?;
        let mut code = Vec::new();
        for number in 0..pieces {
            let mut length = [0; 4];
            file.read_exact(&mut length).map_err(unreadable)?;
            let length = u32::from_be_bytes(length) as usize;
            if length > PIECE_BYTES + OVERHEAD_BYTES {
                return Err("a piece exceeds the size limit".into());
            }
            let mut sealed = vec![0; length];
            file.read_exact(&mut sealed).map_err(unreadable)?;
            let piece = self.open_piece(&key(&preamble, name, number), &sealed);
            code.extend_from_slice(&piece?);
        }
        match file.read(&mut [0]).map_err(unreadable)? {
            0 => Ok(Some(code)),
            _ => Err("it has extra bytes at its end".into()),
        }
    }

    fn write(&self, name: &Name<'_>, code: &[u8]) -> Result<(), Error> {
        let path = self.dir.join(name.file());
        let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, "the code exceeds 512 MiB");
        if code.len() > COMPILED_BYTES_MAX || name.engine.len() > ENGINE_CHARS_MAX {
            return Err(Error::io("cannot store", &path)(too_large()));
        }
        files::create_dir(&self.dir)?;
        let pieces = code.chunks(PIECE_BYTES);
        let mut preamble = [MAGIC, &VERSION.to_be_bytes()[..], &[0; 16]].concat();
        getrandom::fill(&mut preamble[10..26])
            .map_err(|error| Error::io("no random bytes for", &path)(error.into()))?;
        // At most 512 pieces.
        preamble.extend_from_slice(&(pieces.len() as u32).to_be_bytes());
        files::replace(&path, |file| {
            let failed = Error::io("cannot write", &path);
            file.write_all(&preamble).map_err(failed)?;
            for (number, piece) in (0_u32..).zip(pieces) {
                let sealed = self.seal_piece(&key(&preamble, name, number), piece)?;
                // A piece has at most 1 MiB.
                let framed = [&(sealed.len() as u32).to_be_bytes(), &sealed[..]].concat();
                file.write_all(&framed).map_err(Error::io("cannot write", &path))?;
                if number as usize % PIECES_PER_SYNC == PIECES_PER_SYNC - 1 {
                    file.sync_data().map_err(Error::io("cannot sync", &path))?;
                }
            }
            Ok(())
        })
    }

    fn seal_piece(&self, key: &[u8], piece: &[u8]) -> Result<Vec<u8>, Error> {
        match &self.sealer {
            Sealer::Node(keys) => keys.seal(PLACE, key, piece),
            Sealer::Shared { keyring, cluster_id } => {
                crypto::seal(keyring, &shared_aad(cluster_id, key), piece)
                    .map_err(Error::keys(&self.dir))
            }
        }
    }

    fn open_piece(&self, key: &[u8], sealed: &[u8]) -> Result<Vec<u8>, crypto::Error> {
        match &self.sealer {
            Sealer::Node(keys) => keys.open_sealed(PLACE, key, sealed),
            Sealer::Shared { keyring, cluster_id } => {
                crypto::open(keyring, &shared_aad(cluster_id, key), sealed)
            }
        }
    }
}

fn shared_aad<'a>(cluster_id: &'a str, key: &'a [u8]) -> Aad<'a> {
    Aad { cluster_id, node_id: NO_NODE, place: PLACE, key }
}

/// The associated data's key of a piece.
fn key(preamble: &[u8], name: &Name<'_>, number: u32) -> Vec<u8> {
    // All fields except the last one have a fixed length, so the concatenation is unambiguous.
    [preamble, &name.component.0, &number.to_be_bytes(), name.engine.as_bytes()].concat()
}

/// Returns the number of pieces from the preamble. The preamble itself is not authenticated, but
/// each piece is bound to it.
fn pieces_of(preamble: &[u8; PREAMBLE_BYTES]) -> Result<u32, Reason> {
    let (magic, rest) = preamble.split_at(8);
    if magic != MAGIC {
        return Err("it does not start with the magic bytes".into());
    }
    let version = u16::from_be_bytes([rest[0], rest[1]]);
    if version != VERSION {
        return Err(format!(
            "it has format version {version}, but this version of Conclave uses version {VERSION}"
        )
        .into());
    }
    let pieces = u32::from_be_bytes([rest[18], rest[19], rest[20], rest[21]]);
    match pieces as usize {
        0 => Err("it is empty".into()),
        count if count > COMPILED_BYTES_MAX / PIECE_BYTES => Err("it is too long".into()),
        _ => Ok(pieces),
    }
}

/// Returns the data key of the first piece. `None` if it cannot be read.
fn first_key(path: &Path) -> Option<KeyId> {
    let mut start = [0; PREAMBLE_BYTES + 4 + 5];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).ok()?;
    crypto::key_id_of(&start[PREAMBLE_BYTES + 4..])
}

fn remove(path: &Path, why: &str) {
    tracing::info!(path = %path.display(), why, "removing compiled code");
    let removed = if path.is_dir() { files::remove_dir(path) } else { files::remove(path) };
    if let Err(error) = removed {
        tracing::warn!(%error, "cannot remove unusable compiled code");
    }
}
