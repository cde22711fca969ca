//! Encoding of a backup file. `docs/disk-format.md` has the diagram.

use prost::Message;

use super::{BackupInfo, WrappedBy};
use conclave_crypto::{Aad, Stretch};
use conclave_proto::{backup as wire, convert::component_id_from_wire};

pub(super) const MAGIC: &[u8; 8] = b"CNCLVBAK";
pub(super) const VERSION: u16 = 1;
/// Magic and version.
pub(super) const START_BYTES: usize = 8 + 2;
/// The largest header, and the largest wrapped keyring.
pub(super) const PART_BYTES_MAX: usize = 64 << 10;
/// Kind and length before each envelope.
pub(super) const FRAME_BYTES: usize = 1 + 4;

/// The kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Contents = 1,
    Chunk = 2,
    End = 3,
}

/// The associated data of the records of one file.
pub(super) struct Binding {
    cluster_id: String,
    /// BLAKE3 of the preamble.
    preamble: [u8; 32],
}

impl Binding {
    pub(super) fn new(cluster_id: String, preamble: [u8; 32]) -> Self {
        Self { cluster_id, preamble }
    }

    pub(super) fn preamble(&self) -> [u8; 32] {
        self.preamble
    }

    /// Returns the key in the associated data of a record.
    pub(super) fn key(&self, kind: Kind, sequence: u64) -> Vec<u8> {
        [&self.preamble[..], &[kind as u8], &sequence.to_be_bytes()].concat()
    }

    pub(super) fn aad<'a>(&'a self, key: &'a [u8]) -> Aad<'a> {
        Aad { cluster_id: &self.cluster_id, node_id: 0, place: "backup", key }
    }
}

/// Returns the associated data of the wrapped keyring. `before` is the file up to it.
pub(super) fn keyring_aad<'a>(cluster_id: &'a str, before: &'a [u8]) -> Aad<'a> {
    Aad { cluster_id, node_id: 0, place: "backup key", key: before }
}

/// Encodes the beginning of a file, up to the wrapped keyring.
pub(super) fn start(info: &BackupInfo) -> Vec<u8> {
    let header = to_wire(info).encode_to_vec();
    let mut bytes = Vec::with_capacity(START_BYTES + 4 + header.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    bytes.extend_from_slice(&length(&header));
    bytes.extend_from_slice(&header);
    bytes
}

/// Returns the length of a part in four bytes. No part reaches their range.
pub(super) fn length(part: &[u8]) -> [u8; 4] {
    u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes()
}

fn to_wire(info: &BackupInfo) -> wire::Header {
    let wrapped_by = match info.wrapped_by {
        WrappedBy::MasterKey => wire::header::WrappedBy::MasterKey(wire::MasterKey {}),
        WrappedBy::KeyFile => wire::header::WrappedBy::KeyFile(wire::KeyFile {}),
        WrappedBy::Passphrase(Stretch { salt, memory_kib, passes, lanes }) => {
            let salt = salt.to_vec().into();
            let passphrase = wire::Passphrase { salt, memory_kib, passes, lanes };
            wire::header::WrappedBy::Passphrase(passphrase)
        }
    };
    wire::Header {
        cluster_id: info.cluster_id.clone(),
        index: info.index,
        component_id: info.component_id.0.to_vec().into(),
        component_name: info.component_name.clone(),
        component_version: info.component_version.clone(),
        created_ms: info.created_ms,
        version: info.version.clone(),
        backup_id: info.backup_id.to_vec().into(),
        chunks: info.chunks,
        bytes: info.bytes,
        wrapped_by: Some(wrapped_by),
    }
}

/// Decodes the header.
pub(super) fn info(header: &[u8]) -> Result<BackupInfo, String> {
    let header = wire::Header::decode(header).map_err(|error| error.to_string())?;
    let id = |name: &str, bytes: &[u8]| {
        let id: Result<[u8; 16], _> = bytes.try_into();
        id.map_err(|_| format!("{name} has {} bytes", bytes.len()))
    };
    let wrapped_by = match header.wrapped_by {
        Some(wire::header::WrappedBy::MasterKey(_)) => WrappedBy::MasterKey,
        Some(wire::header::WrappedBy::KeyFile(_)) => WrappedBy::KeyFile,
        Some(wire::header::WrappedBy::Passphrase(passphrase)) => {
            let wire::Passphrase { salt, memory_kib, passes, lanes } = passphrase;
            WrappedBy::Passphrase(Stretch {
                salt: id("the salt", &salt)?,
                memory_kib,
                passes,
                lanes,
            })
        }
        None => return Err("the kind of its key is unknown".to_owned()),
    };
    Ok(BackupInfo {
        component_id: component_id_from_wire(&header.component_id)
            .map_err(|error| error.to_string())?,
        backup_id: id("the backup id", &header.backup_id)?,
        cluster_id: header.cluster_id,
        index: header.index,
        component_name: header.component_name,
        component_version: header.component_version,
        created_ms: header.created_ms,
        version: header.version,
        chunks: header.chunks,
        bytes: header.bytes,
        wrapped_by,
    })
}
