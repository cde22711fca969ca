//! The tree's keys, and what its values hold once opened. `docs/disk-format.md` has the diagrams.
//!
//! Every value begins with a *sequence number*, which no other value written to this directory has:
//! each write takes the next. With it and the watermark ([`super::mark`]) a value that is older than it
//! should be is found out, though it opens.

use bytes::{Buf, Bytes};
use prost::Message;

use super::{error::Reason, tree::VALUE_BYTES_MAX};
use crate::raft_types::{Entry, LogId};
use conclave_crypto::OVERHEAD_BYTES;
use conclave_proto::raft as wire;

/// Packs of entries.
pub(super) const ENTRIES: u8 = b'e';
/// The vote and its like.
pub(super) const META: u8 = b'm';
/// Small records of the layers above.
pub(super) const RECORD: u8 = b'r';

/// Which directory this tree was made for: the identity's incarnation.
pub(super) const BIRTH: &[u8] = b"mbirth";
pub(super) const VOTE: &[u8] = b"mvote";
pub(super) const COMMITTED: &[u8] = b"mcommitted";
pub(super) const PURGED: &[u8] = b"mpurged";
/// When the log was last truncated, which is the one legal way for its last block to become older.
pub(super) const TRUNCATED: &[u8] = b"mtruncated";
/// Every such key.
pub(super) const METAS: [&[u8]; 6] = [BIRTH, VOTE, COMMITTED, PURGED, TRUNCATED, REMOVED];
/// When a record was last removed. A batch that only removes would leave the tree without the newest
/// sequence number, which may have been the removed one's.
pub(super) const REMOVED: &[u8] = b"mremoved";

/// What a sequence number takes.
const SEQUENCE_BYTES: usize = 8;
/// What of a value is left for the block's entries: the first part's header is the longest.
const PART_BYTES_MAX: usize = VALUE_BYTES_MAX - OVERHEAD_BYTES - SEQUENCE_BYTES - HEAD_BYTES;
/// Previous block's sequence number, parts, entries.
const HEAD_BYTES: usize = 8 + 2 + 4;

/// From how many bytes on a block is full. A larger entry gets a block of its own, in parts.
pub(super) const BLOCK_BYTES_MAX: usize = PART_BYTES_MAX;

/// The key of a part of the block whose first entry has this index.
pub(super) fn part_key(first: u64, part: u16) -> Vec<u8> {
    let mut key = Vec::with_capacity(11);
    key.push(ENTRIES);
    key.extend_from_slice(&first.to_be_bytes());
    key.extend_from_slice(&part.to_be_bytes());
    key
}

/// What a part's key says: the block's first index, and which part.
pub(super) fn parse_part_key(key: &[u8]) -> Option<(u64, u16)> {
    let (prefix, rest) = key.split_first_chunk::<1>()?;
    let (first, part) = rest.split_first_chunk::<8>()?;
    let part: [u8; 2] = part.try_into().ok()?;
    (*prefix == [ENTRIES]).then(|| (u64::from_be_bytes(*first), u16::from_be_bytes(part)))
}

/// The key of a record.
pub(super) fn record_key(name: &str) -> Vec<u8> {
    [&[RECORD], name.as_bytes()].concat()
}

/// A value: its sequence number and its body.
pub(super) fn value(sequence: u64, body: &[u8]) -> Vec<u8> {
    [&sequence.to_be_bytes(), body].concat()
}

/// Takes a value apart.
pub(super) fn split_value(plaintext: Vec<u8>) -> Result<(u64, Bytes), &'static str> {
    let mut rest = Bytes::from(plaintext);
    let sequence = rest.try_get_u64().map_err(|_| "it is too short")?;
    Ok((sequence, rest))
}

/// Entries on their way into one block.
#[derive(Default)]
pub(super) struct BlockBuilder {
    first: u64,
    entries: u32,
    body: Vec<u8>,
}

/// Where a block is and what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) parts: u16,
    pub(super) sequence: u64,
}

impl BlockBuilder {
    pub(super) fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Takes an entry, which follows the ones before, or gives it back if the block is full.
    pub(super) fn push(&mut self, encoded: &[u8], index: u64) -> bool {
        if !self.is_empty() && self.body.len() + 4 + encoded.len() > BLOCK_BYTES_MAX {
            return false;
        }
        if self.is_empty() {
            self.first = index;
        }
        assert!(index == self.first + u64::from(self.entries), "a hole in a block");
        // An entry is bounded by the largest request, far below 4 GiB.
        self.body.extend_from_slice(&(encoded.len() as u32).to_be_bytes());
        self.body.extend_from_slice(encoded);
        self.entries += 1;
        true
    }

