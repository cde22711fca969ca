//! The lock of a data directory, which allows only one process to use it.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::{FlockOperation, flock};

use super::Error;

/// The locked directory. Dropping it, or the end of the process, releases the lock.
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    pub(super) const FILE: &str = "lock";

    pub(super) fn take(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(Self::FILE);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(Error::io("cannot open", &path))?;
        lock(&file, FlockOperation::NonBlockingLockExclusive, dir)?;
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(Error::io("cannot write", &path))?;
        Ok(Self { _file: file })
    }

    /// Locks the directory against nodes without writing to it. Several readers can hold this lock.
    /// Returns `None` if there is no lock file, because then no node has opened the directory at
    /// this path.
    pub(super) fn look(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(Self::FILE);
        let file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(Error::io("cannot open", &path))?,
        };
        lock(&file, FlockOperation::NonBlockingLockShared, dir)?;
        Ok(Some(Self { _file: file }))
    }
}

fn lock(file: &File, how: FlockOperation, dir: &Path) -> Result<(), Error> {
    match flock(file, how) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // The process id only makes the message more helpful, so a failure to read it is ignored.
            let _ = file.take(32).read_to_string(&mut holder);
            Err(Error::InUse { dir: dir.to_owned(), pid: holder.trim().parse().ok() })
        }
        Err(error) => Err(Error::io("cannot lock", &dir.join(Lock::FILE))(error.into())),
    }
}
