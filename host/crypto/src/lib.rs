//! Keys, and the envelope in which everything that leaves memory is sealed.
//!
//! A *master key*, which the operator holds, wraps the *data keys* of a node; data keys seal records.
//! The data keys of a directory are random and its own, so that two nodes never share one.
//!
//! # Contract
//!
//! - [`seal`] gives an envelope that only [`open`] with the same data key and the same [`Aad`] gives
//!   back: a changed byte, another place, another key of the same place, another node or cluster are
//!   all refused, and the refusal does not say which it was.
//! - **A nonce never repeats under a key.** It is a random 64-bit prefix, drawn whenever a data key
//!   comes into memory, and a 32-bit counter. A restart, a crash, even a disk rolled back to an older
//!   image therefore continue with fresh nonces: nothing on disk has to be true for that. Two of n
//!   openings share a prefix with probability n²/2⁶⁵: for a million openings one in 2²⁵.
//! - Uses of a key are counted across restarts, by reservations that are on disk before they are
//!   used, and a key seals at most [`USES_MAX`] times; whoever holds the keyring rotates it at
//!   [`ROTATE_AFTER_USES`].
//! - Keys are wiped from memory when dropped and never printed.
//!
//! # Caveats
//!
//! Lengths are not hidden. Plaintext buffers are not wiped. This component does no I/O but for reading
//! the master key, and knows nothing of the rest of Conclave.

mod envelope;
mod keyring;
mod master_key;
mod wrapping;

pub use envelope::{Aad, OVERHEAD_BYTES, VERSION as ENVELOPE_VERSION, key_id_of, open, seal};
pub use keyring::{KeyId, KeyStatus, Keyring, ROTATE_AFTER_USES, USES_MAX};
pub use master_key::MasterKey;

/// What can go wrong with keys and envelopes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The master key cannot be had.
    #[error("master key from {source_name}: {reason}")]
    MasterKey {
        /// The file or the environment variable.
        source_name: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The keyring was wrapped by another master key.
    #[error(
        "wrong master key: the keyring is wrapped by the master key named {wrapped_by}, and the one \
         given is named {given}"
    )]
    WrongMasterKey {
        /// The name of the key that is needed.
        wrapped_by: String,
        /// The name of the key at hand.
        given: String,
    },
    /// The keyring is not what was written.
    #[error("the keyring is damaged or belongs to another node: {reason}")]
    Keyring {
        /// Which check failed.
        reason: &'static str,
    },
    /// The keyring was written by a newer version.
    #[error(
        "the keyring has format version {found}, and this version of Conclave knows up to {known}"
    )]
    KeyringVersion {
        /// In the file.
        found: u16,
        /// In this program.
        known: u16,
    },
    /// An envelope does not open.
    #[error("{place}: does not open: it was changed, or was sealed elsewhere")]
    Refused {
        /// Where it was found.
        place: String,
    },
    /// An envelope names a data key that the keyring lacks.
    #[error("{place}: sealed under data key {key_id}, which the keyring does not hold")]
    UnknownKey {
        /// Where it was found.
        place: String,
        /// The key that it names.
        key_id: KeyId,
    },
    /// The uses reserved for the active key are spent: reserve more, or rotate.
    #[error("the uses reserved for data key {key_id} are spent")]
    ReservationSpent {
        /// The active key.
        key_id: KeyId,
    },
    /// The key cannot be retired.
    #[error("data key {key_id} {reason}")]
    Retire {
        /// Which.
        key_id: KeyId,
        /// Why not.
        reason: &'static str,
    },
    /// The operating system gives no random bytes.
    #[error("no random bytes from the operating system: {0}")]
    Random(getrandom::Error),
    /// The cipher refuses to seal: the plaintext is beyond AES-GCM's limit.
    #[error("{place}: too large to seal")]
    TooLarge {
        /// Where it was to go.
        place: String,
    },
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(Error::Random)?;
    Ok(bytes)
}
