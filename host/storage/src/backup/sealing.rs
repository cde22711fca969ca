//! Writing of backups, as a stream of pieces.

use std::time::SystemTime;

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    BackupAbout, BackupError, BackupInfo, BackupKey, WrappedBy,
    format::{self, Binding, FRAME_BYTES, Kind},
};
use crate::{CHUNK_BYTES_MAX, Error, SnapshotFile, SnapshotReader};
use conclave_crypto as crypto;
use conclave_crypto::{Keyring, MasterKey, OVERHEAD_BYTES, USES_MAX};
use conclave_types::ComponentId;

/// The pieces of a backup file, in order. Each has at most 1 MiB and a few bytes. The iterator ends
/// after an error.
pub struct SealedBackup<I = SnapshotReader> {
    info: BackupInfo,
    binding: Binding,
    keyring: Keyring,
    chunks: I,
    /// The preamble and the first record, until they are returned.
    start: Option<Bytes>,
    sealed_chunks: u64,
    sealed_bytes: u64,
    ended: bool,
}

impl SnapshotFile {
    /// Seals this snapshot as a backup. `contents` is the first record, which the caller defines.
    /// Without a key, the node's master key wraps the data key.
    pub fn back_up(
        &self,
        cluster_id: &str,
        component_id: ComponentId,
        about: BackupAbout,
        contents: &[u8],
        key: Option<BackupKey>,
    ) -> Result<SealedBackup, BackupError> {
        let own = || BackupKey { key: self.keys().master_key(), wrapped_by: WrappedBy::MasterKey };
        let BackupKey { key, wrapped_by } = key.unwrap_or_else(own);
        let mut backup_id = [0; 16];
        getrandom::fill(&mut backup_id).map_err(crypto::Error::Random)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let info = BackupInfo {
            cluster_id: cluster_id.to_owned(),
            index: self.index(),
            component_id,
            component_name: about.name,
            component_version: about.version,
            created_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            backup_id,
            chunks: self.chunks(),
            bytes: self.bytes(),
            wrapped_by,
        };
        SealedBackup::new(info, contents, self.read()?, &key)
    }
}

impl<I: Iterator<Item = Result<Bytes, Error>>> SealedBackup<I> {
    pub(super) fn new(
        info: BackupInfo,
        contents: &[u8],
        chunks: I,
        key: &MasterKey,
    ) -> Result<Self, BackupError> {
        // The key is used for this file only, and never written with a smaller reservation.
        let keyring = Keyring::generate()?.reserve(USES_MAX);
        let mut start = format::start(&info);
        let wrapped = keyring.wrap(key, &format::keyring_aad(&info.cluster_id, &start))?;
        start.extend_from_slice(&format::length(&wrapped));
        start.extend_from_slice(&wrapped);
        let preamble = *blake3::hash(&start).as_bytes();
        start.extend_from_slice(&preamble);
        let binding = Binding::new(info.cluster_id.clone(), preamble);
        if contents.len() > CHUNK_BYTES_MAX {
            return Err(crypto::Error::TooLarge { place: "backup".to_owned() }.into());
        }
        let mut sealed = Self {
            info,
            binding,
            keyring,
            chunks,
            start: None,
            sealed_chunks: 0,
            sealed_bytes: 0,
            ended: false,
        };
        start.extend_from_slice(&sealed.record(Kind::Contents, 0, contents)?);
        sealed.start = Some(start.into());
        Ok(sealed)
    }

    /// The description of the backup.
    pub fn info(&self) -> &BackupInfo {
        &self.info
    }

    fn record(&self, kind: Kind, sequence: u64, plaintext: &[u8]) -> Result<Bytes, BackupError> {
        let key = self.binding.key(kind, sequence);
        let sealed = crypto::seal(&self.keyring, &self.binding.aad(&key), plaintext)?;
        let mut record = BytesMut::with_capacity(FRAME_BYTES + OVERHEAD_BYTES + plaintext.len());
        record.put_u8(kind as u8);
        record.put_slice(&format::length(&sealed));
        record.put_slice(&sealed);
        Ok(record.freeze())
    }

    fn piece(&mut self) -> Result<Bytes, BackupError> {
        if let Some(start) = self.start.take() {
            return Ok(start);
        }
        if let Some(chunk) = self.chunks.next() {
            let chunk = chunk?;
            let record = self.record(Kind::Chunk, self.sealed_chunks, &chunk)?;
            self.sealed_chunks += 1;
            self.sealed_bytes += chunk.len() as u64;
            return Ok(record);
        }
        self.ended = true;
        // Only a bug in the reader of the snapshot breaks this.
        assert_eq!(
            (self.sealed_chunks, self.sealed_bytes),
            (self.info.chunks, self.info.bytes),
            "the chunks of the snapshot"
        );
        let end = [self.sealed_chunks.to_be_bytes(), self.sealed_bytes.to_be_bytes()].concat();
        self.record(Kind::End, 0, &end)
    }
}

impl<I: Iterator<Item = Result<Bytes, Error>>> Iterator for SealedBackup<I> {
    type Item = Result<Bytes, BackupError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let piece = self.piece();
        self.ended |= piece.is_err();
        Some(piece)
    }
}
