//! The envelope: version, key id, nonce, ciphertext and tag.

use aes_gcm::{
    Aes256Gcm, Nonce, Tag,
    aead::{AeadInOut, consts::U12},
};

use super::{Error, KeyId, Keyring, keyring::NONCE_BYTES};

/// The envelope version that this program writes. It reads no other version.
pub const VERSION: u8 = 1;

pub(super) const TAG_BYTES: usize = 16;
/// The length of version, key id and nonce.
const HEADER_BYTES: usize = 1 + 4 + NONCE_BYTES;

/// The difference in length between an envelope and its plaintext.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES;

/// The associated data that an envelope is bound to. Opening with any other associated data fails.
#[derive(Clone, Copy, Debug)]
pub struct Aad<'a> {
    /// The cluster id.
    pub cluster_id: &'a str,
    /// The node id.
    pub node_id: u64,
    /// The tree or the kind of file.
    pub place: &'a str,
    /// The key in the tree, or the position in the file.
    pub key: &'a [u8],
}

impl Aad<'_> {
    /// Encodes each field behind its length, so that different fields never encode to the same bytes.
    pub(super) fn encode(&self, prefix: &[u8]) -> Vec<u8> {
        let node_id = self.node_id.to_be_bytes();
        let fields =
            [prefix, self.cluster_id.as_bytes(), &node_id, self.place.as_bytes(), self.key];
        let mut bytes = Vec::with_capacity(fields.iter().map(|field| field.len() + 8).sum());
        for field in fields {
            bytes.extend_from_slice(&(field.len() as u64).to_be_bytes());
            bytes.extend_from_slice(field);
        }
        bytes
    }
}

/// Seals `plaintext` under the active key.
pub fn seal(keyring: &Keyring, aad: &Aad<'_>, plaintext: &[u8]) -> Result<Vec<u8>, Error> {
    let (key, nonce) = keyring.claim()?;
    let mut out = Vec::with_capacity(plaintext.len() + OVERHEAD_BYTES);
    out.push(VERSION);
    out.extend_from_slice(&key.id().0.to_be_bytes());
    // The associated data does not repeat the nonce, because the cipher authenticates the nonce.
    let aad_bytes = aad.encode(&out);
    out.extend_from_slice(&nonce);
    out.extend_from_slice(plaintext);
    let tag = encrypt(key.cipher(), &nonce, &aad_bytes, &mut out[HEADER_BYTES..])
        .ok_or_else(|| Error::TooLarge { place: aad.place.to_owned() })?;
    out.extend_from_slice(&tag);
    Ok(out)
}

/// Opens an envelope that was sealed under any key of the keyring.
pub fn open(keyring: &Keyring, aad: &Aad<'_>, sealed: &[u8]) -> Result<Vec<u8>, Error> {
    let refused = || Error::Refused { place: aad.place.to_owned() };
    let (header, body) = sealed.split_at_checked(HEADER_BYTES).ok_or_else(refused)?;
    let (ciphertext, tag) = body
        .len()
        .checked_sub(TAG_BYTES)
        .and_then(|length| body.split_at_checked(length))
        .ok_or_else(refused)?;
    let key_id = key_id_of(sealed).ok_or_else(refused)?;
    let key = keyring
        .key(key_id)
        .ok_or_else(|| Error::UnknownKey { place: aad.place.to_owned(), key_id })?;
    let (prefix, nonce) = header.split_at(HEADER_BYTES - NONCE_BYTES);
    let mut plaintext = ciphertext.to_vec();
    decrypt(key.cipher(), nonce, &aad.encode(prefix), &mut plaintext, tag).ok_or_else(refused)?;
    Ok(plaintext)
}

/// Returns the key id in an envelope, or `None` if the bytes are not an envelope of a known
/// version. The key id is not authenticated.
pub fn key_id_of(sealed: &[u8]) -> Option<KeyId> {
    match sealed {
        [VERSION, a, b, c, d, ..] => Some(KeyId(u32::from_be_bytes([*a, *b, *c, *d]))),
        _ => None,
    }
}

pub(super) fn encrypt(
    cipher: &Aes256Gcm,
    nonce: &[u8; NONCE_BYTES],
    aad: &[u8],
    buffer: &mut [u8],
) -> Option<[u8; TAG_BYTES]> {
    let nonce = Nonce::<U12>::from(*nonce);
    cipher.encrypt_inout_detached(&nonce, aad, buffer.into()).ok().map(Into::into)
}

pub(super) fn decrypt(
    cipher: &Aes256Gcm,
    nonce: &[u8],
    aad: &[u8],
    buffer: &mut [u8],
    tag: &[u8],
) -> Option<()> {
    let nonce = Nonce::<U12>::try_from(nonce).ok()?;
    let tag = Tag::try_from(tag).ok()?;
    cipher.decrypt_inout_detached(&nonce, aad, buffer.into(), &tag).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
    use super::*;

    const AAD: Aad<'_> = Aad { cluster_id: "c", node_id: 1, place: "log", key: b"k" };

    fn ring() -> Keyring {
        Keyring::generate().unwrap().reserve(1 << 20)
    }

    #[test]
    fn what_was_sealed_opens_and_shows_no_plaintext() {
        let ring = ring();
        for length in [0, 1, 15, 16, 17, 4096] {
            let plaintext = vec![b'p'; length];
            let sealed = seal(&ring, &AAD, &plaintext).unwrap();
            assert_eq!(sealed.len(), length + OVERHEAD_BYTES);
            assert!(length < 16 || !sealed.windows(8).any(|bytes| bytes == b"pppppppp"));
            assert_eq!(open(&ring, &AAD, &sealed).unwrap(), plaintext);
        }
    }

    #[test]
    fn every_changed_or_missing_byte_is_refused() {
        let ring = ring();
        let sealed = seal(&ring, &AAD, b"payload").unwrap();
        for at in 0..sealed.len() {
            for bit in 0..8 {
                let mut changed = sealed.clone();
                changed[at] ^= 1 << bit;
                assert!(open(&ring, &AAD, &changed).is_err(), "byte {at}, bit {bit}");
            }
            assert!(open(&ring, &AAD, &sealed[..at]).is_err());
        }
    }

    #[test]
    fn an_envelope_is_bound_to_its_place() {
        let ring = ring();
        let sealed = seal(&ring, &AAD, b"payload").unwrap();
        for other in [
            Aad { cluster_id: "d", ..AAD },
            Aad { node_id: 2, ..AAD },
            Aad { place: "lo", key: b"gk", ..AAD },
            Aad { key: b"l", ..AAD },
            Aad { key: b"", ..AAD },
        ] {
            let Err(error) = open(&ring, &other, &sealed) else { panic!("opened as {other:?}") };
            assert!(matches!(error, Error::Refused { .. }));
        }
        assert!(matches!(
            open(&ring.install().unwrap().retire(ring.active()).unwrap(), &AAD, &sealed),
            Err(Error::UnknownKey { .. })
        ));
    }

    /// The golden envelope: every later version must open the bytes that version 1 wrote.
    #[test]
    fn the_format_is_version_1() {
        let ring = Keyring::for_tests(7, [0x11; 32], [0x22; 8]).reserve(1);
        let sealed = seal(&ring, &AAD, b"golden").unwrap();
        assert_eq!(hex::encode(&sealed), include_str!("golden_envelope.hex").trim());
        assert_eq!(open(&ring, &AAD, &sealed).unwrap(), b"golden");
    }
}
