//! What can go wrong with a data directory.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use conclave_crypto as crypto;
use conclave_proto::convert::Malformed;

/// The advice about damage. A node must not continue with less than it acknowledged: its vote could
/// elect a second leader in a term, its log could lack what a majority was counted on to have.
const DAMAGE: &str = "this node must not run with it, nor with an empty directory under the same node id, because it would lack \
                      what it acknowledged. The cluster works without this node while a majority of the members runs. Put \
                      the newest data directory of this node back; keep the damaged one for an examination";

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
    /// It is another node's or another cluster's; or it was made for another component, before directories held theirs.
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
    #[error("{} is missing; {DAMAGE}", path.display())]
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
    /// An earlier build of Conclave made the directory, with other files.
    #[error(
        "{} has format version {found}, and this version of Conclave reads version {known} only; nothing is lost: run \
         the build that made the directory, or start with a new one",
        path.display()
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// In the file.
        found: u16,
        /// In this program.
        known: u16,
    },
    /// A newer Conclave wrote a value.
    #[error(
        "{what} was written by a newer version of Conclave ({reason}); nothing is lost: run that version, or a later one"
    )]
    Newer {
        /// The log index, or the record.
        what: String,
        /// How that shows.
        reason: String,
    },
    /// It is not what was written.
    #[error("{what} is damaged ({reason}); {DAMAGE}")]
    Damaged {
        /// The file, the log index, or the record.
        what: String,
        /// Which check failed.
        reason: String,
    },
    /// A snapshot is not what was written.
    #[error("snapshot {} is damaged ({reason}); it is never skipped, because the log before it is gone: {DAMAGE}", path.display())]
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
    #[error("{action} {}: {source}{}", path.display(), advice(source))]
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

    /// A value that cannot be used.
    pub(super) fn unusable(what: impl Into<String>, reason: Reason) -> Self {
        let what = what.into();
        match reason {
            Reason::Damaged(reason) => Self::Damaged { what, reason },
            Reason::Newer(reason) => Self::Newer { what, reason },
        }
    }

    /// A failure to read `what`, which lies at `path`: of the operating system, or because of damage.
    pub(super) fn unreadable(what: impl Into<String>, path: &Path, error: io::Error) -> Self {
        if is_of_the_system(&error) {
            return Self::Io {
                action: "cannot open or read",
                path: path.to_owned(),
                source: error,
            };
        }
        Self::damaged(what, error)
    }
}

/// Why a value cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// It is not what was written.
    Damaged(String),
    /// This version does not know its kind.
    Newer(String),
}

impl From<&str> for Reason {
    fn from(reason: &str) -> Self {
        Self::Damaged(reason.to_owned())
    }
}

impl From<String> for Reason {
    fn from(reason: String) -> Self {
        Self::Damaged(reason)
    }
}

impl From<Malformed> for Reason {
    fn from(error: Malformed) -> Self {
        match error.is_newer() {
            true => Self::Newer(error.to_string()),
            false => Self::Damaged(error.to_string()),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Damaged(reason) | Self::Newer(reason)) = self;
        f.write_str(reason)
    }
}

/// Whether an error came from the operating system. sled copies errors as text, and wraps them in panics.
fn is_of_the_system(error: &io::Error) -> bool {
    let text = || error.to_string();
    error.raw_os_error().is_some()
        || !matches!(
            error.kind(),
            io::ErrorKind::InvalidData
                | io::ErrorKind::InvalidInput
                | io::ErrorKind::UnexpectedEof
                | io::ErrorKind::NotFound
                | io::ErrorKind::Other
        )
        || text().contains("Os { code: ")
        || text().contains("(os error ")
}

/// The advice about an error of the operating system.
fn advice(error: &io::Error) -> &'static str {
    let text = error.to_string();
    let is = |kind: io::ErrorKind, name: &str| {
        error.kind() == kind || text.contains(&format!("kind: {name}"))
    };
    if is(io::ErrorKind::StorageFull, "StorageFull")
        || is(io::ErrorKind::QuotaExceeded, "QuotaExceeded")
    {
        return ": nothing is lost. Make room and start the node again; to open its log it needs some 64 MiB";
    }
    if is(io::ErrorKind::PermissionDenied, "PermissionDenied") {
        return ": nothing is lost. Give the data directory to the user that the node runs as";
    }
    if is(io::ErrorKind::ReadOnlyFilesystem, "ReadOnlyFilesystem") {
        return ": nothing is lost. Mount the file system for writing, and look into the kernel's log for why it is not";
    }
    match error.raw_os_error() {
        Some(EMFILE | ENFILE) => ": nothing is lost. Raise the limit of open files",
        Some(EIO) => {
            ": the device reports an error. Look into the kernel's log before the node is started again"
        }
        _ => "",
    }
}

const EIO: i32 = rustix::io::Errno::IO.raw_os_error();
const ENFILE: i32 = rustix::io::Errno::NFILE.raw_os_error();
const EMFILE: i32 = rustix::io::Errno::MFILE.raw_os_error();

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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// The errors of the operating system as sled gives them, and damage.
    #[test]
    fn only_damage_is_called_damage() {
        let os = |code| io::Error::from_raw_os_error(code);
        let full = || os(rustix::io::Errno::NOSPC.raw_os_error());
        let as_text = |error: io::Error| io::Error::new(error.kind(), format!("{error:?}"));
        let panicked = |error: io::Error| {
            let reason = format!("sled gave up: called unwrap on {error:?}");
            io::Error::new(io::ErrorKind::InvalidData, reason)
        };
        let path = Path::new("/data/log");
        for error in [full(), as_text(full()), panicked(full())] {
            let error = Error::unreadable("the log", path, error).to_string();
            assert!(error.contains("/data/log") && error.contains("Make room"), "{error}");
            assert!(!error.contains("damaged"), "{error}");
        }
        for (error, advice) in [
            (os(rustix::io::Errno::ACCESS.raw_os_error()), "user that the node runs as"),
            (os(EMFILE), "open files"),
            (os(EIO), "kernel's log"),
            (os(rustix::io::Errno::ROFS.raw_os_error()), "for writing"),
        ] {
            let error = Error::unreadable("the log", path, error).to_string();
            assert!(error.contains(advice) && !error.contains("damaged"), "{error}");
        }
        let cut = io::Error::from(io::ErrorKind::UnexpectedEof);
        let changed = io::Error::new(io::ErrorKind::InvalidData, "corruption encountered");
        for error in [cut, changed] {
            let error = Error::unreadable("the log", path, error).to_string();
            assert!(
                error.contains("the log is damaged") && error.contains("newest data"),
                "{error}"
            );
        }
    }
}