    /// The block's plaintext values, one a part, and leaves the builder empty. Sequence numbers come
    /// from `sequence`, which has the last one taken.
    pub(super) fn finish(&mut self, previous: u64, sequence: &mut u64) -> (Block, Vec<Vec<u8>>) {
        let builder = std::mem::take(self);
        let chunks = builder.body.chunks(PART_BYTES_MAX);
        let parts = u16::try_from(chunks.len()).unwrap_or(u16::MAX);
        let mut values = Vec::with_capacity(chunks.len());
        let head = *sequence + 1;
        for chunk in chunks {
            *sequence += 1;
            let mut value = Vec::with_capacity(SEQUENCE_BYTES + HEAD_BYTES + chunk.len());
            value.extend_from_slice(&sequence.to_be_bytes());
            if *sequence == head {
                value.extend_from_slice(&previous.to_be_bytes());
                value.extend_from_slice(&parts.to_be_bytes());
                value.extend_from_slice(&builder.entries.to_be_bytes());
            }
            value.extend_from_slice(chunk);
            values.push(value);
        }
        let last = builder.first + u64::from(builder.entries).saturating_sub(1);
        (Block { first: builder.first, last, parts, sequence: head }, values)
    }
}

/// The header of a block, from its first part.
pub(super) struct BlockHead {
    pub(super) sequence: u64,
    pub(super) previous: u64,
    pub(super) parts: u16,
    pub(super) entries: u32,
    pub(super) body: Bytes,
}

impl BlockHead {
    pub(super) fn parse(plaintext: Vec<u8>) -> Result<Self, &'static str> {
        let short = |_| "it is too short";
        let (sequence, mut body) = split_value(plaintext)?;
        let previous = body.try_get_u64().map_err(short)?;
        let parts = body.try_get_u16().map_err(short)?;
        let entries = body.try_get_u32().map_err(short)?;
        if parts == 0 || entries == 0 {
            return Err("it is empty");
        }
        Ok(Self { sequence, previous, parts, entries, body })
    }

    /// The entries of a block that begins at `first`, with the rest of its parts put behind `body`.
    pub(super) fn decode(self, first: u64) -> Result<Vec<Entry>, Reason> {
        let mut body = self.body;
        let mut entries = Vec::new();
        for index in (first..).take(self.entries as usize) {
            let length = body.try_get_u32().map_err(|_| "it is too short")? as usize;
            if length > body.len() {
                return Err("it is too short".into());
            }
            let entry = decode_entry(body.split_to(length))?;
            if entry.log_id.index != index {
                return Err("its entries are not consecutive".into());
            }
            entries.push(entry);
        }
        if body.is_empty() { Ok(entries) } else { Err("it is too long".into()) }
    }
}

/// An entry's bytes, put into `buffer` in place of what was there.
pub(super) fn encode_entry(entry: &Entry, buffer: &mut Vec<u8>) {
    let entry = crate::convert::entry_to_wire(entry);
    buffer.clear();
    buffer.reserve(entry.encoded_len());
    // Writing to a vector has no way to fail.
    entry.encode_raw(buffer);
}

pub(super) fn decode_entry(bytes: Bytes) -> Result<Entry, Reason> {
    let entry = wire::Entry::decode(bytes).map_err(|error| error.to_string())?;
    Ok(crate::convert::entry_from_wire(entry)?)
}

/// A log id, or the absence of one.
pub(super) fn encode_log_id(log_id: Option<&LogId>) -> Vec<u8> {
    log_id.map_or(vec![0], |log_id| {
        let mut bytes = vec![1];
        crate::convert::log_id_to_wire(log_id).encode_raw(&mut bytes);
        bytes
    })
}

/// Its counterpart.
pub(super) fn decode_log_id(mut body: Bytes) -> Result<Option<LogId>, String> {
    match body.try_get_u8() {
        Ok(0) if body.is_empty() => Ok(None),
        Ok(1) => {
            let log_id = wire::LogId::decode(body).map_err(|error| error.to_string())?;
            Ok(Some(crate::convert::log_id_from_wire(&log_id)))
        }
        _ => Err("it is no log id".into()),
    }
}
