//! Reading of snapshot files.

use std::{
    fmt,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    CHUNK_BYTES_MAX,
    format::{
        self, END_BYTES, END_RECORD_BYTES, FRAME_BYTES, Kind, MAGIC, PREAMBLE_BYTES, Preamble,
        VERSION,
    },
};
use crate::{Error, Keys, Reason, files};
use conclave_crypto as crypto;
use conclave_crypto::{KeyId, OVERHEAD_BYTES};

/// A complete snapshot. Clones share the file. It stays readable after a newer one has replaced it.
#[derive(Clone)]
pub struct SnapshotFile {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    /// Whether the snapshot is not installed. The file is then removed on drop.
    temporary: bool,
    file: File,
    file_bytes: u64,
    preamble: Preamble,
    term: u64,
    index: u64,
    keys: Keys,
    header: Bytes,
    /// The offset of the first chunk's record.
    chunks_at: u64,
    chunks: u64,
    bytes: u64,
    key_ids: (KeyId, KeyId),
}

impl SnapshotFile {
    /// Opens an installed snapshot, and authenticates its header and its end.
    pub(super) fn open(path: &Path, keys: &Keys) -> Result<Self, Error> {
        let position = format::parse_name(path).ok_or_else(|| Error::Snapshot {
            path: path.into(),
            reason: "its name is not a valid snapshot name".into(),
        })?;
        Self::open_as(path, position, keys, false)
    }

    /// Opens a snapshot that is not installed yet. The file is removed when the last clone is dropped.
    pub(super) fn open_temporary(
        path: &Path,
        position: (u64, u64),
        keys: &Keys,
    ) -> Result<Self, Error> {
        Self::open_as(path, position, keys, true)
    }

    fn open_as(
        path: &Path,
        (term, index): (u64, u64),
        keys: &Keys,
        temporary: bool,
    ) -> Result<Self, Error> {
        let damaged =
            |reason: &'static str| Error::Snapshot { path: path.into(), reason: reason.into() };
        let file = File::open(path).map_err(Error::io("cannot open", path))?;
        let file_bytes = file.metadata().map_err(Error::io("cannot read", path))?.len();
        let mut bytes = [0; PREAMBLE_BYTES];
        file.read_exact_at(&mut bytes, 0).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged("it is too short"),
            _ => Error::io("cannot read", path)(error),
        })?;
        if bytes[..8] != *MAGIC {
            return Err(damaged("it does not start with the magic bytes of a snapshot"));
        }
        let found = u16::from_be_bytes([bytes[8], bytes[9]]);
        if found > VERSION {
            return Err(Error::Version { path: path.into(), found, known: VERSION });
        }
        let mut file_id = [0; 16];
        file_id.copy_from_slice(&bytes[10..26]);
        let preamble = Preamble::new(found, file_id, term, index);
        if preamble.0 != bytes {
            return Err(damaged("its term and index do not match its name"));
        }
        let mut inner = Inner {
            path: path.to_owned(),
            temporary,
            file,
            file_bytes,
            preamble,
            term,
            index,
            keys: keys.clone(),
            header: Bytes::new(),
            chunks_at: 0,
            chunks: 0,
            bytes: 0,
            key_ids: (KeyId(0), KeyId(0)),
        };
        let (header, first_key) = inner.read_record(PREAMBLE_BYTES as u64, Kind::Header, 0)?;
        inner.chunks_at = (PREAMBLE_BYTES + FRAME_BYTES + OVERHEAD_BYTES + header.len()) as u64;
        inner.header = header;
        let last_key = inner.read_end()?;
        inner.key_ids = (first_key, last_key);
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The header that was passed to the writer.
    pub fn header(&self) -> &Bytes {
        &self.inner.header
    }

    /// The term of the last entry in the snapshot.
    pub fn term(&self) -> u64 {
        self.inner.term
    }

    /// The index of the last entry in the snapshot.
    pub fn index(&self) -> u64 {
        self.inner.index
    }

    /// The number of bytes in the chunks.
    pub fn bytes(&self) -> u64 {
        self.inner.bytes
    }

    /// The number of chunks.
    pub(crate) fn chunks(&self) -> u64 {
        self.inner.chunks
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.inner.keys
    }

    /// The random id of this file. No other file has the same id, even with the same contents.
    pub fn id(&self) -> [u8; 16] {
        self.inner.preamble.file_id()
    }

    /// The path of the file. A newer snapshot may have replaced it.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Returns a reader of the chunks, from the first one on.
    pub fn read(&self) -> Result<SnapshotReader, Error> {
        let at = self.inner.chunks_at;
        Ok(SnapshotReader { inner: Arc::clone(&self.inner), at, chunks: 0, bytes: 0, ended: false })
    }

    /// Whether the snapshot is not installed yet, and has a temporary name.
    pub(super) fn is_temporary(&self) -> bool {
        self.inner.temporary
    }

    /// The range of data keys that may have sealed the file.
    pub(crate) fn key_ids(&self) -> std::ops::RangeInclusive<u32> {
        let (first, last) = self.inner.key_ids;
        first.0..=last.0
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.temporary {
            // An installed snapshot has another name, so there is no file to remove.
            let _ = files::remove(&self.path);
        }
    }
}

