//! The file format of the keyring, wrapped by the master key.
//!
//! ```text
//! 0   8  magic "CNCLVKEY"
//! 8   2  version, 1
//! 10  8  the master key's id
//! 18 12  nonce, random
//! 30  4  n, the length of the rest
//! 34  n  sealed: active key id (4), count (4), then for each key:
//!        id (4), created, ms (8), uses reserved (8), key (32); and a tag of 16 bytes
//! ```
//! Numbers are big-endian. The first 34 bytes except the nonce, and the caller's associated data,
//! are authenticated together with the body. The nonce is random because several nodes may share a
//! master key. A keyring is written once per start and once per million seals, so 2³² writes under
//! one master key are out of reach.

use aes_gcm::{Aes256Gcm, KeyInit};
use zeroize::{Zeroize, Zeroizing};

use super::{
    Aad, Error, KeyId, Keyring, MasterKey,
    envelope::{TAG_BYTES, decrypt, encrypt},
    keyring::{NONCE_BYTES, StoredKey},
    random,
};

const MAGIC: &[u8; 8] = b"CNCLVKEY";
const VERSION: u16 = 1;
const NONCE_AT: usize = 18;
const HEADER_BYTES: usize = NONCE_AT + NONCE_BYTES + 4;
const KEY_BYTES: usize = 4 + 8 + 8 + 32;

impl Keyring {
    /// Encodes and wraps the keyring. `aad` binds the file to its node.
    pub fn wrap(&self, master_key: &MasterKey, aad: &Aad<'_>) -> Result<Vec<u8>, Error> {
        let keys = self.stored();
        let body_bytes = 8 + keys.len() * KEY_BYTES;
        let mut file = Vec::with_capacity(HEADER_BYTES + body_bytes + TAG_BYTES);
        file.extend_from_slice(MAGIC);
        file.extend_from_slice(&VERSION.to_be_bytes());
        file.extend_from_slice(&master_key.id_bytes());
        let nonce = random::<NONCE_BYTES>()?;
        file.extend_from_slice(&nonce);
        let too_large = || Error::Keyring { reason: "too many keys" };
        let length = u32::try_from(body_bytes + TAG_BYTES).map_err(|_| too_large())?;
        file.extend_from_slice(&length.to_be_bytes());
        file.extend_from_slice(&self.active().0.to_be_bytes());
        let count = u32::try_from(keys.len()).map_err(|_| too_large())?;
        file.extend_from_slice(&count.to_be_bytes());
        for StoredKey { id, created_ms, uses_reserved, bytes } in keys {
            file.extend_from_slice(&id.0.to_be_bytes());
            file.extend_from_slice(&created_ms.to_be_bytes());
            file.extend_from_slice(&uses_reserved.to_be_bytes());
            file.extend_from_slice(&*bytes);
        }
        let (header, body) = file.split_at_mut(HEADER_BYTES);
        let cipher = Aes256Gcm::new(master_key.bytes().into());
        match encrypt(&cipher, &nonce, &aad.encode(&authenticated(header)), body) {
            Some(tag) => file.extend_from_slice(&tag),
            None => {
                file.zeroize();
                return Err(too_large());
            }
        }
        Ok(file)
    }

    /// Returns the id of the master key that wraps a keyring. `None`: the bytes are not a keyring.
    /// The id is not authenticated.
    pub fn wrapped_by(file: &[u8]) -> Option<String> {
        file.get(..HEADER_BYTES).filter(|header| header.starts_with(MAGIC))?;
        file.get(10..NONCE_AT).map(hex::encode)
    }

    /// Opens a wrapped keyring.
    pub fn unwrap(file: &[u8], master_key: &MasterKey, aad: &Aad<'_>) -> Result<Self, Error> {
        let damaged = |reason| Error::Keyring { reason };
        let (header, body) =
            file.split_at_checked(HEADER_BYTES).ok_or(damaged("it is too short"))?;
        let mut fields = Fields(header);
        if fields.take::<8>()? != *MAGIC {
            return Err(damaged("it does not start with the magic bytes of a keyring"));
        }
        let version = u16::from_be_bytes(fields.take()?);
        if version > VERSION {
            return Err(Error::KeyringVersion { found: version, known: VERSION });
        }
        let wrapped_by = fields.take::<8>()?;
        let nonce = fields.take::<NONCE_BYTES>()?;
        if u32::from_be_bytes(fields.take()?) as usize != body.len() {
            return Err(damaged("its length differs from its length field"));
        }
        let (ciphertext, tag) = body
            .len()
            .checked_sub(TAG_BYTES)
            .and_then(|length| body.split_at_checked(length))
            .ok_or(damaged("it is too short"))?;
        let mut plaintext = Zeroizing::new(ciphertext.to_vec());
        let cipher = Aes256Gcm::new(master_key.bytes().into());
        let aad_bytes = aad.encode(&authenticated(header));
        if decrypt(&cipher, &nonce, &aad_bytes, &mut plaintext, tag).is_none() {
            let (wrapped_by, given) = (hex::encode(wrapped_by), master_key.id());
            return Err(if wrapped_by == given {
                damaged("decryption with the right master key failed")
            } else {
                Error::WrongMasterKey { wrapped_by, given }
            });
        }
        Self::from_body(&plaintext)
    }

