//! All queues, and the timers of their leases and keys.

use std::collections::BTreeMap;

use conclave_sdk::Timers;

use crate::{
    limits::MESSAGE_OVERHEAD_BYTES,
    line::{Key, Line, Message, Place},
};

/// All queues.
///
/// `ends`, `keys_total` and `bytes` are derived from `lines`, for speed. Every change of a lease or
/// a key must update them, so all such changes go through this type.
#[derive(Default, Debug, PartialEq)]
pub(crate) struct State {
    pub(crate) last_id: u64,
    lines: BTreeMap<String, Line>,
    ends: Timers<End>,
    keys_total: usize,
    bytes: usize,
}

/// A lease or key that ends at a given time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Lease { queue: String, id: u64 },
    Key { queue: String, key: String },
}

impl End {
    fn lease(queue: &str, id: u64) -> Self {
        Self::Lease { queue: queue.to_owned(), id }
    }

    fn key(queue: &str, key: &str) -> Self {
        Self::Key { queue: queue.to_owned(), key: key.to_owned() }
    }
}

fn counted_bytes(message: &Message) -> usize {
    message.payload.len() + MESSAGE_OVERHEAD_BYTES
}

impl State {
    pub(crate) fn new(last_id: u64) -> Self {
        Self { last_id, ..Self::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.lines.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn keys_total(&self) -> usize {
        self.keys_total
    }

    pub(crate) fn line(&self, queue: &str) -> Option<&Line> {
        self.lines.get(queue)
    }

    pub(crate) fn lines(&self) -> impl Iterator<Item = (&String, &Line)> {
        self.lines.iter()
    }

    /// Returns the time at which the next lease or key ends.
    pub(crate) fn next_end_ms(&self) -> Option<u64> {
        self.ends.next()
    }

    /// Returns the queue of this name. Creates it if it does not exist.
    pub(crate) fn line_mut(&mut self, queue: &str) -> &mut Line {
        self.lines.entry(queue.to_owned()).or_default()
    }

    pub(crate) fn insert(&mut self, queue: &str, id: u64, message: Message) {
        self.bytes += counted_bytes(&message);
        if let Place::Leased { until_ms, .. } = message.place {
            self.ends.set(End::lease(queue, id), until_ms);
        }
        self.line_mut(queue).insert(id, message);
    }

    /// Stores a key. An expired key of the same name may still be there if no sweep has removed it
    /// yet. Its timer is then replaced.
    pub(crate) fn insert_key(&mut self, queue: &str, key: String, made: Key) {
        self.ends.set(End::key(queue, &key), made.kept_until_ms);
        if self.line_mut(queue).keys.insert(key, made).is_none() {
            self.keys_total += 1;
        }
    }

    pub(crate) fn remove(&mut self, queue: &str, id: u64) {
        let Some(message) = self.lines.get_mut(queue).and_then(|line| line.remove(id)) else {
            return;
        };
        self.bytes -= counted_bytes(&message);
        self.ends.cancel(&End::lease(queue, id));
    }

    /// Delivers a message under a lease, and returns it.
    pub(crate) fn lease(
        &mut self,
        queue: &str,
        id: u64,
        receipt: u64,
        until_ms: u64,
    ) -> Option<&Message> {
        let message = self.lines.get_mut(queue)?.lease(id, receipt, until_ms)?;
        self.ends.set(End::lease(queue, id), until_ms);
        Some(message)
    }

    /// Ends the lease of a message. Returns whether the message is now a dead letter.
    pub(crate) fn give_back(&mut self, queue: &str, id: u64) -> bool {
        self.ends.cancel(&End::lease(queue, id));
        self.lines.get_mut(queue).is_some_and(|line| line.give_back(id))
    }

    /// Removes a queue. Returns the number of its messages.
    pub(crate) fn delete(&mut self, queue: &str) -> usize {
        let Some(line) = self.lines.remove(queue) else { return 0 };
        for (&id, message) in &line.messages {
            self.bytes -= counted_bytes(message);
            self.ends.cancel(&End::lease(queue, id));
        }
        self.keys_total -= line.keys.len();
        for key in line.keys.keys() {
            self.ends.cancel(&End::key(queue, key));
        }
        line.messages.len()
    }

    /// Ends leases and keys whose time has come, the earliest first, and at most `ends_max`.
    pub(crate) fn sweep(&mut self, time_ms: u64, ends_max: usize) {
        for end in self.ends.due(time_ms, ends_max) {
            match end {
                End::Lease { queue, id } => _ = self.give_back(&queue, id),
                End::Key { queue, key } => {
                    let line = self.lines.get_mut(&queue);
                    let removed = line.and_then(|line| line.keys.remove(&key));
                    self.keys_total -= usize::from(removed.is_some());
                }
            }
        }
    }
}
