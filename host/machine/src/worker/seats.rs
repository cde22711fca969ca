//! An index from topics to the watchers that they concern.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

use conclave_types::Event;

/// A half-open range of topics.
#[derive(Clone, Debug)]
pub(super) struct TopicRange {
    pub(super) from: Vec<u8>,
    /// The exclusive end. Empty means no end.
    pub(super) to: Vec<u8>,
}

impl TopicRange {
    pub(super) fn contains(&self, topic: &[u8]) -> bool {
        topic >= &self.from[..] && (self.to.is_empty() || topic < &self.to[..])
    }

    pub(super) fn has_any_of(&self, events: &[Event]) -> bool {
        events.iter().any(|event| self.contains(&event.topic))
    }

    /// Returns the bytes with which all topics of the range begin.
    fn common_prefix(&self) -> &[u8] {
        let same = self.from.iter().zip(&self.to).take_while(|(from, to)| from == to);
        &self.from[..same.count()]
    }
}

/// The part of a watcher's state that entries change. Changed only with the lock on the events held.
#[derive(Default)]
pub(super) struct Seat {
    /// The first entry with events in the watcher's range that it has not taken; 0 if there is none.
    pending: AtomicU64,
    /// Whether the watcher was ended because another state replaced this node's state.
    replaced: AtomicBool,
    /// Notified when one of the two changes, or when the worker stops.
    changed: Notify,
}

impl Seat {
    pub(super) fn pending(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }

    pub(super) fn set_pending(&self, index: u64) {
        self.pending.store(index, Ordering::Relaxed);
    }

    /// Records that an entry may have events for the watcher.
    pub(super) fn happened(&self, index: u64) {
        if self.pending() == 0 {
            self.set_pending(index);
            self.wake();
        }
    }

    /// Ends the watcher, because another state replaces this node's state.
    pub(super) fn replace(&self) {
        self.replaced.store(true, Ordering::Relaxed);
        self.wake();
    }

    pub(super) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }

    pub(super) fn wake(&self) {
        self.changed.notify_one();
    }

    pub(super) async fn woken(&self) {
        self.changed.notified().await;
    }
}

/// The watchers' seats, indexed by topic. Most watchers have the range of one key, or of all keys
/// with a prefix. They are found by the bytes that their range has in common with a topic.
#[derive(Default)]
pub(super) struct Seats {
    by_prefix: HashMap<Vec<u8>, Vec<(TopicRange, Arc<Seat>)>>,
    /// The lengths of these prefixes, with the number of prefixes of each length.
    lengths: BTreeMap<usize, usize>,
}

impl Seats {
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Seat>> {
        self.by_prefix.values().flatten().map(|(_, seat)| seat)
    }

    /// Returns the seats whose range contains a topic.
    pub(super) fn of_topic(&self, topic: &[u8]) -> impl Iterator<Item = &Arc<Seat>> {
        let prefixes = self.lengths.keys().map_while(|length| topic.get(..*length));
        let seats = prefixes.filter_map(|prefix| self.by_prefix.get(prefix)).flatten();
        seats.filter(|(range, _)| range.contains(topic)).map(|(_, seat)| seat)
    }

    pub(super) fn insert(&mut self, range: TopicRange, seat: Arc<Seat>) {
        let prefix = range.common_prefix();
        if !self.by_prefix.contains_key(prefix) {
            *self.lengths.entry(prefix.len()).or_default() += 1;
        }
        self.by_prefix.entry(prefix.to_vec()).or_default().push((range, seat));
    }

    pub(super) fn remove(&mut self, range: &TopicRange, seat: &Arc<Seat>) {
        let prefix = range.common_prefix();
        let Some(seats) = self.by_prefix.get_mut(prefix) else {
            unreachable!("a watcher keeps its seat until it is dropped");
        };
        seats.retain(|(_, other)| !Arc::ptr_eq(other, seat));
        if seats.is_empty() {
            self.by_prefix.remove(prefix);
            let count = self.lengths.entry(prefix.len()).or_default();
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&prefix.len());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Generates topics and range bounds that are often related.
    fn topic() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(&b"ab\x00\xff"[..]), 0..5)
    }

    proptest! {
        #[test]
        fn an_event_wakes_those_in_whose_range_its_topic_lies(
            ranges in prop::collection::vec((topic(), topic()), 0..20),
            removed in any::<prop::sample::Index>(),
            topics in prop::collection::vec(topic(), 1..20),
        ) {
            let mut seats = Seats::default();
            let range = |(from, to)| (TopicRange { from, to }, Arc::<Seat>::default());
            let mut all: Vec<_> = ranges.into_iter().map(range).collect();
            for (range, seat) in &all {
                seats.insert(range.clone(), Arc::clone(seat));
            }
            if !all.is_empty() {
                let (range, seat) = all.remove(removed.index(all.len()));
                seats.remove(&range, &seat);
            }
            for topic in topics {
                let mut found: Vec<_> = seats.of_topic(&topic).map(Arc::as_ptr).collect();
                let wanted = all.iter().filter(|(range, _)| range.contains(&topic));
                let mut wanted: Vec<_> = wanted.map(|(_, seat)| Arc::as_ptr(seat)).collect();
                found.sort();
                wanted.sort();
                prop_assert_eq!(found, wanted);
            }
            for (range, seat) in &all {
                seats.remove(range, seat);
            }
            prop_assert!(seats.by_prefix.is_empty() && seats.lengths.is_empty());
        }
    }

    #[test]
    fn watchers_of_other_keys_and_prefixes_are_not_looked_at() {
        let mut seats = Seats::default();
        for number in 0..1_000 {
            let from = format!("user/{number:03}").into_bytes();
            let key = TopicRange { to: [&from[..], b"\0"].concat(), from };
            seats.insert(key, Arc::default());
        }
        assert_eq!(seats.by_prefix.len(), 1_000);
        assert_eq!(seats.of_topic(b"user/007").count(), 1);
        assert_eq!(seats.of_topic(b"user/7").count(), 0);
    }
}
