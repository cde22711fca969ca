//! Private copy of a stopped node's data directory, for offline inspection.
//!
//! Opening a store writes to it: sled recovers and collects garbage, and the keyring, the lock and
//! leftovers are updated. Offline inspection therefore works on a copy. The copy is sealed like the
//! original, and needs the same master key.
//!
//! # Contract
//! - The original is never changed, not even its lock. A shared lock is held during the copy, so no
//!   node can start on the original. A running node is an error.
//! - A wrong key, and a directory without a node's data, are errors before anything is copied.
//! - The caller removes the copy. A node must never run on it, because it would vote as the original.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use super::{Error, Identity, Keys, Options, Storage, compact, files, lock::Lock};
use conclave_crypto::MasterKey;

impl Storage {
    /// Copies a stopped node's directory into an empty directory, and opens the copy. `stop` is
    /// called before each file, and ends the copying if it returns true.
    ///
    /// # Errors
    /// As for [`Storage::open`]. Errors about files of the copy also apply to the original.
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
            // Not used, because the directory already exists.
            component: bytes::Bytes::new(),
            master_key,
        })
    }
}

/// Whether a file belongs to the copy: all except the lock, which belongs to a process, and leftovers.
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
            // Shares the blocks, if the file system supports it.
            fs::copy(&path, &copy).map_err(Error::io("cannot copy", &path))?;
            // The original may be read-only.
            let permissions = Permissions::from_mode(0o600);
            fs::set_permissions(&copy, permissions)
                .map_err(Error::io("cannot restrict the permissions of", &copy))?;
        }
    }
    Ok(())
}
