//! Backup files: one snapshot of a cluster, sealed under a key of its own.
//!
//! # Contract
//!
//! - A backup is complete in itself: host state, components and state at one index. It depends on no
//!   data directory.
//! - A data key is drawn for each backup. It seals everything but the preamble, and is wrapped by the
//!   master key of the node that took the backup, by another key, or by a key from a passphrase.
//! - Every record is bound to the whole preamble, its kind and its sequence number, and the end to
//!   the counts. A truncated, changed or reordered file, and records of two files, are errors that
//!   name the file. A reader returns the end only after the last byte of the file.
//! - The preamble is readable without a key. Its checksum detects accidents. With the key it is
//!   authenticated, because the data key and all records are bound to it.
//!
//! # Caveats
//!
//! All calls block. A backup is written and read from the beginning to the end, so both sides can be
//! a stream. Chunks that were read before a later record turned out to be damaged are authentic, but
//! are not a backup: use them only after the end.
//!
//! `docs/disk-format.md` describes the format.

mod format;
mod reader;
mod sealing;
#[cfg(test)]
mod tests;

use conclave_crypto as crypto;
use conclave_crypto::{MasterKey, Stretch};
use conclave_types::ComponentId;

pub use reader::{Backup, BackupReader, Frames};
pub use sealing::SealedBackup;

/// The description of a backup, readable without a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupInfo {
    /// The cluster that the backup was taken from.
    pub cluster_id: String,
    /// The last log index that the backup covers.
    pub index: u64,
    /// The active component.
    pub component_id: ComponentId,
    /// The component's name.
    pub component_name: String,
    /// The component's version.
    pub component_version: String,
    /// Milliseconds since the Unix epoch, by the clock of the node that took the backup.
    pub created_ms: u64,
    /// The version of Conclave that wrote the file.
    pub version: String,
    /// A random id.
    pub backup_id: [u8; 16],
    /// The number of chunks.
    pub chunks: u64,
    /// The number of bytes in the chunks.
    pub bytes: u64,
    /// The kind of key that wraps the data key.
    pub wrapped_by: WrappedBy,
}

/// The kind of key that wraps a backup's data key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrappedBy {
    /// The master key of the node that took the backup.
    MasterKey,
    /// A key that the operator gave.
    KeyFile,
    /// A key from a passphrase.
    Passphrase(Stretch),
}

/// The key under which a backup is taken.
#[derive(Clone, Debug)]
pub struct BackupKey {
    /// The key that wraps the data key.
    pub key: MasterKey,
    /// Its kind.
    pub wrapped_by: WrappedBy,
}

/// The description of the component in a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupAbout {
    /// The component's name.
    pub name: String,
    /// The component's version.
    pub version: String,
}

/// The reason why a backup cannot be taken or read. `name` is the file, or `stdin`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The file is not a backup.
    #[error("{name} is not a Conclave backup: it does not start with the magic bytes of a backup")]
    Foreign {
        /// The file.
        name: String,
    },
    /// A newer version of Conclave wrote the file.
    #[error(
        "backup {name} has format version {found}; this version of Conclave reads versions up to {known}. Run a \
         newer version of Conclave"
    )]
    Version {
        /// The file.
        name: String,
        /// The version in the file.
        found: u16,
        /// The newest version that this program reads.
        known: u16,
    },
    /// The file ends too early.
    #[error(
        "backup {name} is truncated: it ends after {bytes} bytes, in the middle of a record. Copy it again, or use \
         another backup"
    )]
    Truncated {
        /// The file.
        name: String,
        /// Its size.
        bytes: u64,
    },
    /// The file differs from the written one.
    #[error("backup {name} is damaged ({reason}). Copy it again, or use another backup")]
    Damaged {
        /// The file.
        name: String,
        /// The failed check.
        reason: String,
    },
    /// The given key does not wrap the data key.
    #[error(
        "wrong key for backup {name}: its data key is wrapped by the key with id {wrapped_by}, but the given key has \
         id {given}. Give {}",
        advice(*kind)
    )]
    WrongKey {
        /// The file.
        name: String,
        /// The id of the key that wraps the data key.
        wrapped_by: String,
        /// The id of the given key.
        given: String,
        /// The kind of the wrapping key.
        kind: WrappedBy,
    },
    /// The file cannot be read.
    #[error("cannot read backup {name}: {source}")]
    Io {
        /// The file.
        name: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The snapshot that the backup is made from cannot be read.
    #[error(transparent)]
    Snapshot(#[from] super::Error),
    /// The data cannot be sealed.
    #[error("the backup cannot be sealed: {0}")]
    Seal(#[from] crypto::Error),
}

/// Returns the advice for a wrong key.
fn advice(kind: WrappedBy) -> &'static str {
    match kind {
        WrappedBy::MasterKey => "the master key of the cluster from which the backup was taken",
        WrappedBy::KeyFile => "the key file with which the backup was taken",
        WrappedBy::Passphrase(_) => "the passphrase with which the backup was taken",
    }
}
