//! Errors of a data directory.

use std::{
    borrow::Cow,
    error::Error as StdError,
    io,
    iter::successors,
    path::{Path, PathBuf},
    str::Utf8Error,
    sync::Arc,
};

use conclave_crypto as crypto;
use conclave_proto::convert::Malformed;
use conclave_types::error::chain;

/// The advice about damage. A node must not continue with less than it has acknowledged: with a
/// lost vote it could elect a second leader in a term, and with lost entries the log could lack
/// committed entries (Raft thesis, section 3.8).
const DAMAGE: &str = "do not run this node with this data directory, nor with an empty one under the same node id, \
                      because the node would lack data that it has acknowledged. The cluster works without this \
                      node while a majority of the members runs. Put the newest data directory of this node back; \
                      keep the damaged one for analysis";

/// The reason why storage rejects a data directory or an operation. The texts end with advice, and
/// therefore show their causes before it.
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
    /// The restore of a backup into the directory was interrupted.
    #[error(
        "the restore of a backup into data directory {} was not completed: empty the directory, and run \
         `conclave restore` again",
        dir.display()
    )]
    Unrestored {
        /// The directory.
        dir: PathBuf,
    },
    /// A backup cannot be restored into a directory that has files.
    #[error(
        "data directory {} is not empty ({found} is in it): restore into a new or empty directory, because a restore \
         never replaces data",
        dir.display()
    )]
    Occupied {
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
        "{what} was written by a newer version of Conclave ({}); nothing is lost: run that version, or a later one",
        chain(reason)
    )]
    Newer {
        /// The log index, or the name of the value.
        what: String,
        /// The evidence for a newer version.
        #[source]
        reason: Reason,
    },
    /// A file or value differs from the written one.
    #[error("{what} is damaged ({}); {DAMAGE}", chain(reason))]
    Damaged {
        /// The file, the log index, or the name of the value.
        what: String,
        /// The failed check.
        #[source]
        reason: Reason,
    },
    /// A snapshot file differs from the written one.
    #[error(
        "snapshot {} is damaged ({}); no older snapshot can replace it, because the log before it was purged: \
         {DAMAGE}",
        path.display(), chain(reason)
    )]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// The failed check.
        #[source]
        reason: Reason,
    },
    /// The keyring cannot be opened, changed or used.
    #[error("{}: {}", path.display(), chain(source))]
    Keys {
        /// The keyring's file.
        path: PathBuf,
        /// The cause.
        source: crypto::Error,
    },
    /// An earlier write failed, and the store rejects every further operation.
    #[error("the store rejects all operations because of an earlier failure: {}", chain(.0))]
    Poisoned(#[source] Arc<io::Error>),
    /// The operating system returned an error.
    #[error("{action} {}: {}{}", path.display(), chain(source), advice(source))]
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

    pub(super) fn damaged(what: impl Into<String>, reason: impl Into<Reason>) -> Self {
        Self::Damaged { what: what.into(), reason: reason.into() }
    }

    /// Returns the error for a value that cannot be used: damage, or a value of a newer version.
    pub(super) fn unusable(what: impl Into<String>, reason: impl Into<Reason>) -> Self {
        let (what, reason) = (what.into(), reason.into());
        match reason.is_newer() {
            true => Self::Newer { what, reason },
            false => Self::Damaged { what, reason },
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

/// The reason why a file or a stored value cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// A check of this crate failed. The text is a clause, such as "it is too short".
    #[error("{0}")]
    Check(Cow<'static, str>),
    /// This version does not know the kind of the value.
    #[error("it is a value of unknown kind")]
    UnknownKind,
    /// The bytes are not protobuf.
    #[error("it does not decode")]
    Protobuf(#[from] prost::DecodeError),
    /// The message is not valid.
    #[error("it is not valid")]
    Malformed(#[from] Malformed),
    /// The text is not UTF-8.
    #[error("it is not UTF-8")]
    Utf8(#[from] Utf8Error),
    /// The bytes cannot be decrypted.
    #[error("it does not open")]
    Sealed(#[from] crypto::Error),
    /// The record at an offset of the file cannot be decrypted.
    #[error("the record at byte {at} does not open")]
    Record {
        /// The offset in bytes.
        at: u64,
        /// The cause.
        source: crypto::Error,
    },
    /// The bytes cannot be read.
    #[error("it cannot be read")]
    Read(#[from] io::Error),
}

impl Reason {
    /// Whether a newer version wrote the value, and nothing is damaged.
    fn is_newer(&self) -> bool {
        match self {
            Self::UnknownKind => true,
            Self::Malformed(malformed) => malformed.is_newer(),
            _ => false,
        }
    }
}

impl From<&'static str> for Reason {
    fn from(reason: &'static str) -> Self {
        Self::Check(reason.into())
    }
}

impl From<String> for Reason {
    fn from(reason: String) -> Self {
        Self::Check(reason.into())
    }
}

/// Returns the error of the operating system among an error and its causes.
fn os_error(error: &io::Error) -> Option<&io::Error> {
    successors(Some(error as &(dyn StdError + 'static)), |&error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .find(|error| error.raw_os_error().is_some())
}

/// Whether the operating system returned the error.
fn is_of_the_system(error: &io::Error) -> bool {
    os_error(error).is_some()
        || !matches!(
            error.kind(),
            io::ErrorKind::InvalidData
                | io::ErrorKind::InvalidInput
                | io::ErrorKind::UnexpectedEof
                | io::ErrorKind::NotFound
                | io::ErrorKind::Other
        )
}

/// Returns the advice about an error of the operating system.
fn advice(error: &io::Error) -> &'static str {
    let error = os_error(error).unwrap_or(error);
    match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, _) => {
            ": nothing is lost. Make room and start the node again; it needs about 64 MiB to open its log"
        }
        (io::ErrorKind::PermissionDenied, _) => {
            ": nothing is lost. Give the data directory to the user that the node runs as"
        }
        (io::ErrorKind::ReadOnlyFilesystem, _) => {
            ": nothing is lost. Mount the file system for writing; the kernel's log shows why it is read-only"
        }
        (_, Some(EMFILE | ENFILE)) => ": nothing is lost. Raise the limit of open files",
        (_, Some(EIO)) => {
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

    fn os(errno: rustix::io::Errno) -> io::Error {
        io::Error::from_raw_os_error(errno.raw_os_error())
    }

    #[test]
    fn only_damage_is_called_damage() {
        let path = Path::new("/data/log");
        let inner = Error::io("cannot sync", path)(os(rustix::io::Errno::IO));
        for (error, advice) in [
            (os(rustix::io::Errno::NOSPC), "Make room"),
            (os(rustix::io::Errno::ACCESS), "user that the node runs as"),
            (os(rustix::io::Errno::MFILE), "open files"),
            (os(rustix::io::Errno::IO), "kernel's log"),
            (os(rustix::io::Errno::ROFS), "for writing"),
            (io::Error::new(io::ErrorKind::InvalidData, inner), "kernel's log"),
            (io::ErrorKind::StorageFull.into(), "Make room"),
        ] {
            let error = Error::unreadable("the log", path, error).to_string();
            assert!(error.contains(advice) && !error.contains("damaged"), "{error}");
            assert!(error.contains("/data/log"), "{error}");
        }
        let cut = io::Error::from(io::ErrorKind::UnexpectedEof);
        let changed = io::Error::new(io::ErrorKind::InvalidData, "corruption encountered");
        let quoting = io::Error::new(io::ErrorKind::InvalidData, "a key named (os error 28)");
        for error in [cut, changed, quoting] {
            let error = Error::unreadable("the log", path, error).to_string();
            assert!(
                error.contains("the log is damaged") && error.contains("newest data"),
                "{error}"
            );
        }
    }

    #[test]
    fn causes_are_kept_as_values() {
        let refused = crypto::Error::Refused { place: "log".into() };
        let error = Error::damaged("log entry 7", refused);
        assert!(
            error.to_string().contains("log entry 7 is damaged (it does not open: log: cannot")
        );
        let reason = error.source().unwrap().downcast_ref::<Reason>().unwrap();
        assert!(reason.source().unwrap().is::<crypto::Error>());
        // Through openraft, an error is passed as one of I/O.
        let error = io::Error::from(error);
        assert!(error.get_ref().unwrap().is::<Error>());
        assert!(error.get_ref().unwrap().source().unwrap().is::<Reason>());
        let poisoned = Error::Poisoned(Arc::new(os(rustix::io::Errno::NOSPC)));
        let cause = poisoned.source().unwrap().downcast_ref::<Arc<io::Error>>().unwrap();
        assert_eq!(cause.kind(), io::ErrorKind::StorageFull);
    }
}
