//! The master key, which the operator holds.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use base64::{Engine, engine::general_purpose};
use zeroize::Zeroizing;

use super::{Error, random};

/// The largest key file that is read. A key in text has at most 64 characters, so a larger file is
/// not a key.
const SOURCE_BYTES_MAX: u64 = 1024;

const EXPECTED: &str = "a master key is 32 random bytes: raw (file only), 64 hexadecimal \
                        digits, or base64 (44 characters); create one with `openssl rand -hex 32`";

/// The reason why a file or a text is not a master key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MasterKeyError {
    /// The file cannot be read.
    #[error("cannot be read")]
    Unreadable(#[source] io::Error),
    /// The text has another length or other characters than a key.
    #[error("{bytes} bytes that are not a master key; {EXPECTED}")]
    Format {
        /// The length of the text in bytes.
        bytes: usize,
    },
    /// The bytes are printable.
    #[error("32 characters of text instead of 32 random bytes; {EXPECTED}")]
    Text,
    /// The bytes are obviously not random.
    #[error("all bytes are equal; {EXPECTED}")]
    Equal,
}

/// The key that wraps a node's keyring. Wiped from memory when dropped; never printed.
#[derive(Clone)]
pub struct MasterKey(Zeroizing<[u8; 32]>);

impl MasterKey {
    /// Returns a master key of these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Returns a random master key.
    pub fn generate() -> Result<Self, Error> {
        random().map(Self::from_bytes)
    }

    /// Reads a master key from a file: 32 raw bytes, 64 hexadecimal digits, or base64. White space
    /// around text is ignored. A file that other users may read is accepted with a warning, because
    /// secrets mounted into containers often have such a mode.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let source_name = path.display().to_string();
        let unreadable = |error| Error::MasterKey {
            source_name: source_name.clone(),
            reason: MasterKeyError::Unreadable(error),
        };
        let file = File::open(path).map_err(unreadable)?;
        let mode = file.metadata().map_err(unreadable)?.permissions().mode();
        let mut bytes = Zeroizing::new(Vec::with_capacity(SOURCE_BYTES_MAX as usize + 1));
        file.take(SOURCE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        let key = match <[u8; 32]>::try_from(bytes.as_slice()) {
            Ok(raw) => Self::raw(Zeroizing::new(raw), &source_name)?,
            Err(_) => Self::parse(&bytes, &source_name)?,
        };
        if mode & 0o077 != 0 {
            tracing::warn!(
                path = %source_name,
                mode = format!("{:o}", mode & 0o7777),
                "other users can read the master key file; restrict it to its owner with chmod 600",
            );
        }
        Ok(key)
    }

    /// Parses a master key from text, such as the value of an environment variable: 64 hexadecimal
    /// digits, or base64. `source_name` names the origin of the text in errors.
    pub fn from_text(text: &str, source_name: &str) -> Result<Self, Error> {
        Self::parse(text.as_bytes(), source_name)
    }

    fn parse(text: &[u8], source_name: &str) -> Result<Self, Error> {
        let text = text.trim_ascii();
        let wrong = || Error::MasterKey {
            source_name: source_name.to_owned(),
            reason: MasterKeyError::Format { bytes: text.len() },
        };
        let mut key = Zeroizing::new([0; 32]);
        if text.len() == 64 && hex::decode_to_slice(text, &mut *key).is_ok() {
            return Self::checked(key, source_name);
        }
        // The base64 decoder needs a buffer of whole groups, which is longer than 32 bytes.
        let mut decoded = Zeroizing::new([0; 36]);
        let engines = [general_purpose::STANDARD, general_purpose::URL_SAFE];
        let unpadded = [general_purpose::STANDARD_NO_PAD, general_purpose::URL_SAFE_NO_PAD];
        for engine in engines.into_iter().chain(unpadded) {
            if text.len() <= 44 && engine.decode_slice(text, &mut *decoded).ok() == Some(32) {
                key.copy_from_slice(&decoded[..32]);
                return Self::checked(key, source_name);
            }
        }
        Err(wrong())
    }

