//! Encryption of data at rest: the master key, the keyring, and the envelope around every stored value.
//!
//! The operator holds the *master key*. It wraps the *data keys* of a node, and data keys seal
//! stored values. Each data directory has random data keys of its own, so two nodes never share one.
//!
//! # Contract
//!
//! - [`seal`] returns an envelope. [`open`] opens it only with the same data key and the same
//!   [`Aad`]. It rejects a changed byte, another place, another key at the same place, another node
//!   and another cluster. The error does not say which check failed.
//! - **A nonce never repeats under a key.** It consists of a random 64-bit prefix, drawn each time a
//!   data key is loaded into memory, and a 32-bit counter. After a restart, a crash or a rollback of
//!   the disk to an older image, the nonces are therefore fresh. This relies on nothing stored on
//!   disk. Two of n loads share a prefix with probability n²/2⁶⁵: one in 2²⁵ for a million loads.
//! - Uses of a key are counted across restarts, by reservations that are on disk before they
//!   are used. A key seals at most [`USES_MAX`] times. The holder of the keyring rotates the
//!   key at [`ROTATE_AFTER_USES`].
//! - Keys are wiped from memory when dropped and never printed.
//!
//! # Caveats
//!
//! The length of the plaintext is not hidden. Plaintext buffers are not wiped. The only I/O of this
//! crate is reading the master key. It does not depend on the rest of Conclave.

mod envelope;
mod keyring;
mod master_key;
mod passphrase;
mod wrapping;

pub use envelope::{Aad, OVERHEAD_BYTES, VERSION as ENVELOPE_VERSION, key_id_of, open, seal};
pub use keyring::{KeyId, KeyStatus, Keyring, ROTATE_AFTER_USES, USES_MAX};
pub use master_key::{MasterKey, MasterKeyError};
pub use passphrase::{Passphrase, PassphraseError, Stretch};

/// Errors of keys and envelopes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The master key cannot be loaded.
    #[error("master key from {source_name}: {reason}")]
    MasterKey {
        /// The file or the environment variable.
        source_name: String,
        /// The cause, and the expected format.
        #[source]
        reason: MasterKeyError,
    },
    /// The keyring is wrapped by another master key.
    #[error(
        "wrong master key: the keyring is wrapped by the master key with id {wrapped_by}, but the given \
         key has id {given}. Configure the master key of this data directory"
    )]
    WrongMasterKey {
        /// The id of the key that wraps the keyring.
        wrapped_by: String,
        /// The id of the given key.
        given: String,
    },
    /// The keyring's bytes are damaged, or bound to another node.
    #[error("the keyring is damaged or belongs to another node: {reason}")]
    Keyring {
        /// The check that failed.
        reason: &'static str,
    },
    /// The keyring has a newer format version.
    #[error(
        "the keyring has format version {found}; this version of Conclave reads versions up to {known}. \
         Run a newer version of Conclave"
    )]
    KeyringVersion {
        /// The version in the file.
        found: u16,
        /// The newest version that this program reads.
        known: u16,
    },
    /// The passphrase cannot be loaded, or its parameters exceed the limits.
    #[error("passphrase from {source_name}: {reason}")]
    Passphrase {
        /// The file of the passphrase, or the file with the parameters.
        source_name: String,
        /// The cause.
        #[source]
        reason: PassphraseError,
    },
    /// An envelope failed authentication.
    #[error(
        "{place}: cannot be decrypted: the data was changed, or was sealed for another place, node \
         or cluster"
    )]
    Refused {
        /// The place that the envelope was read from.
        place: String,
    },
    /// An envelope names a data key that the keyring lacks.
    #[error("{place}: sealed under data key {key_id}, which is not in the keyring")]
    UnknownKey {
        /// The place that the envelope was read from.
        place: String,
        /// The key id in the envelope.
        key_id: KeyId,
    },
    /// The reserved uses of the active key are used up. Reserve more, or rotate the key.
    #[error("the uses reserved for data key {key_id} are used up")]
    ReservationSpent {
        /// The active key.
        key_id: KeyId,
    },
    /// The key cannot be retired.
    #[error("data key {key_id} {reason}")]
    Retire {
        /// The key.
        key_id: KeyId,
        /// The reason, as a predicate.
        reason: &'static str,
    },
    /// The operating system returned no random bytes.
    #[error("no random bytes from the operating system")]
    Random(#[source] getrandom::Error),
    /// The plaintext exceeds AES-GCM's limit, and the cipher rejects it.
    #[error("{place}: too large to seal")]
    TooLarge {
        /// The place that the envelope was meant for.
        place: String,
    },
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(Error::Random)?;
    Ok(bytes)
}
