//! Reading of backups, from the beginning to the end.

use std::io::{self, Read};

use bytes::Bytes;

use super::{
    BackupError, BackupInfo,
    format::{self, Binding, FRAME_BYTES, Kind, MAGIC, PART_BYTES_MAX, START_BYTES, VERSION},
};
use crate::CHUNK_BYTES_MAX;
use conclave_crypto as crypto;
use conclave_crypto::{Keyring, MasterKey, OVERHEAD_BYTES};

/// A backup whose preamble was read. Nothing is authenticated yet.
pub struct BackupReader<R> {
    source: Source<R>,
    info: BackupInfo,
    binding: Binding,
    /// The file up to the wrapped keyring, and the keyring.
    before_keyring: Vec<u8>,
    keyring: Vec<u8>,
}

/// The size of a whole file, and the BLAKE3 hash of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames {
    /// The size in bytes.
    pub bytes: u64,
    /// The hash.
    pub blake3: [u8; 32],
}

struct Source<R> {
    name: String,
    reader: R,
    read_bytes: u64,
    hasher: blake3::Hasher,
}

impl<R: Read> Source<R> {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), BackupError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..])? {
                0 => {
                    let (name, bytes) = (self.name.clone(), self.read_bytes);
                    return Err(BackupError::Truncated { name, bytes });
                }
                read => filled += read,
            }
        }
        self.hasher.update(buffer);
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, BackupError> {
        loop {
            match self.reader.read(buffer) {
                Ok(read) => {
                    self.read_bytes += read as u64;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(BackupError::Io { name: self.name.clone(), source }),
            }
        }
    }

    /// Reads a part behind its length.
    fn part(&mut self, most: usize, what: &str) -> Result<Vec<u8>, BackupError> {
        let mut length = [0; 4];
        self.fill(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > most {
            return Err(self.damaged(format!("{what} has an impossible length")));
        }
        let mut part = vec![0; length];
        self.fill(&mut part)?;
        Ok(part)
    }

    fn record(&mut self) -> Result<(Kind, Vec<u8>), BackupError> {
        let at = self.read_bytes;
        let mut kind = [0];
        self.fill(&mut kind)?;
        let kinds = [Kind::Contents, Kind::Chunk, Kind::End];
        let kind = kinds.into_iter().find(|known| *known as u8 == kind[0]);
        let invalid = || format!("there is no valid record at byte {at}");
        let kind = kind.ok_or_else(|| self.damaged(invalid()))?;
        let sealed = self.part(CHUNK_BYTES_MAX + OVERHEAD_BYTES, "a record")?;
        match sealed.len() >= OVERHEAD_BYTES {
            true => Ok((kind, sealed)),
            false => Err(self.damaged(invalid())),
        }
    }

    /// Checks that the file ends here.
    fn end(&mut self) -> Result<(), BackupError> {
        match self.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(self.damaged("there are bytes after its end")),
        }
    }

    fn damaged(&self, reason: impl Into<String>) -> BackupError {
        BackupError::Damaged { name: self.name.clone(), reason: reason.into() }
    }
}