    /// Rejects 32 bytes of printable text, which are probably a passphrase, or half of a key in
    /// hexadecimal digits. 32 random bytes are all printable once in 10¹³ times.
    fn raw(key: Zeroizing<[u8; 32]>, source_name: &str) -> Result<Self, Error> {
        if key.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ') {
            let reason = MasterKeyError::Text;
            return Err(Error::MasterKey { source_name: source_name.to_owned(), reason });
        }
        Self::checked(key, source_name)
    }

    /// Rejects a key that is obviously not random.
    fn checked(key: Zeroizing<[u8; 32]>, source_name: &str) -> Result<Self, Error> {
        if key.iter().all(|byte| *byte == key[0]) {
            let reason = MasterKeyError::Equal;
            return Err(Error::MasterKey { source_name: source_name.to_owned(), reason });
        }
        Ok(Self(key))
    }

    /// The id of the key: a short name for errors and for operators. It is not secret, because it
    /// reveals no part of the key.
    pub fn id(&self) -> String {
        hex::encode(self.id_bytes())
    }

    /// Derives a key for the purpose that `context` names. The derived key does not reveal the
    /// master key.
    pub fn derived(&self, context: &str) -> [u8; 32] {
        blake3::derive_key(context, &self.0[..])
    }

    pub(super) fn id_bytes(&self) -> [u8; 8] {
        let digest = blake3::derive_key("conclave 2026 name of a master key", &*self.0);
        let mut id = [0; 8];
        id.copy_from_slice(&digest[..8]);
        id
    }

    /// The bytes of the key, for a caller that sends it to a node.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({})", self.id())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::{error::Error as _, fs};

    use super::*;

    /// Such text is half of a key, or a passphrase.
    #[test]
    fn text_of_32_characters_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for text in ["0123456789abcdef0123456789abcdef", "correct horse battery staple ok?"] {
            assert_eq!(text.len(), 32);
            fs::write(&path, text).unwrap();
            let error = MasterKey::from_file(&path).unwrap_err().to_string();
            assert!(error.contains("32 characters of text"), "{error}");
            assert!(error.contains("openssl rand"), "{error}");
        }
    }

    fn key_bytes() -> [u8; 32] {
        std::array::from_fn(|at| 200 + at as u8)
    }

    #[test]
    fn all_spellings_give_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let expected = MasterKey::from_bytes(key_bytes()).id();
        let hexadecimal = hex::encode(key_bytes());
        let base64 = general_purpose::STANDARD.encode(key_bytes());
        let url_safe = general_purpose::URL_SAFE_NO_PAD.encode(key_bytes());
        for text in [&hexadecimal, &hexadecimal.to_uppercase(), &base64, &url_safe] {
            assert_eq!(MasterKey::from_text(text, "env").unwrap().id(), expected);
            fs::write(&path, format!(" {text}\n")).unwrap();
            assert_eq!(MasterKey::from_file(&path).unwrap().id(), expected);
        }
        fs::write(&path, key_bytes()).unwrap();
        assert_eq!(MasterKey::from_file(&path).unwrap().id(), expected);
    }

    #[test]
    fn what_is_no_key_is_refused_without_showing_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let error = MasterKey::from_file(&path).unwrap_err();
        assert!(error.to_string().contains("cannot be read"), "{error}");
        let reason = error.source().unwrap().downcast_ref::<MasterKeyError>().unwrap();
        let cause = reason.source().unwrap().downcast_ref::<io::Error>().unwrap();
        assert_eq!(cause.kind(), io::ErrorKind::NotFound);
        for text in ["", "secret", &"ab".repeat(31), &"zz".repeat(32), &"00".repeat(32)] {
            let error = MasterKey::from_text(text, "CONCLAVE_MASTER_KEY").unwrap_err().to_string();
            assert!(error.contains("CONCLAVE_MASTER_KEY") && error.contains("openssl"), "{error}");
            assert!(text.is_empty() || !error.contains(text), "{error}");
        }
        fs::write(&path, vec![1; 100_000]).unwrap();
        assert!(MasterKey::from_file(&path).is_err());
        let shown = format!("{:?}", MasterKey::from_bytes(key_bytes()));
        assert!(!shown.contains(&hex::encode(&key_bytes()[..4])));
    }
}
