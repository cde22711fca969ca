//! Writing of snapshot files.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::PathBuf,
};

use super::{
    CHUNK_BYTES_MAX, SnapshotFile, SnapshotStore,
    format::{self, Kind, Preamble, VERSION},
};
use crate::{Error, files};

/// The number of bytes written between two syncs. A single sync at the end would block the log's
/// syncs for its whole duration.
const SYNC_BYTES: u64 = 16 << 20;

/// A snapshot that is being written. Dropping it before it is finished removes its file.
pub struct SnapshotWriter {
    store: SnapshotStore,
    preamble: Preamble,
    position: (u64, u64),
    temporary: PathBuf,
    /// `None` after the file is finished.
    file: Option<BufWriter<File>>,
    chunks: u64,
    bytes: u64,
    unsynced_bytes: u64,
}

impl SnapshotWriter {
    pub(super) fn create(
        store: SnapshotStore,
        term: u64,
        index: u64,
        header: &[u8],
    ) -> Result<Self, Error> {
        let mut file_id = [0; 16];
        let unique = getrandom::fill(&mut file_id);
        let name = format!("{}.{}.tmp", format::name(term, index), hex::encode(&file_id[..4]));
        let temporary = store.inner.dir.join(name);
        unique.map_err(|error| Error::io("cannot name", &temporary)(error.into()))?;
        let file = BufWriter::with_capacity(1 << 16, files::create(&temporary)?);
        let mut writer = Self {
            store,
            preamble: Preamble::new(VERSION, file_id, term, index),
            position: (term, index),
            temporary,
            file: Some(file),
            chunks: 0,
            bytes: 0,
            unsynced_bytes: 0,
        };
        writer.put(|writer, file| file.write_all(&writer.preamble.0))?;
        if header.len() > CHUNK_BYTES_MAX {
            let reason = format!("its header has {} bytes, which exceeds the limit", header.len());
            return Err(Error::Snapshot { path: writer.temporary.clone(), reason: reason.into() });
        }
        writer.record(Kind::Header, 0, header)?;
        Ok(writer)
    }

    /// Writes the next chunk, or several chunks if it exceeds the largest chunk.
    pub fn write(&mut self, chunk: &[u8]) -> Result<(), Error> {
        for chunk in chunk.chunks(CHUNK_BYTES_MAX) {
            self.record(Kind::Chunk, self.chunks, chunk)?;
            self.chunks += 1;
            self.bytes += chunk.len() as u64;
            self.unsynced_bytes += chunk.len() as u64;
        }
        if self.unsynced_bytes >= SYNC_BYTES {
            self.unsynced_bytes = 0;
            self.put(|_, file| file.flush().and_then(|()| file.get_ref().sync_data()))?;
        }
        Ok(())
    }

    /// Finishes the snapshot, makes it the newest one durably, and removes the older ones.
    pub fn commit(self) -> Result<SnapshotFile, Error> {
        let store = self.store.clone();
        store.install(&self.finish()?)
    }

    /// Finishes the file under its temporary name. It becomes the newest snapshot
    /// only by [`SnapshotStore::install`].
    pub fn finish(mut self) -> Result<SnapshotFile, Error> {
        let end = [self.chunks.to_be_bytes(), self.bytes.to_be_bytes()].concat();
        self.record(Kind::End, 0, &end)?;
        self.put(|_, file| file.flush().and_then(|()| file.get_ref().sync_all()))?;
        let keys = &self.store.inner.keys;
        let snapshot = SnapshotFile::open_temporary(&self.temporary, self.position, keys)?;
        self.file = None;
        Ok(snapshot)
    }

    fn record(&mut self, kind: Kind, sequence: u64, plaintext: &[u8]) -> Result<(), Error> {
        let key = self.preamble.key(kind, sequence);
        let sealed = self.store.inner.keys.seal(format::PLACE, &key, plaintext)?;
        // A chunk has at most 1 MiB.
        let length = (sealed.len() as u32).to_be_bytes();
        self.put(|_, file| {
            file.write_all(&[kind as u8])?;
            file.write_all(&length)?;
            file.write_all(&sealed)
        })
    }

    fn put(
        &mut self,
        write: impl FnOnce(&Self, &mut BufWriter<File>) -> std::io::Result<()>,
    ) -> Result<(), Error> {
        let mut file = self.file.take();
        let written = match &mut file {
            Some(file) => write(self, file),
            None => Ok(()),
        };
        self.file = file;
        written.map_err(Error::io("cannot write", &self.temporary))
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            // The buffered bytes need not be written.
            drop(file.into_parts());
            let _ = files::remove(&self.temporary);
        }
    }
}
