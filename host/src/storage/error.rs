//! What can go wrong with a data directory.

use std::{io, path::Path, path::PathBuf};

use crate::crypto;

/// What to do about damage. A node must not go on with less than it acknowledged: its vote could
/// elect a second leader in a term, its log could lack what a majority was counted on to have.
const REBUILD: &str = "this node must not go on with it: remove it from the cluster, and join it \
                       again under a new node id with an empty data directory";

/// Why storage refuses.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Somebody else has it open.
    #[error("data directory {} is in use by another process{}", dir.display(), pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Who, if it said so.
        pid: Option<u32>,
    },
    /// It is another node's or another cluster's; or it was made for another module, before directories held theirs.
    #[error("data directory {} belongs to {what} {found}, and this node is configured for {what} {expected}", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// In which respect.
        what: &'static str,
        /// What the directory says.
        found: String,
        /// What the configuration says.
        expected: String,
    },
    /// There are files in it that no node of this version put there.
    #[error("data directory {} has no identity file, but is not empty ({found} is in it): give an empty directory, or restore the identity file", dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
        /// One of the files.
        found: String,
    },
    /// It is none.
    #[error("{} is no node's data directory: there is no identity file in it", dir.display())]
    NoNode {
        /// The directory.
        dir: PathBuf,
    },
    /// Whoever asked changed their mind.
    #[error("the copying of {} was stopped", dir.display())]
    Stopped {
        /// The directory.
        dir: PathBuf,
    },
    /// A part of it is not there.
    #[error("{} is missing; {REBUILD}", path.display())]
    Missing {
        /// The part.
        path: PathBuf,
    },
    /// A newer Conclave wrote it.
    #[error("{} has format version {found}, and this version of Conclave knows up to {known}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// In the file.
        found: u16,
        /// In this program.
        known: u16,
    },
    /// It is not what was written.
    #[error("{what} is damaged ({reason}); {REBUILD}")]
    Damaged {
        /// The file, the log index, or the record.
        what: String,
        /// Which check failed.
        reason: String,
    },
    /// A snapshot is not what was written.
    #[error("snapshot {} is damaged ({reason}); it is never skipped, because the log before it is gone: {REBUILD}", path.display())]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// Which check failed.
        reason: String,
    },
    /// Keys.
    #[error("{}: {source}", path.display())]
    Keys {
        /// The keyring's file.
        path: PathBuf,
        /// What is wrong.
        source: crypto::Error,
    },
    /// An earlier write failed. Nothing is accepted any more.
    #[error("the store accepts nothing since an earlier failure: {0}")]
    Poisoned(String),
    /// The operating system.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`, with the file that it happened to.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(super) fn damaged(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Damaged { what: what.into(), reason: reason.to_string() }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Io { source, .. } => source.kind(),
            Error::Damaged { .. } | Error::Snapshot { .. } => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
