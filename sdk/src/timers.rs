//! Timers with keys, for state machines in which something expires or starts at a given time.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet, btree_map},
};

/// A set of timers. Each key has at most one due time, in milliseconds of
/// [`Context::time_ms`](crate::Context).
///
/// ```
/// # use conclave_sdk::Timers;
/// let mut timers = Timers::new();
/// timers.set("lease of a", 1_000);
/// timers.set("lease of b", 2_000);
/// timers.set("lease of a", 3_000); // renewed
/// assert_eq!(timers.next(), Some(2_000)); // for `Machine::wake_at`
/// assert_eq!(timers.due(2_500, 100), ["lease of b"]); // for `Machine::tick`
/// assert_eq!(timers.next(), Some(3_000));
/// ```
///
/// # Contract
///
/// 1. Timers become due in the order of their times. Timers with equal times become due in the order
///    of their keys. The order in which they were set does not matter, so equal sets behave the same.
/// 2. [`Self::next`] takes constant time, the other methods logarithmic time per timer.
/// 3. No timer fires by itself. The owner calls [`Self::due`] in `tick`, and in commands whose
///    replies depend on which timers have expired.
///
/// # In snapshots
///
/// Set the times that can be computed from the rest of the state again during the restore. Save the other
/// times as the pairs of [`Self::iter`], which are in the order of the keys, and collect them again.
///
/// # Caveats
///
/// Each key is stored twice. For long keys use a type that is cheap to clone, such as `Rc<str>`.
///
/// # Invariant
///
/// `order` holds exactly one (time, key) pair for each entry of `times`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timers<K> {
    times: BTreeMap<K, u64>,
    order: BTreeSet<(u64, K)>,
}

impl<K: Ord + Clone> Timers<K> {
    /// Creates an empty set.
    pub const fn new() -> Self {
        Self { times: BTreeMap::new(), order: BTreeSet::new() }
    }

    /// Sets the timer of a key and replaces its previous timer. Returns the previous time.
    pub fn set(&mut self, key: K, at_ms: u64) -> Option<u64> {
        let old = self.times.insert(key.clone(), at_ms);
        let mut entry = (at_ms, key);
        if let Some(old) = old {
            entry.0 = old;
            self.order.remove(&entry);
            entry.0 = at_ms;
        }
        self.order.insert(entry);
        old
    }

    /// Removes the timer of a key. Returns its time.
    pub fn cancel<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<u64>
    where
        K: Borrow<Q>,
    {
        let (key, at_ms) = self.times.remove_entry(key)?;
        self.order.remove(&(at_ms, key));
        Some(at_ms)
    }

    /// Returns the time of a key's timer.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<u64>
    where
        K: Borrow<Q>,
    {
        self.times.get(key).copied()
    }

    /// Returns the earliest time: the value for [`Machine::wake_at`](crate::Machine::wake_at).
    pub fn next(&self) -> Option<u64> {
        self.order.first().map(|(at_ms, _)| *at_ms)
    }

    /// Removes the timers that are due at `now_ms`, including those at exactly `now_ms`, and
    /// returns their keys, the earliest first. Returns at most `limit` keys, which bounds the work
    /// of one entry. The other timers stay due: [`Self::next`] then returns a time in the past, and
    /// another tick follows at once.
    pub fn due(&mut self, now_ms: u64, limit: usize) -> Vec<K> {
        let mut keys = Vec::new();
        while keys.len() < limit && self.next().is_some_and(|at_ms| at_ms <= now_ms) {
            let Some((_, key)) = self.order.pop_first() else { break };
            self.times.remove(&key);
            keys.push(key);
        }
        keys
    }

    /// Iterates over the keys and their times, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, u64)> {
        self.times.iter().map(|(key, at_ms)| (key, *at_ms))
    }

    /// Returns the number of timers.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// Returns whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }
}

impl<K: Ord + Clone> Default for Timers<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Ord + Clone> Extend<(K, u64)> for Timers<K> {
    fn extend<I: IntoIterator<Item = (K, u64)>>(&mut self, timers: I) {
        for (key, at_ms) in timers {
            self.set(key, at_ms);
        }
    }
}

impl<K: Ord + Clone> FromIterator<(K, u64)> for Timers<K> {
    fn from_iter<I: IntoIterator<Item = (K, u64)>>(timers: I) -> Self {
        let mut collected = Self::new();
        collected.extend(timers);
        collected
    }
}

impl<K> IntoIterator for Timers<K> {
    type Item = (K, u64);
    type IntoIter = btree_map::IntoIter<K, u64>;

    /// Iterates over the keys and their times, in the order of the keys.
    fn into_iter(self) -> Self::IntoIter {
        self.times.into_iter()
    }
}
