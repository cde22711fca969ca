//! A private copy of a stopped node's data directory, for who wants to look into it.
//!
//! A store cannot be opened without being written to: sled recovers and collects garbage, and the
//! keyring, the lock and leftovers are seen to. So a look is a look into a copy, which is as sealed as the
//! original and needs the same master key.
//!
//! # Contract
//! - Of the original nothing is changed, not even its lock. It is held shared while the files are copied, so
//!   that no node starts under the copy, and one that runs is refused.
//! - A wrong key and a directory that is none are refused before anything is copied.
//! - The copy is the caller's to remove. It must never be given to a node: it would vote as the original.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use super::{Error, Identity, Keys, Options, Storage, compact, files, lock::Lock};
use conclave_crypto::MasterKey;

impl Storage {
    /// Copies a stopped node's directory into an empty one and opens that. `stop` is asked between two files.
    ///
    /// # Errors
    /// As for [`Storage::open`]; what is said of the copy's files holds of the original's.
    pub fn open_copy(
        original: &Path,
        copy: &Path,
        master_key: MasterKey,
        stop: impl Fn() -> bool,
    ) -> Result<Self, Error> {
        let no_node = || Error::NoNode { dir: original.to_owned() };
        let identity = Identity::read(original)?.ok_or_else(no_node)?;
        let lock = Lock::look(original)?;
        Keys::open(original, identity.clone(), master_key.clone())?;
        copy_dir(original, copy, &|| match stop() {
            true => Err(Error::Stopped { dir: original.to_owned() }),
            false => Ok(()),
        })?;
        drop(lock);
        Self::open(Options {
            dir: copy.to_owned(),
            cluster_id: identity.cluster_id,
            node_id: identity.node_id,
            component_id: identity.component_id,
            // Nothing is created.
            component: bytes::Bytes::new(),
            master_key,
        })
    }
}

/// What of a directory is nobody's: the lock is the process's, the rest are leftovers.
fn is_copied(path: &Path) -> bool {
    let is = |name: &str| path.file_name().is_some_and(|found| found == name);
    let is_temporary = path.extension().is_some_and(|extension| extension == files::TEMPORARY);
    !(is(Lock::FILE) || is(compact::OTHER) || is("lost+found") || is_temporary)
}

fn copy_dir(from: &Path, to: &Path, go_on: &impl Fn() -> Result<(), Error>) -> Result<(), Error> {
    files::create_dir(to)?;
    let entries = fs::read_dir(from).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    for entry in entries.map_err(Error::io("cannot read directory", from))? {
        go_on()?;
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if !is_copied(&path) {
            continue;
        }
        if path.is_dir() {
            copy_dir(&path, &copy, go_on)?;
        } else {
            // Shares the blocks where the file system can.
            fs::copy(&path, &copy).map_err(Error::io("cannot copy", &path))?;
            // The original may be read-only.
            let permissions = Permissions::from_mode(0o600);
            fs::set_permissions(&copy, permissions)
                .map_err(Error::io("cannot restrict the permissions of", &copy))?;
        }
    }
    Ok(())
}