    fn from_body(body: &[u8]) -> Result<Self, Error> {
        let mut fields = Fields(body);
        let active = KeyId(u32::from_be_bytes(fields.take()?));
        let count = u32::from_be_bytes(fields.take()?) as usize;
        if fields.0.len() != count.saturating_mul(KEY_BYTES) {
            return Err(Error::Keyring { reason: "its length does not match its number of keys" });
        }
        let mut keys = Vec::with_capacity(count);
        for _ in 0..count {
            keys.push(StoredKey {
                id: KeyId(u32::from_be_bytes(fields.take()?)),
                created_ms: u64::from_be_bytes(fields.take()?),
                uses_reserved: u64::from_be_bytes(fields.take()?),
                bytes: Zeroizing::new(fields.take()?),
            });
        }
        Self::from_stored(keys, active)
    }
}

/// The header without the nonce, because the cipher authenticates the nonce.
fn authenticated(header: &[u8]) -> Vec<u8> {
    [&header[..NONCE_AT], &header[NONCE_AT + NONCE_BYTES..]].concat()
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (field, rest) =
            self.0.split_first_chunk::<N>().ok_or(Error::Keyring { reason: "it is too short" })?;
        self.0 = rest;
        Ok(*field)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const AAD: Aad<'_> = Aad { cluster_id: "c", node_id: 1, place: "keyring", key: b"" };

    fn master(byte: u8) -> MasterKey {
        MasterKey::from_bytes([byte, 1, 2].repeat(11)[..32].try_into().unwrap())
    }

    #[test]
    fn a_keyring_comes_back_and_its_reservation_counts_as_used() {
        let ring = Keyring::generate().unwrap().reserve(100).install().unwrap().reserve(50);
        let file = ring.wrap(&master(9), &AAD).unwrap();
        let back = Keyring::unwrap(&file, &master(9), &AAD).unwrap();
        assert_eq!(back.active(), KeyId(2));
        let uses: Vec<_> = back.status().iter().map(|key| key.uses).collect();
        assert_eq!(uses, [100, 50]);
    }

    #[test]
    fn another_master_key_is_named_and_any_change_is_refused() {
        let ring = Keyring::generate().unwrap();
        let file = ring.wrap(&master(9), &AAD).unwrap();
        assert!(matches!(
            Keyring::unwrap(&file, &master(8), &AAD),
            Err(Error::WrongMasterKey { .. })
        ));
        for at in 0..file.len() {
            let mut changed = file.clone();
            changed[at] ^= 0x10;
            assert!(Keyring::unwrap(&changed, &master(9), &AAD).is_err(), "byte {at}");
            assert!(Keyring::unwrap(&file[..at], &master(9), &AAD).is_err(), "cut at {at}");
        }
        let elsewhere = Aad { node_id: 2, ..AAD };
        assert!(Keyring::unwrap(&file, &master(9), &elsewhere).is_err());
    }

    /// The golden keyring: every later version must read the file that version 1 wrote.
    #[test]
    fn the_format_is_version_1() {
        let file = hex::decode(include_str!("golden_keyring.hex").trim()).unwrap();
        let ring = Keyring::unwrap(&file, &master(9), &AAD).unwrap();
        let key = ring.stored().next().unwrap();
        assert_eq!((key.id, key.uses_reserved, *key.bytes), (KeyId(7), 3, [0x11; 32]));
    }

    #[test]
    #[ignore = "writes the golden file; run when a new version of the format is made"]
    fn write_golden() {
        let ring = Keyring::for_tests(7, [0x11; 32], [0; 8]).reserve(3);
        let file = hex::encode(ring.wrap(&master(9), &AAD).unwrap());
        std::fs::write("src/golden_keyring.hex", file + "\n").unwrap();
    }
}
