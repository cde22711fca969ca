//! Reading entries: the recent ones from memory, older ones from the tree.

use std::{io, ops::Range};

use bytes::BytesMut;

use super::{
    Error,
    format::{self, BlockHead},
    state::{Shared, entry_bytes},
    tree::Tree,
};
use crate::raft_types::Entry;

/// How often a read starts over because the log was truncated or purged meanwhile. Each time is an
/// event of its own, so this is never reached but by a bug.
const ATTEMPTS_MAX: usize = 100;

/// The entries of a range that the log has, from the first on: all of them, or as many as are worth
/// `bytes_max`, but at least one.
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

/// The same, if nothing of it has to be read from the tree.
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

/// Nothing if the log changed in the middle.
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
        // What of the tree may be read: behind it may lie what was truncated already.
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
            // A block may vanish or change under a reader. Only if nothing happened is it damage.
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

/// The entries, unless the log was truncated since they were read.
fn confirm(
    shared: &Shared,
    epoch: Option<u64>,
    entries: Vec<Entry>,
) -> io::Result<Option<Vec<Entry>>> {
    Ok((epoch == Some(shared.lock().epoch)).then_some(entries))
}

/// The entries of the block that holds this index; it holds at least that one.
pub(super) fn read_pack(tree: &Tree, index: u64) -> io::Result<Vec<Entry>> {
    let damaged = |reason: &dyn ToString| {
        io::Error::from(Error::damaged(format!("log entry {index}"), reason.to_string()))
    };
    let last_key = tree.last_key_up_to(format::ENTRIES, &format::part_key(index, u16::MAX))?;
    let (first, _) = last_key
        .and_then(|key| format::parse_part_key(&key))
        .ok_or_else(|| damaged(&"it is missing"))?;
    let part = |part| {
        let plaintext =
            tree.get(&format::part_key(first, part)).map_err(|error| damaged(&error))?;
        plaintext.ok_or_else(|| damaged(&"a part of it is missing"))
    };
    let mut head = BlockHead::parse(part(0)?).map_err(|reason| damaged(&reason))?;
    if head.parts > 1 {
        let mut body = BytesMut::from(std::mem::take(&mut head.body));
        for number in 1..head.parts {
            let (sequence, rest) =
                format::split_value(part(number)?).map_err(|reason| damaged(&reason))?;
            if sequence != head.sequence + u64::from(number) {
                return Err(damaged(&"its parts were not written together"));
            }
            body.extend_from_slice(&rest);
        }
        head.body = body.freeze();
    }
    let entries = head.decode(first).map_err(|reason| damaged(&reason))?;
    match entries.last() {
        Some(last) if last.log_id.index >= index => Ok(entries),
        _ => Err(damaged(&"it is missing")),
    }
}
