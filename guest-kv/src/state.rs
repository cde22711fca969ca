//! The keys of the store, in maps that share structure. A copy takes constant time, regardless of
//! the store's size.
//!
//! Therefore a snapshot is a copy, and an entry with several operations runs on a copy to be atomic.

use std::{ops::Bound, sync::Arc};

use imbl::{OrdMap, OrdSet};

use crate::{
    key::{Key, Sought},
    limits::RECORD_OVERHEAD_BYTES,
};

/// The content of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Value(Vec<u8>),
    Text(String),
}

impl Content {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Value(bytes) => bytes,
            Self::Text(text) => text.as_bytes(),
        }
    }
}

/// The content and the metadata of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) content: Content,
    pub(crate) create_revision: u64,
    pub(crate) mod_revision: u64,
    pub(crate) version: u64,
    /// The expiry time in milliseconds. 0: never.
    pub(crate) expires_at_ms: u64,
}

impl Record {
    /// Returns whether the key is visible at `time_ms`. It is invisible from `expires_at_ms` on, inclusive.
    pub(crate) fn is_live(&self, time_ms: u64) -> bool {
        self.expires_at_ms == 0 || time_ms < self.expires_at_ms
    }
}

/// Returns the bytes that a record counts towards the limit of the store.
pub(crate) fn counted_bytes(key: &str, content: &Content) -> u64 {
    (key.len() + content.bytes().len() + RECORD_OVERHEAD_BYTES) as u64
}

/// The whole state.
///
/// # Invariants
///
/// - `bytes` is the sum of [`counted_bytes`] over all records, including expired ones. It is
///   derived from them, so it is not part of a snapshot.
/// - `expiries` holds exactly one (`expires_at_ms`, key) pair for every record that expires.
/// - 1 ≤ `create_revision` ≤ `mod_revision` ≤ `revision`, and `version` ≥ 1, for every record.
#[derive(Clone, Default)]
pub(crate) struct State {
    revision: u64,
    bytes: u64,
    // Behind `Arc`, so that copying a tree node copies pointers instead of records.
    records: OrdMap<Key, Arc<Record>>,
    expiries: OrdSet<(u64, Key)>,
}

impl State {
    pub(crate) fn new(revision: u64) -> Self {
        Self { revision, ..Self::default() }
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn next_revision(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    /// Returns the number of records, including expired ones.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns the bytes that all records count towards the limit of the store, including expired ones.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the value of [`State::bytes`] after a put of `content`.
    pub(crate) fn bytes_with(&self, key: &str, content: &Content) -> u64 {
        let old = self.records.get(&Sought(key)).map_or(0, |old| counted_bytes(key, &old.content));
        self.bytes - old + counted_bytes(key, content)
    }

    /// Returns the record of a key unless it has expired by `time_ms`.
    pub(crate) fn get(&self, key: &str, time_ms: u64) -> Option<&Record> {
        self.records
            .get(&Sought(key))
            .map(|record| &**record)
            .filter(|record| record.is_live(time_ms))
    }

    /// Iterates over the records from a key on, including expired ones.
    pub(crate) fn from(
        &self,
        start: Bound<&str>,
    ) -> impl Iterator<Item = (&Key, &Record)> + use<'_> {
        let range = self.records.range((start.map(Sought), Bound::Unbounded));
        range.map(|(key, record)| (key, &**record))
    }

    pub(crate) fn insert(&mut self, key: Key, record: Record) {
        let expires_at_ms = record.expires_at_ms;
        self.bytes += counted_bytes(&key, &record.content);
        if let Some(old) = self.records.insert(key.clone(), Arc::new(record)) {
            self.bytes -= counted_bytes(&key, &old.content);
            if old.expires_at_ms != 0 {
                self.expiries.remove(&(old.expires_at_ms, key.clone()));
            }
        }
        if expires_at_ms != 0 {
            self.expiries.insert((expires_at_ms, key));
        }
    }

    /// Replaces the record of a key by the result of `make`, which gets the current record unless
    /// it has expired.
    pub(crate) fn put(
        &mut self,
        key: &str,
        time_ms: u64,
        make: impl FnOnce(Option<&Record>) -> Record,
    ) {
        // Most puts are to an existing key: this takes one search, and the key is not copied.
        let Some(slot) = self.records.get_mut(&Sought(key)) else {
            return self.insert(Key::from(key), make(None));
        };
        let new = make(Some(&**slot).filter(|record| record.is_live(time_ms)));
        let (new_bytes, expires_at_ms) = (counted_bytes(key, &new.content), new.expires_at_ms);
        let old = std::mem::replace(slot, Arc::new(new));
        self.bytes = self.bytes - counted_bytes(key, &old.content) + new_bytes;
        if old.expires_at_ms != 0 {
            self.expiries.remove(&(old.expires_at_ms, Key::from(key)));
        }
        if expires_at_ms != 0 {
            self.expiries.insert((expires_at_ms, Key::from(key)));
        }
    }

    /// Removes a key, expired or not, and returns its record.
    pub(crate) fn remove(&mut self, key: &str) -> Option<Arc<Record>> {
        let (key, record) = self.records.remove_with_key(&Sought(key))?;
        self.bytes -= counted_bytes(&key, &record.content);
        if record.expires_at_ms != 0 {
            self.expiries.remove(&(record.expires_at_ms, key));
        }
        Some(record)
    }

    /// Returns the time at which the next key expires.
    pub(crate) fn next_expiry_ms(&self) -> Option<u64> {
        self.expiries.get_min().map(|(expires_at_ms, _)| *expires_at_ms)
    }

    /// Returns whether a key that has expired by `time_ms` is still stored.
    pub(crate) fn has_expired(&self, time_ms: u64) -> bool {
        self.next_expiry_ms().is_some_and(|expires_at_ms| expires_at_ms <= time_ms)
    }

    /// Removes the earliest key that has expired by `time_ms`. The key was invisible already; this
    /// frees its memory.
    pub(crate) fn sweep_one(&mut self, time_ms: u64) -> Option<Key> {
        if !self.has_expired(time_ms) {
            return None;
        }
        let (_, key) = self.expiries.remove_min()?;
        if let Some(record) = self.records.remove(&key) {
            self.bytes -= counted_bytes(&key, &record.content);
        }
        Some(key)
    }
}