impl<R: Read> BackupReader<R> {
    /// Reads the preamble. `name` names the source in errors.
    ///
    /// # Errors
    /// The source is not a backup, or its preamble is truncated, damaged or of a newer version.
    pub fn open(name: impl Into<String>, reader: R) -> Result<Self, BackupError> {
        let hasher = blake3::Hasher::new();
        let mut source = Source { name: name.into(), reader, read_bytes: 0, hasher };
        let mut start = [0; START_BYTES];
        match source.fill(&mut start) {
            Err(BackupError::Truncated { name, .. }) if !start.starts_with(MAGIC) => {
                return Err(BackupError::Foreign { name });
            }
            filled => filled?,
        }
        let (magic, version) = start.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(BackupError::Foreign { name: source.name });
        }
        let found = version.iter().fold(0, |value, byte| (value << 8) | u16::from(*byte));
        if found != VERSION {
            return Err(match found > VERSION {
                true => BackupError::Version { name: source.name, found, known: VERSION },
                false => source.damaged(format!("there is no format version {found}")),
            });
        }
        let header = source.part(PART_BYTES_MAX, "its header")?;
        let before_keyring = [&start[..], &format::length(&header), &header].concat();
        let keyring = source.part(PART_BYTES_MAX, "its keyring")?;
        let preamble = *source.hasher.finalize().as_bytes();
        let mut check = [0; 32];
        source.fill(&mut check)?;
        if check != preamble {
            return Err(source.damaged("the checksum of its header is wrong"));
        }
        let info = format::info(&header);
        let info = info.map_err(|reason| source.damaged(format!("its header: {reason}")))?;
        let binding = Binding::new(info.cluster_id.clone(), preamble);
        Ok(Self { source, info, binding, before_keyring, keyring })
    }

    /// The description of the backup. It is authenticated only by [`BackupReader::unlock`].
    pub fn info(&self) -> &BackupInfo {
        &self.info
    }

    /// The id of the key that wraps the data key.
    pub fn key_id(&self) -> String {
        Keyring::wrapped_by(&self.keyring).unwrap_or_default()
    }

    /// Checks the structure of the rest of the file, without a key.
    ///
    /// # Errors
    /// The file is truncated, or its records are not those of one backup.
    pub fn check_frames(mut self) -> Result<Frames, BackupError> {
        let (mut kind, _) = self.source.record()?;
        if kind != Kind::Contents {
            return Err(self.source.damaged("its first record is missing"));
        }
        let (mut chunks, mut bytes) = (0_u64, 0_u64);
        loop {
            let sealed;
            (kind, sealed) = self.source.record()?;
            match kind {
                Kind::Chunk => {
                    chunks += 1;
                    bytes += (sealed.len() - OVERHEAD_BYTES) as u64;
                }
                Kind::End => break,
                Kind::Contents => return Err(self.source.damaged("a record is out of order")),
            }
        }
        if (chunks, bytes) != (self.info.chunks, self.info.bytes) {
            return Err(self.source.damaged("chunks are missing"));
        }
        self.source.end()?;
        let blake3 = *self.source.hasher.finalize().as_bytes();
        Ok(Frames { bytes: self.source.read_bytes, blake3 })
    }

    /// Opens the data key and the first record.
    ///
    /// # Errors
    /// The key is wrong, or the preamble or the first record were changed.
    pub fn unlock(mut self, key: &MasterKey) -> Result<Backup<R>, BackupError> {
        let aad = format::keyring_aad(&self.info.cluster_id, &self.before_keyring);
        let keyring = Keyring::unwrap(&self.keyring, key, &aad).map_err(|error| match error {
            crypto::Error::WrongMasterKey { wrapped_by, given } => BackupError::WrongKey {
                name: self.source.name.clone(),
                wrapped_by,
                given,
                kind: self.info.wrapped_by,
            },
            crypto::Error::Keyring { .. } => {
                self.source.damaged("its header was changed, or its data key is damaged")
            }
            other => self.source.damaged(other.to_string()),
        })?;
        let (kind, sealed) = self.source.record()?;
        let mut backup = Backup {
            reader: self,
            keyring,
            contents: Bytes::new(),
            chunks: 0,
            bytes: 0,
            state: State::Chunks,
        };
        if kind != Kind::Contents {
            return Err(backup.reader.source.damaged("its first record is missing"));
        }
        backup.contents = backup.opened(Kind::Contents, 0, &sealed)?;
        Ok(backup)
    }
}

/// A backup that is open for reading. The iterator returns the authenticated chunks, and ends
/// without an error only after the authenticated end of the file. It ends after an error.
pub struct Backup<R> {
    reader: BackupReader<R>,
    keyring: Keyring,
    contents: Bytes,
    chunks: u64,
    bytes: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Chunks,
    Ended,
    Failed,
}

impl<R: Read> Backup<R> {
    /// The description of the backup.
    pub fn info(&self) -> &BackupInfo {
        &self.reader.info
    }

    /// The BLAKE3 hash of the preamble. It identifies the file: all records are bound to it, and it
    /// contains a random id and the wrapped data key.
    pub fn preamble_hash(&self) -> [u8; 32] {
        self.reader.binding.preamble()
    }

    /// The first record.
    pub fn contents(&self) -> &Bytes {
        &self.contents
    }

    /// Returns whether everything up to the end of the file has been read and authenticated.
    pub fn is_whole(&self) -> bool {
        self.state == State::Ended
    }

    /// Returns the error for contents that cannot be used.
    pub fn damaged(&self, reason: impl Into<String>) -> BackupError {
        self.reader.source.damaged(reason)
    }

    fn opened(&self, kind: Kind, sequence: u64, sealed: &[u8]) -> Result<Bytes, BackupError> {
        let key = self.reader.binding.key(kind, sequence);
        let opened = crypto::open(&self.keyring, &self.reader.binding.aad(&key), sealed);
        let before = self.reader.source.read_bytes - (FRAME_BYTES + sealed.len()) as u64;
        let opened = opened.map_err(|error| self.damaged(format!("at byte {before}: {error}")))?;
        Ok(opened.into())
    }

    fn read_next(&mut self) -> Result<Option<Bytes>, BackupError> {
        let (kind, sealed) = self.reader.source.record()?;
        match kind {
            Kind::Chunk => {
                let chunk = self.opened(Kind::Chunk, self.chunks, &sealed)?;
                self.chunks += 1;
                self.bytes += chunk.len() as u64;
                Ok(Some(chunk))
            }
            Kind::End => {
                let end = self.opened(Kind::End, 0, &sealed)?;
                let counts = [self.chunks.to_be_bytes(), self.bytes.to_be_bytes()].concat();
                let info = &self.reader.info;
                if end != counts || (self.chunks, self.bytes) != (info.chunks, info.bytes) {
                    return Err(self.damaged("chunks are missing"));
                }
                self.reader.source.end()?;
                Ok(None)
            }
            Kind::Contents => Err(self.damaged("a record is out of order")),
        }
    }
}

impl<R: Read> Iterator for Backup<R> {
    type Item = Result<Bytes, BackupError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state != State::Chunks {
            return None;
        }
        let chunk = self.read_next().transpose();
        self.state = match &chunk {
            Some(Ok(_)) => State::Chunks,
            Some(Err(_)) => State::Failed,
            None => State::Ended,
        };
        chunk
    }
}
