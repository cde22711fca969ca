//! How files come into being: whole or not at all, and readable by their owner alone.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use rustix::fs::{Access, access};

use super::Error;

/// The suffix of a file that is being written. Whatever bears it at open is a leftover.
pub(super) const TEMPORARY: &str = "tmp";

const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

/// A new file for its owner alone.
pub(super) fn create(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE)
        .open(path)
        .map_err(Error::io("cannot create", path))
}

/// Makes a directory and those above it, each synced into its parent.
pub(super) fn create_dir(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        create_dir(parent)?;
    }
    match DirBuilder::new().mode(DIR_MODE).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(Error::io("cannot create directory", path)(error)),
        Ok(()) => sync_dir(parent.unwrap_or(Path::new("."))),
    }
}

/// Takes a directory away from all but its owner. One that belongs to another user, as a volume that is shared through
/// its group does, keeps its permissions if this process may write to it.
pub(super) fn restrict_dir(path: &Path) -> Result<(), Error> {
    let failed = Error::io("cannot restrict the permissions of", path);
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => return Err(failed(error)),
    };
    let mode = metadata.permissions().mode() & 0o7777;
    let is_own = metadata.uid() == rustix::process::geteuid().as_raw();
    let is_usable = || access(path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK).is_ok();
    if is_own && mode & 0o077 == 0 {
        return Ok(());
    }
    match fs::set_permissions(path, fs::Permissions::from_mode(DIR_MODE)) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_usable() => {
            tracing::warn!(
                path = %path.display(),
                owner = metadata.uid(),
                mode = format!("{mode:o}"),
                "the data directory belongs to another user, and others than its owner may use it; what is in it is \
                 encrypted, but can be removed or replaced by an older copy"
            );
            Ok(())
        }
        Err(error) => Err(failed(error)),
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(path: &Path) -> Result<(), Error> {
    let synced = File::open(path).and_then(|dir| dir.sync_all());
    synced.map_err(Error::io("cannot sync directory", path))
}

/// Replaces a file's content durably: a crash leaves the old or the new one.
pub(super) fn write_atomically(path: &Path, content: &[u8]) -> Result<(), Error> {
    replace(path, |file| file.write_all(content).map_err(Error::io("cannot write", path)))
}

/// Replaces a file durably by one that `write` fills: a crash leaves the old or the new one.
pub(super) fn replace(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<(), Error>,
) -> Result<(), Error> {
    let temporary = path.with_added_extension(TEMPORARY);
    let replaced = (|| {
        let mut file = create(&temporary)?;
        write(&mut file)?;
        file.sync_all().map_err(Error::io("cannot sync", &temporary))?;
        fs::rename(&temporary, path).map_err(Error::io("cannot rename to", path))
    })();
    if replaced.is_err() {
        // On a full disk the rest of it would keep the disk full. The first error is the one that counts.
        let _ = remove(&temporary);
    }
    replaced?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Removes what interrupted replacements left in a directory.
pub(super) fn remove_temporary(dir: &Path) -> Result<(), Error> {
    let unreadable = Error::io("cannot read directory", dir);
    let entries = fs::read_dir(dir).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    for entry in entries.map_err(unreadable)? {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == TEMPORARY) && !path.is_dir() {
            remove(&path)?;
        }
    }
    Ok(())
}

/// A small file's content; nothing if there is no such file. Larger than `bytes_max` is an error.
pub(super) fn read_small(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, Error> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(Error::io("cannot open", path))?,
    };
    let mut content = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut content).map_err(Error::io("cannot read", path))?;
    if content.len() as u64 > bytes_max {
        return Err(Error::damaged(path.display().to_string(), "it is too long"));
    }
    Ok(Some(content))
}

/// Removes a file; one that is not there is no error.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(Error::io("cannot remove", path)),
    }
}

/// Removes a directory and what is in it; one that is not there is no error.
pub(super) fn remove_dir(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(Error::io("cannot remove", path)),
    }
}
