//! Creation of files and directories: atomic, durable, and readable only by their owner.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use rustix::fs::{Access, access};

use super::Error;

/// The suffix of a file that is being written. Such files are leftovers when a directory is opened.
pub(super) const TEMPORARY: &str = "tmp";

const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

/// Creates a file that only its owner can access.
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

/// Creates a directory and its parents. Each is synced into its parent directory.
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

/// Restricts a directory to its owner. If the directory belongs to another user (for example a
/// volume that is shared through its group), it keeps its permissions, provided that this process
/// may write to it.
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
                "the data directory belongs to another user, and other users may access it; its contents are \
                 encrypted, but other users may remove them or replace them by an older copy"
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

/// Replaces the content of a file durably. After a crash the file has either the old or the new content.
pub(super) fn write_atomically(path: &Path, content: &[u8]) -> Result<(), Error> {
    replace(path, |file| file.write_all(content).map_err(Error::io("cannot write", path)))
}

/// Replaces a file durably by a new file that `write` fills. After a crash either the old or the
/// new file exists.
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
        // On a full disk, the incomplete file would keep the disk full. The first error is returned.
        let _ = remove(&temporary);
    }
    replaced?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Removes the leftovers of interrupted replacements from a directory.
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

/// Reads a small file. Returns `None` if there is no file. A file larger than `bytes_max` is an error.
pub(super) fn read_small(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, Error> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(Error::io("cannot open", path))?,
    };
    let mut content = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut content).map_err(Error::io("cannot read", path))?;
    if content.len() as u64 > bytes_max {
        return Err(Error::damaged(path.display().to_string(), "it is too large"));
    }
    Ok(Some(content))
}

/// Removes a file, if it exists.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(Error::io("cannot remove", path)),
    }
}

/// Removes a directory and its contents, if it exists.
pub(super) fn remove_dir(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(Error::io("cannot remove", path)),
    }
}
