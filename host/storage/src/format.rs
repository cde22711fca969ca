//! Encoding of the tree's keys and values. `docs/disk-format.md` has diagrams.
//!
//! Every value begins with a *sequence number*. Each write uses the next number, so no two values
//! written to a directory share one. Together with the durable watermark ([`super::watermark`]) it
//! reveals a value that is older than it should be, even though the value can be decrypted.

use bytes::{Buf, Bytes};
use prost::Message;

use super::{error::Reason, tree::VALUE_BYTES_MAX};
use crate::raft_types::{Entry, LogId};
use conclave_crypto::OVERHEAD_BYTES;
use conclave_proto::raft as wire;

/// The prefix of blocks of log entries.
pub(super) const ENTRIES: u8 = b'e';
/// The prefix of the vote and the other fixed values.
pub(super) const META: u8 = b'm';
/// The prefix of metadata entries, which the layers above store.
pub(super) const RECORD: u8 = b'r';

/// The key of the identity's incarnation, which binds the tree to its directory.
pub(super) const BIRTH: &[u8] = b"mbirth";
pub(super) const VOTE: &[u8] = b"mvote";
pub(super) const COMMITTED: &[u8] = b"mcommitted";
pub(super) const PURGED: &[u8] = b"mpurged";
/// The key of the last truncation. Only a truncation or a purge may make the last block older.
pub(super) const TRUNCATED: &[u8] = b"mtruncated";
/// All keys with the prefix [`META`].
pub(super) const METAS: [&[u8]; 6] = [BIRTH, VOTE, COMMITTED, PURGED, TRUNCATED, REMOVED];
/// The key of the last removal of a metadata entry. Without it, a batch that only removes could
/// leave the tree without its newest sequence number, which may have been that of the removed entry.
pub(super) const REMOVED: &[u8] = b"mremoved";

/// The length of a sequence number.
const SEQUENCE_BYTES: usize = 8;
/// The space for log entries in one value. The header of a block's first part is the longest.
const PART_BYTES_MAX: usize = VALUE_BYTES_MAX - OVERHEAD_BYTES - SEQUENCE_BYTES - HEAD_BYTES;
/// The previous block's sequence number, the number of parts, and the number of entries.
const HEAD_BYTES: usize = 8 + 2 + 4;

/// The size of a full block. A larger entry gets a block of its own, in several parts.
pub(super) const BLOCK_BYTES_MAX: usize = PART_BYTES_MAX;

/// Returns the key of a part. `first` is the index of the block's first entry.
pub(super) fn part_key(first: u64, part: u16) -> Vec<u8> {
    let mut key = Vec::with_capacity(11);
    key.push(ENTRIES);
    key.extend_from_slice(&first.to_be_bytes());
    key.extend_from_slice(&part.to_be_bytes());
    key
}

/// Parses a part's key into the block's first index and the part's number.
pub(super) fn parse_part_key(key: &[u8]) -> Option<(u64, u16)> {
    let (prefix, rest) = key.split_first_chunk::<1>()?;
    let (first, part) = rest.split_first_chunk::<8>()?;
    let part: [u8; 2] = part.try_into().ok()?;
    (*prefix == [ENTRIES]).then(|| (u64::from_be_bytes(*first), u16::from_be_bytes(part)))
}

/// Returns the key of a metadata entry.
pub(super) fn record_key(name: &str) -> Vec<u8> {
    [&[RECORD], name.as_bytes()].concat()
}

/// Encodes a value: its sequence number and its body.
pub(super) fn value(sequence: u64, body: &[u8]) -> Vec<u8> {
    [&sequence.to_be_bytes(), body].concat()
}

/// Splits a value into its sequence number and its body.
pub(super) fn split_value(plaintext: Vec<u8>) -> Result<(u64, Bytes), &'static str> {
    let mut rest = Bytes::from(plaintext);
    let sequence = rest.try_get_u64().map_err(|_| "it is too short")?;
    Ok((sequence, rest))
}

/// Builder of a block from entries.
#[derive(Default)]
pub(super) struct BlockBuilder {
    first: u64,
    entries: u32,
    body: Vec<u8>,
}

/// The position of a block in the log, its number of parts, and its sequence number.
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

    /// Adds the next entry. Returns false if the block is full.
    pub(super) fn push(&mut self, encoded: &[u8], index: u64) -> bool {
        if !self.is_empty() && self.body.len() + 4 + encoded.len() > BLOCK_BYTES_MAX {
            return false;
        }
        if self.is_empty() {
            self.first = index;
        }
        assert!(index == self.first + u64::from(self.entries), "a gap in a block");
        // An entry is bounded by the largest request, far below 4 GiB.
        self.body.extend_from_slice(&(encoded.len() as u32).to_be_bytes());
        self.body.extend_from_slice(encoded);
        self.entries += 1;
        true
    }

    /// Returns the block and its plaintext values, one per part, and empties the builder.
    /// `sequence` is the last used sequence number, and is advanced.
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

/// The header of a block, with the bytes that follow it in the first part.
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

    /// Decodes the entries of a block that begins at `first`. `body` must contain the bytes of all parts.
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

/// Encodes an entry into `buffer`, replacing its content.
pub(super) fn encode_entry(entry: &Entry, buffer: &mut Vec<u8>) {
    let entry = crate::convert::entry_to_wire(entry);
    buffer.clear();
    buffer.reserve(entry.encoded_len());
    // Writing to a vector cannot fail.
    entry.encode_raw(buffer);
}

pub(super) fn decode_entry(bytes: Bytes) -> Result<Entry, Reason> {
    let entry = wire::Entry::decode(bytes)?;
    Ok(crate::convert::entry_from_wire(entry)?)
}

/// Encodes a log id, or its absence.
pub(super) fn encode_log_id(log_id: Option<&LogId>) -> Vec<u8> {
    log_id.map_or(vec![0], |log_id| {
        let mut bytes = vec![1];
        crate::convert::log_id_to_wire(log_id).encode_raw(&mut bytes);
        bytes
    })
}

/// Decodes a log id, or its absence.
pub(super) fn decode_log_id(mut body: Bytes) -> Result<Option<LogId>, Reason> {
    match body.try_get_u8() {
        Ok(0) if body.is_empty() => Ok(None),
        Ok(1) => {
            let log_id = wire::LogId::decode(body)?;
            Ok(Some(crate::convert::log_id_from_wire(&log_id)))
        }
        _ => Err("it is not a log id".into()),
    }
}
