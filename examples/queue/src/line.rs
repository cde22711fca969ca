//! One queue: its messages and their states.

use std::collections::{BTreeMap, BTreeSet};

use crate::limits::RECEIVES_DEFAULT;

/// One queue.
///
/// 1. Each message is ready, leased or dead. `ready` and `dead` contain the ids of the messages in
///    these states.
/// 2. A message keeps its position: a message that becomes ready again is delivered before newer ones.
#[derive(Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) receives_max: u32,
    pub(crate) messages: BTreeMap<u64, Message>,
    pub(crate) keys: BTreeMap<String, Key>,
    ready: BTreeSet<u64>,
    dead: BTreeSet<u64>,
}

#[derive(Debug, PartialEq)]
pub(crate) struct Message {
    pub(crate) payload: Vec<u8>,
    pub(crate) enqueued_at_ms: u64,
    /// The number of deliveries.
    pub(crate) receives: u32,
    pub(crate) place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Ready,
    Leased { receipt: u64, until_ms: u64 },
    Dead,
}

/// An idempotency key, with the id of its message.
#[derive(Debug, PartialEq)]
pub(crate) struct Key {
    pub(crate) id: u64,
    pub(crate) kept_until_ms: u64,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            receives_max: RECEIVES_DEFAULT,
            messages: BTreeMap::new(),
            keys: BTreeMap::new(),
            ready: BTreeSet::new(),
            dead: BTreeSet::new(),
        }
    }
}

impl Line {
    pub(crate) fn insert(&mut self, id: u64, message: Message) {
        match message.place {
            Place::Ready => self.ready.insert(id),
            Place::Dead => self.dead.insert(id),
            Place::Leased { .. } => false,
        };
        self.messages.insert(id, message);
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<Message> {
        self.ready.remove(&id);
        self.dead.remove(&id);
        self.messages.remove(&id)
    }

    /// Returns the next message to deliver.
    pub(crate) fn next_ready(&self) -> Option<(u64, &Message)> {
        let id = self.ready.first()?;
        Some((*id, self.messages.get(id)?))
    }

    /// Delivers a message under a lease.
    pub(crate) fn lease(&mut self, id: u64, receipt: u64, until_ms: u64) -> Option<&Message> {
        let message = self.messages.get_mut(&id)?;
        self.ready.remove(&id);
        message.receives = message.receives.saturating_add(1);
        message.place = Place::Leased { receipt, until_ms };
        Some(message)
    }

    /// Ends the lease of a message. Returns whether the message is now a dead letter.
    pub(crate) fn give_back(&mut self, id: u64) -> bool {
        let Some(message) = self.messages.get_mut(&id) else { return false };
        let dead = message.receives >= self.receives_max;
        if dead {
            message.place = Place::Dead;
            self.dead.insert(id);
        } else {
            message.place = Place::Ready;
            self.ready.insert(id);
        }
        dead
    }

    /// Makes the oldest dead letter ready again, as if it had never been received.
    pub(crate) fn redrive(&mut self) -> bool {
        let Some(id) = self.dead.pop_first() else { return false };
        if let Some(message) = self.messages.get_mut(&id) {
            message.place = Place::Ready;
            message.receives = 0;
            self.ready.insert(id);
        }
        true
    }

    pub(crate) fn ready(&self) -> usize {
        self.ready.len()
    }

    pub(crate) fn dead(&self) -> usize {
        self.dead.len()
    }

    /// Iterates over the dead letters after this id, the oldest first.
    pub(crate) fn dead_after(&self, after: u64) -> impl Iterator<Item = (u64, &Message)> {
        let ids = self.dead.range(after.saturating_add(1)..);
        ids.filter_map(|id| Some((*id, self.messages.get(id)?)))
    }

    /// Returns the oldest message that is not a dead letter.
    pub(crate) fn oldest(&self) -> Option<&Message> {
        self.messages.values().find(|message| message.place != Place::Dead)
    }
}
