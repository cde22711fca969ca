//! The keys, in maps that share structure: a copy costs nothing, however large the store is.
//!
//! That makes a snapshot a copy, and an entry of several operations all-or-none: it runs on a copy.

use std::{ops::Bound, sync::Arc};

use imbl::{OrdMap, OrdSet};

use crate::{
    key::{Key, Sought},
    limits::RECORD_OVERHEAD_BYTES,
};

/// What a key holds.
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

/// A key's value and history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) content: Content,
    pub(crate) create_revision: u64,
    pub(crate) mod_revision: u64,
    pub(crate) version: u64,
    /// 0: never.
    pub(crate) expires_at_ms: u64,
}

impl Record {
    /// A key is gone at the very millisecond that it expires.
    pub(crate) fn is_live(&self, time_ms: u64) -> bool {
        self.expires_at_ms == 0 || time_ms < self.expires_at_ms
    }
}

/// What a record counts towards the limit of the store.
pub(crate) fn counted_bytes(key: &str, content: &Content) -> u64 {
    (key.len() + content.bytes().len() + RECORD_OVERHEAD_BYTES) as u64
}

/// The whole state.
///
/// # Invariants
///
/// - `bytes` is the sum of [`counted_bytes`] over the records, expired ones included. It follows from
///   them, so it is no part of a snapshot.
/// - `expiries` holds exactly (`expires_at_ms`, key) of every record that expires.
/// - 1 ≤ `create_revision` ≤ `mod_revision` ≤ `revision`, and `version` ≥ 1, for every record.
#[derive(Clone, Default)]
pub(crate) struct State {
    revision: u64,
    bytes: u64,
    // Behind `Arc`, so that copying a tree's node copies pointers, not keys and values.
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

    /// How many records there are, expired ones included.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// What the records count towards the limit of the store, expired ones included.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What a put of `content` would make of [`State::bytes`].
    pub(crate) fn bytes_with(&self, key: &str, content: &Content) -> u64 {
        let old = self.records.get(&Sought(key)).map_or(0, |old| counted_bytes(key, &old.content));
        self.bytes - old + counted_bytes(key, content)
    }

    /// The record of a key that has not expired by `time_ms`.
    pub(crate) fn get(&self, key: &str, time_ms: u64) -> Option<&Record> {
        self.records
            .get(&Sought(key))
            .map(|record| &**record)
            .filter(|record| record.is_live(time_ms))
    }

    /// The records from a key on, expired ones included.
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

    /// Puts the record that `make` gives for the live one under the key, if there is one.
    pub(crate) fn put(
        &mut self,
        key: &str,
        time_ms: u64,
        make: impl FnOnce(Option<&Record>) -> Record,
    ) {
        // Most puts are to a key that is there: one search, and the key stays.
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

    /// Removes a key, expired or not, and gives what it held.
    pub(crate) fn remove(&mut self, key: &str) -> Option<Arc<Record>> {
        let (key, record) = self.records.remove_with_key(&Sought(key))?;
        self.bytes -= counted_bytes(&key, &record.content);
        if record.expires_at_ms != 0 {
            self.expiries.remove(&(record.expires_at_ms, key));
        }
        Some(record)
    }

    /// When the next key expires.
    pub(crate) fn next_expiry_ms(&self) -> Option<u64> {
        self.expiries.get_min().map(|(expires_at_ms, _)| *expires_at_ms)
    }

    /// Whether a key has expired by `time_ms` and is still here.
    pub(crate) fn has_expired(&self, time_ms: u64) -> bool {
        self.next_expiry_ms().is_some_and(|expires_at_ms| expires_at_ms <= time_ms)
    }

    /// Removes the oldest of the keys that have expired by `time_ms`. It was invisible already; this gives
    /// its memory back.
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
