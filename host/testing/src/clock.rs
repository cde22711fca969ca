//! Moves a node's wall clock while the node runs, with Debian's libfaketime.
//!
//! The library is loaded into the node's process and reads the offset from a file at each call. The
//! monotonic clock, which elections and leases use, is not changed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Paths of the library in Debian's package `libfaketime`.
const LIBRARIES: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
];

/// The clock of one node.
#[derive(Debug)]
pub struct Clock {
    file: PathBuf,
    library: PathBuf,
}

impl Clock {
    /// Creates a clock whose offset is stored in `file`. Returns `None` if libfaketime is not installed.
    pub fn new(file: &Path) -> Result<Option<Self>> {
        let Some(library) = LIBRARIES.iter().map(Path::new).find(|path| path.exists()) else {
            return Ok(None);
        };
        let clock = Self { file: file.to_owned(), library: library.to_owned() };
        clock.set(0)?;
        Ok(Some(clock))
    }

    /// Sets the clock's offset from the true time, in seconds.
    pub fn set(&self, seconds: i64) -> Result<()> {
        // Replaced atomically, because the node may read the file at any time.
        let next = self.file.with_extension("next");
        let write = fs::write(&next, format!("{seconds:+}s\n"));
        write.and_then(|()| fs::rename(&next, &self.file)).context("cannot move a clock")
    }

    /// Environment variables for the node.
    pub fn environment(&self) -> Vec<(String, String)> {
        let variable = |name: &str, value: String| (name.to_owned(), value);
        vec![
            variable("LD_PRELOAD", self.library.display().to_string()),
            variable("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            variable("FAKETIME_NO_CACHE", "1".to_owned()),
            variable("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            variable("FAKETIME_DONT_RESET", "1".to_owned()),
        ]
    }
}
