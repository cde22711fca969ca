//! Holders of locks, and waiting owners.

use std::collections::{BTreeMap, VecDeque};

use conclave_sdk::Timers;

/// All locks that are held.
///
/// 1. A free lock is not stored, and has no waiting owners.
/// 2. Every token is given at most once, even if its lock becomes free.
/// 3. `ends` and `waiting_total` are derived from `locks`, for speed.
#[derive(Default)]
pub(crate) struct State {
    last_token: u64,
    locks: BTreeMap<String, Held>,
    /// The ends of the leases.
    ends: Timers<String>,
    waiting_total: usize,
}

/// A held lock.
pub(crate) struct Held {
    pub(crate) owner: String,
    pub(crate) token: u64,
    pub(crate) expires_at_ms: u64,
    /// The waiting owners, the next one first.
    pub(crate) waiting: VecDeque<Waiter>,
}

/// An owner that waits for a lock.
pub(crate) struct Waiter {
    pub(crate) owner: String,
    /// The duration of the lease once it begins.
    pub(crate) ttl_ms: u64,
}

impl State {
    pub(crate) fn new(last_token: u64) -> Self {
        Self { last_token, ..Self::default() }
    }

    pub(crate) fn last_token(&self) -> u64 {
        self.last_token
    }

    pub(crate) fn len(&self) -> usize {
        self.locks.len()
    }

    pub(crate) fn waiting_total(&self) -> usize {
        self.waiting_total
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Held> {
        self.locks.get(name)
    }

    /// Iterates over the locks after `after`, in the order of their names.
    pub(crate) fn after(&self, after: &str) -> impl Iterator<Item = (&String, &Held)> {
        let range = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        self.locks.range::<str, _>(range)
    }

    /// Returns the time at which the next lease ends.
    pub(crate) fn next_end_ms(&self) -> Option<u64> {
        self.ends.next()
    }

    /// Grants a free lock.
    pub(crate) fn grant(&mut self, name: &str, owner: String, expires_at_ms: u64) {
        self.last_token += 1;
        let token = self.last_token;
        self.insert(name, Held { owner, token, expires_at_ms, waiting: VecDeque::new() });
    }

    /// Inserts a lock from a snapshot.
    pub(crate) fn insert(&mut self, name: &str, held: Held) {
        self.waiting_total += held.waiting.len();
        self.ends.set(name.to_owned(), held.expires_at_ms);
        self.locks.insert(name.to_owned(), held);
    }

    /// Moves the end of a lease.
    pub(crate) fn extend(&mut self, name: &str, expires_at_ms: u64) {
        let Some(held) = self.locks.get_mut(name) else { return };
        held.expires_at_ms = expires_at_ms;
        self.ends.set(name.to_owned(), expires_at_ms);
    }

    /// Adds an owner to the queue, or changes the ttl of a waiting owner. Returns its place, from 1.
    pub(crate) fn wait(&mut self, name: &str, owner: &str, ttl_ms: u64) -> usize {
        let Some(held) = self.locks.get_mut(name) else { return 0 };
        if let Some(place) = held.waiting.iter().position(|waiter| waiter.owner == owner) {
            held.waiting[place].ttl_ms = ttl_ms;
            return place + 1;
        }
        held.waiting.push_back(Waiter { owner: owner.to_owned(), ttl_ms });
        self.waiting_total += 1;
        held.waiting.len()
    }

    /// Removes an owner from the queue. Returns whether it was waiting.
    pub(crate) fn leave(&mut self, name: &str, owner: &str) -> bool {
        let Some(held) = self.locks.get_mut(name) else { return false };
        let Some(place) = held.waiting.iter().position(|waiter| waiter.owner == owner) else {
            return false;
        };
        held.waiting.remove(place);
        self.waiting_total -= 1;
        true
    }

    /// Ends a lease and grants the lock to the next waiting owner, whose lease begins now.
    pub(crate) fn end(&mut self, name: &str, time_ms: u64) {
        let Some(mut held) = self.locks.remove(name) else { return };
        self.ends.cancel(name);
        let Some(next) = held.waiting.pop_front() else { return };
        self.waiting_total -= 1;
        self.last_token += 1;
        // `insert` counts the other waiting owners again.
        self.waiting_total -= held.waiting.len();
        let expires_at_ms = time_ms.saturating_add(next.ttl_ms);
        let token = self.last_token;
        self.insert(name, Held { owner: next.owner, token, expires_at_ms, waiting: held.waiting });
    }

    /// Ends the lease on this lock if its time has come.
    pub(crate) fn settle(&mut self, name: &str, time_ms: u64) {
        if self.locks.get(name).is_some_and(|held| held.expires_at_ms <= time_ms) {
            self.end(name, time_ms);
        }
    }

    /// Ends leases whose time has come, the earliest first, and at most `leases_max`.
    pub(crate) fn sweep(&mut self, time_ms: u64, leases_max: usize) {
        for name in self.ends.due(time_ms, leases_max) {
            self.end(&name, time_ms);
        }
    }
}
