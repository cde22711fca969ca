//! Due times with keys, for state machines in which something ends or begins by itself.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet, btree_map},
};

/// A set of timers. Each key has at most one due time, in milliseconds of [`Context::time_ms`](crate::Context).
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
/// 1. Timers become due in the order of their times, those of the same time in the order of their keys. How they were
///    set does not matter, so equal sets behave alike.
/// 2. [`Self::next`] takes constant time, the other methods logarithmic time for each timer.
/// 3. Nothing becomes due by itself: the owner calls [`Self::due`] in `tick`, and in commands whose answers depend on
///    what has ended.
///
/// # In snapshots
///
/// Times that follow from the rest of the state are set again as it is restored. Others are saved as the pairs of
/// [`Self::iter`], which are in the order of the keys, and collected again.
///
/// # Caveats
///
/// Each key is kept twice. With long keys use a type that is cheap to clone, such as `Rc<str>`.
///
/// # Invariant
///
/// `order` holds exactly the (time, key) of each entry of `times`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timers<K> {
    times: BTreeMap<K, u64>,
    order: BTreeSet<(u64, K)>,
}

impl<K: Ord + Clone> Timers<K> {
    /// No timers.
    pub const fn new() -> Self {
        Self { times: BTreeMap::new(), order: BTreeSet::new() }
    }

    /// Sets the timer of a key, in place of the one that it had. Returns the time of that one.
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

    /// The time of a key's timer.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<u64>
    where
        K: Borrow<Q>,
    {
        self.times.get(key).copied()
    }

    /// The earliest time: the value for [`Machine::wake_at`](crate::Machine::wake_at).
    pub fn next(&self) -> Option<u64> {
        self.order.first().map(|(at_ms, _)| *at_ms)
    }

    /// Removes the timers that are due at `now_ms`, a time of exactly `now_ms` included, and returns their keys: the
    /// earliest first, and at most `limit`, which bounds the work of one entry. The others stay due, so [`Self::next`]
    /// gives a time that has passed, and a tick follows at once.
    pub fn due(&mut self, now_ms: u64, limit: usize) -> Vec<K> {
        let mut keys = Vec::new();
        while keys.len() < limit && self.next().is_some_and(|at_ms| at_ms <= now_ms) {
            let Some((_, key)) = self.order.pop_first() else { break };
            self.times.remove(&key);
            keys.push(key);
        }
        keys
    }

    /// The keys and their times, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, u64)> {
        self.times.iter().map(|(key, at_ms)| (key, *at_ms))
    }

    /// The number of timers.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// Whether there are none.
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

    /// The keys and their times, in the order of the keys.
    fn into_iter(self) -> Self::IntoIter {
        self.times.into_iter()
    }
}
