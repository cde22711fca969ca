//! Backups on their way from a node to an operator.

use std::fmt;

use bytes::Bytes;

/// A key that wraps the data key of a backup, instead of the node's master key.
#[derive(Clone, PartialEq, Eq)]
pub struct WrappingKey {
    /// The key.
    pub key: [u8; 32],
    /// The parameters by which the key was derived from a passphrase. `None`: it is from a file.
    pub stretch: Option<Stretch>,
}

/// The parameters of Argon2id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Random bytes.
    pub salt: [u8; 16],
    /// The memory in KiB.
    pub memory_kib: u32,
    /// The number of passes over the memory.
    pub passes: u32,
    /// The degree of parallelism.
    pub lanes: u32,
}

impl fmt::Debug for WrappingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WrappingKey").field("stretch", &self.stretch).finish_non_exhaustive()
    }
}

/// A piece of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupPiece {
    /// The next bytes of the file.
    Bytes(Bytes),
    /// The end, with the size of the file and the BLAKE3 hash of its bytes.
    End {
        /// The size in bytes.
        bytes: u64,
        /// The hash.
        blake3: [u8; 32],
    },
}
