//! Errors of a data directory.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use conclave_crypto as crypto;
use conclave_proto::convert::Malformed;

/// The advice about damage. A node must not continue with less than it has acknowledged: with a
/// lost vote it could elect a second leader in a term, and with lost entries the log could lack
/// committed entries (Raft thesis, section 3.8).
const DAMAGE: &str = "do not run this node with this data directory, nor with an empty one under the same node id, \
                      because the node would lack data that it has acknowledged. The cluster works without this \
                      node while a majority of the members runs. Put the newest data directory of this node back; \
                      keep the damaged one for analysis";

/// The reason why storage rejects a data directory or an operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process has the directory open.
    #[error("data directory {} is in use by another process{}", dir.display(), pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// The other process's id, if its lock file contains one.
        pid: Option<u32>,
    },
    /// The directory belongs to another node or to another cluster.
    #[error(
        "data directory {} belongs to {what} {found}, but this node is configured for {what} {expected}: correct the \
         data directory or the configuration",
        dir.display()
    )]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// The field that differs.
        what: &'static str,
        /// The value in the directory.
        found: String,
        /// The value in the configuration.
        expected: String,
    },
    /// The directory has files, but no identity file.
    #[error(
        "data directory {} has no identity file, but is not empty ({found} is in it): use an empty directory, or \
         restore the identity file",
        dir.display()
    )]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
        /// One of the files.
        found: String,
    },
    /// The directory is not a Conclave data directory.
    #[error("{} is not a Conclave data directory: it has no identity file", dir.display())]
    NoNode {
        /// The directory.
        dir: PathBuf,
    },
    /// The caller stopped the copying.
    #[error("the copying of {} was stopped", dir.display())]
    Stopped {
        /// The directory.
        dir: PathBuf,
    },
    /// A file or directory is missing.
    #[error("{} is missing; {DAMAGE}", path.display())]
    Missing {
        /// The missing file or directory.
        path: PathBuf,
    },
    /// A newer version of Conclave wrote the file.
    #[error(
        "{} has format version {found}; this version of Conclave reads versions up to {known}. Run a newer version \
         of Conclave",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: u16,
        /// The newest version that this program reads.
        known: u16,
    },
    /// An earlier version of Conclave created the directory, in an incompatible format.
    #[error(
        "{} has format version {found}, but this version of Conclave reads only version {known}; nothing is \
         lost: run the version that created the directory, or start with a new directory",
        path.display()
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: u16,
        /// The version that this program reads.
        known: u16,
    },
    /// A newer version of Conclave wrote a value.
    #[error(
        "{what} was written by a newer version of Conclave ({reason}); nothing is lost: run that version, or a later one"
    )]
    Newer {
        /// The log index, or the name of the value.
        what: String,
        /// The evidence for a newer version.
        reason: String,
    },
    /// A file or value differs from the written one.
    #[error("{what} is damaged ({reason}); {DAMAGE}")]
    Damaged {
        /// The file, the log index, or the name of the value.
        what: String,
        /// The failed check.
        reason: String,
    },
    /// A snapshot file differs from the written one.
    #[error(
        "snapshot {} is damaged ({reason}); no older snapshot can replace it, because the log before it was purged: \
         {DAMAGE}",
        path.display()
    )]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// The failed check.
        reason: String,
    },
    /// The keyring cannot be opened, changed or used.
    #[error("{}: {source}", path.display())]
    Keys {
        /// The keyring's file.
        path: PathBuf,
        /// The cause.
        source: crypto::Error,
    },
    /// An earlier write failed, and the store rejects every further operation.
    #[error("the store rejects all operations because of an earlier failure: {0}")]
    Poisoned(String),
    /// The operating system returned an error.
    #[error("{action} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// The failed action.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
}

impl Error {
    /// Returns a closure for `map_err` that adds the action and the path.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(super) fn damaged(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Damaged { what: what.into(), reason: reason.to_string() }
    }

    /// Returns the error for a value that cannot be used.
    pub(super) fn unusable(what: impl Into<String>, reason: Reason) -> Self {
        let what = what.into();
        match reason {
            Reason::Damaged(reason) => Self::Damaged { what, reason },
            Reason::Newer(reason) => Self::Newer { what, reason },
        }
    }

    /// Returns the error for a failure to read `what` from `path`: an error of the operating
    /// system, or damage.
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

/// The reason why a value cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The value is damaged.
    Damaged(String),
    /// This version does not know the kind of value.
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

/// Whether the operating system returned the error. sled copies such errors as text, and wraps them
/// in panics.
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

/// Returns the advice about an error of the operating system.
fn advice(error: &io::Error) -> &'static str {
    let text = error.to_string();
    let is = |kind: io::ErrorKind, name: &str| {
        error.kind() == kind || text.contains(&format!("kind: {name}"))
    };
    if is(io::ErrorKind::StorageFull, "StorageFull")
        || is(io::ErrorKind::QuotaExceeded, "QuotaExceeded")
    {
        return ": nothing is lost. Make room and start the node again; it needs about 64 MiB to open its log";
    }
    if is(io::ErrorKind::PermissionDenied, "PermissionDenied") {
        return ": nothing is lost. Give the data directory to the user that the node runs as";
    }
    if is(io::ErrorKind::ReadOnlyFilesystem, "ReadOnlyFilesystem") {
        return ": nothing is lost. Mount the file system for writing; the kernel's log shows why it is read-only";
    }
    match error.raw_os_error() {
        Some(EMFILE | ENFILE) => ": nothing is lost. Raise the limit of open files",
        Some(EIO) => {
            ": the device reported an error. Check the kernel's log before you start the node again"
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

    /// The errors of the operating system in the forms that sled returns, and real damage.
    #[test]
    fn only_damage_is_called_damage() {
        let os = |code| io::Error::from_raw_os_error(code);
        let full = || os(rustix::io::Errno::NOSPC.raw_os_error());
        let as_text = |error: io::Error| io::Error::new(error.kind(), format!("{error:?}"));
        let panicked = |error: io::Error| {
            let reason = format!("sled panicked: called unwrap on {error:?}");
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
