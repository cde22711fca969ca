//! The flags, the segments and the history.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use conclave_sdk::{Context, Failure, prost::Message as _};

use crate::{
    limits::{BYTES_MAX, CHANGES_MAX},
    pb::{self, Change, Flag, change},
};

/// The whole state. `bytes` is derived from the other fields.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) last_change: u64,
    flags: BTreeMap<String, Flag>,
    segments: BTreeMap<String, Segment>,
    changes: VecDeque<Change>,
    bytes: usize,
}

/// A list of subjects, sorted for fast lookup.
pub(crate) struct Segment {
    pub(crate) version: u64,
    pub(crate) subjects: BTreeSet<String>,
}

impl Segment {
    pub(crate) fn message(&self, name: &str) -> pb::Segment {
        let subjects = self.subjects.iter().cloned().collect();
        pb::Segment { name: name.to_owned(), version: self.version, subjects }
    }

    /// Returns the bytes that the segment counts: those of its message, as for a [`Flag`].
    fn counted_bytes(&self, name: &str) -> usize {
        self.message(name).encoded_len()
    }
}

impl State {
    pub(crate) fn new(last_change: u64) -> Self {
        Self { last_change, ..Self::default() }
    }

    pub(crate) fn flag(&self, name: &str) -> Option<&Flag> {
        self.flags.get(name)
    }

    pub(crate) fn flags(&self) -> &BTreeMap<String, Flag> {
        &self.flags
    }

    pub(crate) fn segment(&self, name: &str) -> Option<&Segment> {
        self.segments.get(name)
    }

    pub(crate) fn segments(&self) -> &BTreeMap<String, Segment> {
        &self.segments
    }

    /// Iterates over the changes, the oldest first.
    pub(crate) fn changes(&self) -> impl DoubleEndedIterator<Item = &Change> {
        self.changes.iter()
    }

    /// Checks that `added` bytes fit after `removed` bytes are gone. A change that does not make
    /// the state larger always fits.
    pub(crate) fn check_room(&self, added: usize, removed: usize) -> Result<(), Failure> {
        if added <= removed || self.bytes - removed + added <= BYTES_MAX {
            return Ok(());
        }
        Err(Failure::resource_exhausted(format!(
            "flags and segments hold {} of {BYTES_MAX} bytes; delete archived ones",
            self.bytes
        )))
    }

    /// Returns the bytes that a flag counts.
    pub(crate) fn flag_bytes(&self, name: &str) -> usize {
        self.flags.get(name).map_or(0, Flag::encoded_len)
    }

    /// Returns the bytes that a segment counts.
    pub(crate) fn segment_bytes(&self, name: &str) -> usize {
        self.segments.get(name).map_or(0, |segment| segment.counted_bytes(name))
    }

    pub(crate) fn insert_flag(&mut self, flag: Flag) {
        self.remove_flag(&flag.name.clone());
        self.bytes += flag.encoded_len();
        self.flags.insert(flag.name.clone(), flag);
    }

    pub(crate) fn remove_flag(&mut self, name: &str) {
        self.bytes -= self.flag_bytes(name);
        self.flags.remove(name);
    }

    pub(crate) fn insert_segment(&mut self, name: &str, segment: Segment) {
        self.remove_segment(name);
        self.bytes += segment.counted_bytes(name);
        self.segments.insert(name.to_owned(), segment);
    }

    pub(crate) fn remove_segment(&mut self, name: &str) {
        self.bytes -= self.segment_bytes(name);
        self.segments.remove(name);
    }

    /// Adds a change to the history and returns its number. Drops the oldest change if the history
    /// is full.
    pub(crate) fn record(
        &mut self,
        context: &Context,
        kind: change::Kind,
        name: &str,
        what: String,
        note: String,
    ) -> u64 {
        self.last_change += 1;
        let number = self.last_change;
        self.push_change(Change {
            number,
            kind: kind.into(),
            name: name.to_owned(),
            what,
            note,
            principal: context.principal.clone(),
            time_ms: context.time_ms,
        });
        number
    }

    pub(crate) fn push_change(&mut self, change: Change) {
        if self.changes.len() == CHANGES_MAX {
            self.changes.pop_front();
        }
        self.changes.push_back(change);
    }
}
