//! Reading of log entries: recent entries from memory, older entries from the tree.

use std::{io, ops::Range};

use bytes::BytesMut;

use super::{
    Error, Reason,
    format::{self, BlockHead},
    sizes::entry_bytes,
    state::Shared,
    tree::Tree,
};
use crate::raft_types::Entry;

/// The maximum number of attempts of a read that concurrent truncations or purges interrupt. Each
/// interruption needs another truncation or purge, so only a bug can reach this number.
const ATTEMPTS_MAX: usize = 100;

/// Returns the entries of a range that the log has, in order: at most `bytes_max` bytes of them,
/// but at least one entry.
pub(super) fn read(
    shared: &Shared,
    tree: &Tree,
    range: Range<u64>,
    bytes_max: usize,
) -> io::Result<Vec<Entry>> {
    for _ in 0..ATTEMPTS_MAX {
        if let Some(entries) = attempt(shared, tree, range.clone(), bytes_max)? {
            return Ok(entries);
        }
    }
    Err(io::Error::other(format!("log entries {range:?} kept changing while they were read")))
}

/// The same as [`read`], but only if all entries are in memory.
pub(super) fn cached(shared: &Shared, range: Range<u64>, bytes_max: usize) -> Option<Vec<Entry>> {
    let state = shared.lock();
    let (next, end) = (range.start.max(state.first), range.end.min(state.next().unwrap_or(0)));
    let mut entries = Vec::new();
    if next < end {
        if next < state.cache_first {
            return None;
        }
        state.copy_cached(next, end, bytes_max, &mut entries);
    }
    Some(entries)
}

/// Returns `None` if the log changed during the read.
fn attempt(
    shared: &Shared,
    tree: &Tree,
    range: Range<u64>,
    bytes_max: usize,
) -> io::Result<Option<Vec<Entry>>> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut bytes = 0;
    let mut next = range.start;
    let mut epoch = None;
    loop {
        // The end of the part that is read from the tree. Later blocks of the tree may
        // already be truncated.
        let tree_end;
        {
            let state = shared.lock();
            if *epoch.get_or_insert(state.epoch) != state.epoch {
                return Ok(None);
            }
            if next < state.first {
                if !entries.is_empty() {
                    return Ok(None);
                }
                next = state.first;
            }
            let end = range.end.min(state.next().unwrap_or(0));
            if next >= end || (bytes >= bytes_max && !entries.is_empty()) {
                return Ok(Some(entries));
            }
            if next >= state.cache_first {
                state.copy_cached(next, end, bytes_max.saturating_sub(bytes), &mut entries);
                return Ok(Some(entries));
            }
            tree_end = end.min(state.cache_first);
        }
        let block = match read_pack(tree, next) {
            Ok(block) => block,
            // A concurrent change may remove or replace the block. Otherwise the error is damage.
            Err(error) => {
                let state = shared.lock();
                if next < state.first || epoch != Some(state.epoch) {
                    return Ok(None);
                }
                return Err(error);
            }
        };
        for entry in block {
            if entry.log_id.index >= tree_end {
                break;
            }
            let entry_bytes = entry_bytes(&entry);
            if bytes + entry_bytes > bytes_max && !entries.is_empty() {
                return confirm(shared, epoch, entries);
            }
            if entry.log_id.index == next {
                bytes += entry_bytes;
                next += 1;
                entries.push(entry);
            }
        }
    }
}

/// Returns the entries, unless the log was truncated during the read.
fn confirm(
    shared: &Shared,
    epoch: Option<u64>,
    entries: Vec<Entry>,
) -> io::Result<Option<Vec<Entry>>> {
    Ok((epoch == Some(shared.lock().epoch)).then_some(entries))
}

/// Reads the entries of the block that contains this index.
pub(super) fn read_pack(tree: &Tree, index: u64) -> io::Result<Vec<Entry>> {
    let what = || format!("log entry {index}");
    let unusable = |reason: Reason| io::Error::from(Error::unusable(what(), reason));
    let damaged = |reason: &'static str| unusable(reason.into());
    let last_key = tree.last_key_up_to(format::ENTRIES, &format::part_key(index, u16::MAX))?;
    let (first, _) = last_key
        .and_then(|key| format::parse_part_key(&key))
        .ok_or_else(|| damaged("it is missing"))?;
    let part = |part| {
        let plaintext = tree
            .get(&format::part_key(first, part))
            .map_err(|error| io::Error::from(Error::unreadable(what(), tree.dir(), error)))?;
        plaintext.ok_or_else(|| damaged("a part of it is missing"))
    };
    let mut head = BlockHead::parse(part(0)?).map_err(damaged)?;
    if head.parts > 1 {
        let mut body = BytesMut::from(std::mem::take(&mut head.body));
        for number in 1..head.parts {
            let (sequence, rest) = format::split_value(part(number)?).map_err(damaged)?;
            if sequence != head.sequence + u64::from(number) {
                return Err(damaged("its parts are from different writes"));
            }
            body.extend_from_slice(&rest);
        }
        head.body = body.freeze();
    }
    let entries = head.decode(first).map_err(unusable)?;
    match entries.last() {
        Some(last) if last.log_id.index >= index => Ok(entries),
        _ => Err(damaged("it is missing")),
    }
}
