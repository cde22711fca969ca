//! One process a data directory.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::{FlockOperation, flock};

use super::Error;

/// Holds the directory until dropped. The kernel gives it back when the process dies.
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
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // The number only helps the reader of the message.
                let _ = file.take(32).read_to_string(&mut holder);
                return Err(Error::InUse { dir: dir.to_owned(), pid: holder.trim().parse().ok() });
            }
            Err(error) => return Err(Error::io("cannot lock", &path)(error.into())),
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(Error::io("cannot write", &path))?;
        Ok(Self { _file: file })
    }
}
