//! Serialization of the state in chunks. The format is described in `docs/snapshot-format.md`. A
//! change of the format must change that page, this file, `restore.rs` and the golden fixture.

use std::ops::Bound;

use conclave_sdk::snapshot::SnapshotReader;

use crate::{
    key::Key,
    state::{Content, Record, State},
};

/// The version of the format, which is the state version of this state machine.
pub(crate) const FORMAT_VERSION: u32 = 2;

pub(crate) const MAGIC: [u8; 8] = *b"CNCLV-KV";
pub(crate) const HEADER_BYTES: usize = 8 + 4 + 8 + 8;
/// The size of a record without its key and content.
pub(crate) const RECORD_FIXED_BYTES: usize = 2 + 1 + 8 + 8 + 8 + 8;

pub(crate) const KIND_VALUE: u8 = 0;
pub(crate) const KIND_TEXT: u8 = 1;

/// A snapshot in progress. Holds a copy that shares its structure with the live state. Buffers at
/// most the requested bytes plus one record.
pub(crate) struct Snapshot {
    state: State,
    next: Next,
    pending: Vec<u8>,
    /// The number of bytes of `pending` that were read.
    position: usize,
}

enum Next {
    Header,
    /// The records after this key.
    Records(Option<Key>),
    End,
}

impl Snapshot {
    pub(crate) fn new(state: State) -> Self {
        Self { state, next: Next::Header, pending: Vec::new(), position: 0 }
    }

    /// Encodes until `bytes` are pending or the end is reached.
    fn fill(&mut self, bytes: usize) {
        self.pending.drain(..self.position);
        self.position = 0;
        while self.pending.len() < bytes {
            match std::mem::replace(&mut self.next, Next::End) {
                Next::Header => {
                    encode_header(&self.state, &mut self.pending);
                    self.next = Next::Records(None);
                }
                Next::Records(after) => self.fill_records(after, bytes),
                Next::End => return,
            }
        }
    }

    /// Encodes records with one search in the tree.
    fn fill_records(&mut self, after: Option<Key>, bytes: usize) {
        let start = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        for (key, record) in self.state.from(start) {
            encode_record(key, record, &mut self.pending);
            if self.pending.len() >= bytes {
                self.next = Next::Records(Some(key.clone()));
                return;
            }
        }
        self.next = Next::End;
    }
}

impl SnapshotReader for Snapshot {
    fn read(&mut self, max_bytes: usize) -> Vec<u8> {
        if self.pending.len() - self.position < max_bytes {
            self.fill(max_bytes);
        }
        let rest = self.pending.get(self.position..).unwrap_or_default();
        let chunk = rest.get(..max_bytes).unwrap_or(rest).to_vec();
        self.position += chunk.len();
        chunk
    }
}

fn encode_header(state: &State, out: &mut Vec<u8>) {
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&FORMAT_VERSION.to_be_bytes());
    out.extend_from_slice(&state.revision().to_be_bytes());
    out.extend_from_slice(&(state.len() as u64).to_be_bytes());
}

fn encode_record(key: &str, record: &Record, out: &mut Vec<u8>) {
    let (kind, content) = match &record.content {
        Content::Value(value) => (KIND_VALUE, value.as_slice()),
        Content::Text(text) => (KIND_TEXT, text.as_bytes()),
    };
    // Both casts fit: keys have at most 4 KiB, values 1 MiB. All code that inserts a record checks this.
    let body_bytes = (RECORD_FIXED_BYTES + key.len() + content.len()) as u32;
    out.extend_from_slice(&body_bytes.to_be_bytes());
    out.extend_from_slice(&(key.len() as u16).to_be_bytes());
    out.extend_from_slice(key.as_bytes());
    out.push(kind);
    out.extend_from_slice(&record.create_revision.to_be_bytes());
    out.extend_from_slice(&record.mod_revision.to_be_bytes());
    out.extend_from_slice(&record.version.to_be_bytes());
    out.extend_from_slice(&record.expires_at_ms.to_be_bytes());
    out.extend_from_slice(content);
}
