//! Keys that are derived from a passphrase, by Argon2id (RFC 9106).

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::Path,
};

use argon2::{Algorithm, Argon2, Params, Version};
use zeroize::Zeroizing;

use super::{Error, MasterKey, random};

/// The shortest passphrase. A shorter one is soon guessed, whatever a guess costs.
const BYTES_MIN: usize = 12;
const BYTES_MAX: usize = 1024;
/// The largest parameters that are accepted from a file, which anyone may have made.
const MEMORY_KIB_MAX: u32 = 1 << 20;
const PASSES_MAX: u32 = 16;
const LANES_MAX: u32 = 16;

/// The parameters by which a key is derived from a passphrase. They are not secret, and are stored
/// beside the data that the key opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Random bytes, so that the same passphrase gives other keys elsewhere.
    pub salt: [u8; 16],
    /// The memory that a derivation takes, in KiB.
    pub memory_kib: u32,
    /// The number of passes over the memory.
    pub passes: u32,
    /// The degree of parallelism.
    pub lanes: u32,
}

impl Stretch {
    /// Returns the second recommendation of RFC 9106, section 4, with a random salt: 64 MiB, three
    /// passes and four lanes.
    pub fn generate() -> Result<Self, Error> {
        Ok(Self { salt: random()?, memory_kib: 64 << 10, passes: 3, lanes: 4 })
    }

    fn is_within_limits(&self) -> bool {
        (1..=MEMORY_KIB_MAX).contains(&self.memory_kib)
            && (1..=PASSES_MAX).contains(&self.passes)
            && (1..=LANES_MAX).contains(&self.lanes)
    }
}

/// The reason why a passphrase cannot be loaded, or no key can be derived from it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PassphraseError {
    /// The file cannot be read.
    #[error("cannot be read")]
    Unreadable(#[source] io::Error),
    /// The passphrase is too long.
    #[error("more than {BYTES_MAX} bytes")]
    TooLong,
    /// The passphrase is too short.
    #[error("a passphrase needs at least {BYTES_MIN} characters: use several random words")]
    TooShort,
    /// The parameters exceed the limits.
    #[error("the parameters exceed the limits: {} KiB, {} passes, {} lanes", .0.memory_kib, .0.passes, .0.lanes)]
    Excessive(Stretch),
    /// Argon2 returned an error.
    #[error("no key can be derived")]
    Derivation(#[source] argon2::Error),
}

/// A passphrase. Wiped from memory when dropped; never printed.
pub struct Passphrase {
    bytes: Zeroizing<Vec<u8>>,
    source_name: String,
}

impl Passphrase {
    /// Reads a passphrase from a file. White space around it, such as the end of the line, is ignored.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let source_name = path.display().to_string();
        let wrong = |reason| Error::Passphrase { source_name: source_name.clone(), reason };
        let mut bytes = Zeroizing::new(Vec::with_capacity(BYTES_MAX + 1));
        File::open(path)
            .and_then(|file| file.take(BYTES_MAX as u64 + 1).read_to_end(&mut bytes))
            .map_err(|error| wrong(PassphraseError::Unreadable(error)))?;
        if bytes.len() > BYTES_MAX {
            return Err(wrong(PassphraseError::TooLong));
        }
        let bytes = Zeroizing::new(bytes.trim_ascii().to_vec());
        if bytes.len() < BYTES_MIN {
            return Err(wrong(PassphraseError::TooShort));
        }
        Ok(Self { bytes, source_name })
    }

    /// Derives a key. Takes about a quarter of a second and the memory that `stretch` names.
    ///
    /// # Errors
    /// Fails if the parameters exceed the limits.
    pub fn key(&self, stretch: &Stretch) -> Result<MasterKey, Error> {
        let wrong = |reason| Error::Passphrase { source_name: self.source_name.clone(), reason };
        let underived = |error| wrong(PassphraseError::Derivation(error));
        let Stretch { salt, memory_kib, passes, lanes } = *stretch;
        if !stretch.is_within_limits() {
            return Err(wrong(PassphraseError::Excessive(*stretch)));
        }
        let mut key = Zeroizing::new([0; 32]);
        let params = Params::new(memory_kib, passes, lanes, Some(key.len()));
        let params = params.map_err(underived)?;
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(&self.bytes, &salt, &mut *key)
            .map_err(underived)?;
        Ok(MasterKey::from_bytes(*key))
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Passphrase").field(&self.source_name).finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::fs;

    use super::*;

    const STRETCH: Stretch = Stretch { salt: [7; 16], memory_kib: 64, passes: 1, lanes: 1 };

    fn passphrase(text: &str) -> Result<Passphrase, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passphrase");
        fs::write(&path, text).unwrap();
        Passphrase::from_file(&path)
    }

    #[test]
    fn key_is_a_function_of_passphrase_salt_and_cost() {
        let key = |text: &str, stretch| passphrase(text).unwrap().key(&stretch).unwrap().id();
        let first = key("correct horse battery\n", STRETCH);
        assert_eq!(first, key("correct horse battery", STRETCH), "the end of the line is ignored");
        assert_ne!(first, key("correct horse batterz", STRETCH));
        assert_ne!(first, key("correct horse battery", Stretch { salt: [8; 16], ..STRETCH }));
        assert_ne!(first, key("correct horse battery", Stretch { passes: 2, ..STRETCH }));
    }

    #[test]
    fn short_passphrases_and_excessive_costs_are_refused() {
        assert!(passphrase("short").unwrap_err().to_string().contains("at least 12"));
        assert!(passphrase(&"x".repeat(BYTES_MAX + 1)).is_err());
        let given = passphrase("correct horse battery").unwrap();
        assert!(!format!("{given:?}").contains("horse"));
        for excessive in [
            Stretch { memory_kib: MEMORY_KIB_MAX + 1, ..STRETCH },
            Stretch { passes: PASSES_MAX + 1, ..STRETCH },
            Stretch { lanes: 0, ..STRETCH },
            Stretch { memory_kib: 0, ..STRETCH },
        ] {
            let refused = given.key(&excessive).unwrap_err().to_string();
            assert!(refused.contains("exceed the limits"), "{refused}");
        }
    }
}