impl fmt::Debug for SnapshotFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SnapshotFile").field(&self.inner.path).finish()
    }
}

impl Inner {
    fn damaged(&self, reason: impl Into<Reason>) -> Error {
        Error::Snapshot { path: self.path.clone(), reason: reason.into() }
    }

    fn read_at(&self, at: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.file.read_exact_at(bytes, at).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.damaged("it is truncated"),
            _ => Error::io("cannot read", &self.path)(error),
        })
    }

    /// Reads the kind and the length of the envelope at an offset.
    fn read_frame(&self, at: u64) -> Result<(u8, usize), Error> {
        let mut frame = [0; FRAME_BYTES];
        self.read_at(at, &mut frame)?;
        let [kind, length @ ..] = frame;
        Ok((kind, u32::from_be_bytes(length) as usize))
    }

    fn read_record(&self, at: u64, kind: Kind, sequence: u64) -> Result<(Bytes, KeyId), Error> {
        let (found, length) = self.read_frame(at)?;
        let allowed = OVERHEAD_BYTES..=OVERHEAD_BYTES + CHUNK_BYTES_MAX;
        if found != kind as u8 || !allowed.contains(&length) {
            return Err(self.damaged(format!("there is no valid record at byte {at}")));
        }
        let mut sealed = vec![0; length];
        self.read_at(at + FRAME_BYTES as u64, &mut sealed)?;
        let key = self.preamble.key(kind, sequence);
        let key_id = crypto::key_id_of(&sealed).unwrap_or(KeyId(0));
        let opened = self.keys.open_sealed(format::PLACE, &key, &sealed);
        let opened = opened.map_err(|source| self.damaged(Reason::Record { at, source }))?;
        Ok((opened.into(), key_id))
    }

    /// Reads the last record of the file, which has a fixed size. It contains the number of chunks.
    fn read_end(&mut self) -> Result<KeyId, Error> {
        let at = self.file_bytes.checked_sub(END_RECORD_BYTES as u64);
        let at = at.filter(|at| *at >= self.chunks_at);
        let at = at.ok_or_else(|| self.damaged("it is truncated"))?;
        let (end, key_id) = self.read_record(at, Kind::End, 0)?;
        let (counts, []) = end.as_chunks::<8>() else {
            return Err(self.damaged("its end is malformed"));
        };
        let [chunks, bytes] = counts else { return Err(self.damaged("its end is malformed")) };
        debug_assert_eq!(end.len(), END_BYTES);
        self.chunks = u64::from_be_bytes(*chunks);
        self.bytes = u64::from_be_bytes(*bytes);
        Ok(key_id)
    }
}

/// The chunks of a snapshot, authenticated one by one. The iterator ends after an error.
pub struct SnapshotReader {
    inner: Arc<Inner>,
    at: u64,
    chunks: u64,
    bytes: u64,
    ended: bool,
}

impl SnapshotReader {
    fn read_next(&mut self) -> Result<Option<Bytes>, Error> {
        let Inner { file_bytes, chunks, bytes, .. } = &*self.inner;
        if self.at + END_RECORD_BYTES as u64 == *file_bytes {
            if (self.chunks, self.bytes) == (*chunks, *bytes) {
                return Ok(None);
            }
            return Err(self.inner.damaged("chunks are missing"));
        }
        let (chunk, _) = self.inner.read_record(self.at, Kind::Chunk, self.chunks)?;
        self.at += (FRAME_BYTES + OVERHEAD_BYTES + chunk.len()) as u64;
        self.chunks += 1;
        self.bytes += chunk.len() as u64;
        Ok(Some(chunk))
    }
}

impl Iterator for SnapshotReader {
    type Item = Result<Bytes, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let chunk = self.read_next().transpose();
        self.ended = !matches!(chunk, Some(Ok(_)));
        chunk
    }
}
