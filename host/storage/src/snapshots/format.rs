//! Encoding of a snapshot file. `docs/disk-format.md` has the diagram.

use std::path::Path;

use conclave_crypto::OVERHEAD_BYTES;

pub(super) const MAGIC: &[u8; 8] = b"CNCLVSNP";
/// Since version 2 the chunks begin with the cluster's components. The layer above interprets them,
/// but a program for version 1 would take them for the state machine's bytes.
pub(super) const VERSION: u16 = 2;
/// Magic, version, file id, term, index.
pub(super) const PREAMBLE_BYTES: usize = 8 + 2 + 16 + 8 + 8;
/// Kind and length before each envelope.
pub(super) const FRAME_BYTES: usize = 1 + 4;
/// The number of chunks, and of their bytes.
pub(super) const END_BYTES: usize = 16;
/// The size of the last record of a file.
pub(super) const END_RECORD_BYTES: usize = FRAME_BYTES + OVERHEAD_BYTES + END_BYTES;

/// The place in the associated data of all records.
pub(super) const PLACE: &str = "snapshot";

/// The kind of a record.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Header = 1,
    Chunk = 2,
    End = 3,
}

/// The first bytes of a file. Each record is bound to all of them.
pub(super) struct Preamble(pub(super) [u8; PREAMBLE_BYTES]);

impl Preamble {
    pub(super) fn new(version: u16, file_id: [u8; 16], term: u64, index: u64) -> Self {
        let mut bytes = [0; PREAMBLE_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&version.to_be_bytes());
        bytes[10..26].copy_from_slice(&file_id);
        bytes[26..34].copy_from_slice(&term.to_be_bytes());
        bytes[34..].copy_from_slice(&index.to_be_bytes());
        Self(bytes)
    }

    pub(super) fn file_id(&self) -> [u8; 16] {
        std::array::from_fn(|at| self.0[10 + at])
    }

    /// Returns the key in the associated data of a record.
    pub(super) fn key(&self, kind: Kind, sequence: u64) -> Vec<u8> {
        [&self.0[..], &[kind as u8], &sequence.to_be_bytes()].concat()
    }
}

/// The extension of a snapshot's name.
pub(super) const EXTENSION: &str = "snap";

/// Returns the file name. The names sort in the order of the positions.
pub(super) fn name(term: u64, index: u64) -> String {
    format!("{term:020}-{index:020}.snap")
}

pub(super) fn parse_name(path: &Path) -> Option<(u64, u64)> {
    let file_name = path.file_name()?.to_str()?;
    let (term, index) = file_name.strip_suffix(".snap")?.split_once('-')?;
    let (term, index) = (term.parse().ok()?, index.parse().ok()?);
    // Accept only one spelling, because a second file for the same position could hide the first.
    (name(term, index) == file_name).then_some((term, index))
}
