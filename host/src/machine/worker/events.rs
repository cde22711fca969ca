//! What happened, for those who watch.
//!
//! # Contract
//! 1. The newest events are kept in memory, in the order of the log: all of those after an index, the
//!    *floor*, up to the entry that the reader has applied last.
//! 2. A watcher sees each event after its place whose topic lies in its range, once and in order, or is told
//!    that they are not kept any more. It never waits for another watcher, and nobody waits for it.
//! 3. An entry's events are noted once, when the reader applies it first: a reader that is rebuilt applies
//!    entries again.
//!
//! # Caveat
//! A reader that is built from this node's own snapshot has not seen what happened before: the floor moves there,
//! and watchers behind it end. If another node's state takes the place of this one's, all watchers end, because
//! what they were sent may be no part of the cluster's history.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::watch;

use super::shared::{End, Shared};
use crate::{
    machine::{bench, error::WatchError},
    types::{Event, Outcome},
};

/// What is kept: a watcher that resumes after a lost connection should find its place, and with events of a
/// kilobyte this is a second of the fastest writes that a cluster takes.
const KEPT_BYTES_MAX: usize = 16 << 20;
/// What an event takes beside its bytes, about.
const EVENT_BYTES: usize = 96;
/// Entries that a watcher takes at once.
const TAKEN_COUNT: usize = 256;
/// Watchers at once. Each is woken by every entry.
const WATCHERS_MAX: usize = 1024;

/// The events of one entry.
struct Noted {
    index: u64,
    events: Vec<Event>,
}

impl Noted {
    fn bytes(&self) -> usize {
        let bytes = |event: &Event| event.topic.len() + event.payload.len() + EVENT_BYTES;
        self.events.iter().map(bytes).sum()
    }
}

#[derive(Default)]
struct Kept {
    /// All events after this index are kept.
    floor: u64,
    /// The last entry that was noted.
    reached: u64,
    noted: VecDeque<Noted>,
    bytes: usize,
}

/// See the module's page.
pub(super) struct Events {
    kept: Mutex<Kept>,
    /// Counts how often all watchers were ended. Changed with the lock held.
    generation: AtomicU64,
    /// Woken when there may be something new.
    changed: watch::Sender<()>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            generation: AtomicU64::new(0),
            changed: watch::Sender::new(()),
        }
    }
}

impl Events {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the reader has applied an entry. Only one that it has not applied before counts.
    pub(super) fn note(&self, index: u64, outcome: Option<Outcome>) {
        if bench::bare() {
            return;
        }
        let mut kept = self.lock();
        if index <= kept.reached {
            return;
        }
        kept.reached = index;
        if let Some(Outcome::Reply(reply)) = outcome
            && !reply.events.is_empty()
        {
            let noted = Noted { index, events: reply.events };
            kept.bytes += noted.bytes();
            kept.noted.push_back(noted);
            // The newest entry stays, also if it is larger alone.
            while kept.bytes > KEPT_BYTES_MAX
                && kept.noted.len() > 1
                && let Some(oldest) = kept.noted.pop_front()
            {
                kept.bytes -= oldest.bytes();
                kept.floor = oldest.index;
            }
            drop(kept);
            self.wake();
        }
    }

    /// Another node's state takes the place of the reader's, and is at `index`. No event is kept, also if the reader
    /// had reached the same index: its events may be those of a state machine that had diverged.
    pub(super) fn reset(&self, index: u64) {
        let mut kept = self.lock();
        *kept = Kept { floor: index, reached: index, ..Kept::default() };
        self.generation.fetch_add(1, Ordering::Release);
        drop(kept);
        self.wake();
    }

    /// Ends all watchers that there are.
    pub(super) fn end_watchers(&self) {
        let kept = self.lock();
        self.generation.fetch_add(1, Ordering::Release);
        drop(kept);
        self.wake();
    }

    /// The reader stands at `index`, without having applied what lies before it.
    pub(super) fn skip_to(&self, index: u64) {
        let mut kept = self.lock();
        if index <= kept.reached {
            return;
        }
        *kept = Kept { floor: index, reached: index, ..Kept::default() };
        drop(kept);
        self.wake();
    }

    /// Watchers look again: at what is new, or whether they end.
    pub(super) fn wake(&self) {
        // Without watchers it is an atomic load.
        if self.is_watched() {
            self.changed.send_replace(());
        }
    }

    /// Whether there are watchers.
    pub(super) fn is_watched(&self) -> bool {
        self.changed.receiver_count() > 0
    }

    /// Whether there is room for one more.
    pub(super) fn is_full(&self) -> bool {
        self.changed.receiver_count() >= WATCHERS_MAX
    }
}

/// Events as they happen: each whose topic lies in the range of a subscription.
pub struct Watcher {
    shared: Arc<Shared>,
    changed: watch::Receiver<()>,
    from_topic: Vec<u8>,
    /// Empty: no end.
    to_topic: Vec<u8>,
    /// Everything up to here has been taken.
    place: u64,
    generation: u64,
    taken: VecDeque<(u64, Vec<Bytes>)>,
}

impl Watcher {
    /// Watches what happens after `place`.
    ///
    /// # Errors
    /// What happened after it is not kept any more.
    pub(super) fn new(
        shared: Arc<Shared>,
        place: u64,
        from_topic: Vec<u8>,
        to_topic: Vec<u8>,
    ) -> Result<Self, WatchError> {
        let changed = shared.events.changed.subscribe();
        let generation = shared.events.generation.load(Ordering::Acquire);
        let taken = VecDeque::new();
        let mut watcher = Self { shared, changed, from_topic, to_topic, place, generation, taken };
        watcher.take()?;
        Ok(watcher)
    }

    /// The next entry that brought about events of the range: its index, and their payloads. May be dropped
    /// at any await.
    ///
    /// # Errors
    /// This watcher has ended, and why.
    pub async fn next(&mut self) -> Result<(u64, Vec<Bytes>), WatchError> {
        loop {
            if self.shared.events.generation.load(Ordering::Acquire) != self.generation {
                return Err(WatchError::Replaced { index: self.place });
            }
            if let Some(next) = self.taken.pop_front() {
                return Ok(next);
            }
            self.changed.borrow_and_update();
            match self.shared.check() {
                Ok(()) => {}
                Err(End::Stopped) => return Err(WatchError::Stopped),
                Err(End::Fault(fault)) => return Err(WatchError::Fault(fault)),
            }
            let before = self.place;
            self.take()?;
            // What was taken may hold nothing of the range, and then there may be more.
            if self.taken.is_empty() && self.place == before {
                // The sender lives in what this holds.
                let _ = self.changed.changed().await;
            }
        }
    }

    fn take(&mut self) -> Result<(), WatchError> {
        let kept = self.shared.events.lock();
        if self.shared.events.generation.load(Ordering::Acquire) != self.generation {
            return Err(WatchError::Replaced { index: self.place });
        }
        if self.place < kept.floor {
            return Err(WatchError::Gone { index: self.place, floor: kept.floor });
        }
        let begin = kept.noted.partition_point(|noted| noted.index <= self.place);
        for noted in kept.noted.range(begin..) {
            if self.taken.len() >= TAKEN_COUNT {
                return Ok(());
            }
            let within = |event: &&Event| {
                event.topic[..] >= self.from_topic[..]
                    && (self.to_topic.is_empty() || event.topic[..] < self.to_topic[..])
            };
            let payloads = noted.events.iter().filter(within).map(|event| event.payload.clone());
            let payloads: Vec<_> = payloads.collect();
            if !payloads.is_empty() {
                self.taken.push_back((noted.index, payloads));
            }
            self.place = noted.index;
        }
        // Beyond what the reader has reached, for one that resumes further on.
        self.place = self.place.max(kept.reached);
        Ok(())
    }
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watcher({})", self.place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Reply;

    fn outcome(payload_bytes: usize) -> Option<Outcome> {
        let event =
            Event { topic: Bytes::from_static(b"a"), payload: vec![0; payload_bytes].into() };
        Some(Outcome::Reply(Reply { events: vec![event], ..Reply::default() }))
    }

    fn indexes(events: &Events) -> Vec<u64> {
        events.lock().noted.iter().map(|noted| noted.index).collect()
    }

    #[test]
    fn an_entry_is_noted_once_and_the_oldest_make_room() {
        let events = Events::default();
        events.note(2, outcome(10));
        events.note(3, None);
        events.note(2, outcome(10));
        assert_eq!((indexes(&events), events.lock().floor), (vec![2], 0));
        events.note(5, outcome(KEPT_BYTES_MAX / 2));
        events.note(6, outcome(KEPT_BYTES_MAX / 2));
        assert_eq!((indexes(&events), events.lock().floor), (vec![6], 5));
        // More than there is room for: the newest entry stays until the next one.
        events.note(7, outcome(KEPT_BYTES_MAX));
        assert_eq!((indexes(&events), events.lock().floor), (vec![7], 6));
        events.note(8, outcome(10));
        assert_eq!((indexes(&events), events.lock().floor), (vec![8], 7));
    }

    /// A node that is repaired while the cluster is idle stands where the peer's state is.
    #[test]
    fn a_reset_drops_the_events_up_to_the_same_index() {
        let events = Events::default();
        events.note(2, outcome(10));
        events.skip_to(2);
        assert_eq!(indexes(&events), [2], "a rebuilt reader keeps them");
        events.reset(2);
        assert!(indexes(&events).is_empty());
        let (floor, reached) = {
            let kept = events.lock();
            (kept.floor, kept.reached)
        };
        assert_eq!((floor, reached), (2, 2));
        events.note(2, outcome(10));
        events.note(3, outcome(10));
        assert_eq!(indexes(&events), [3]);
    }

    #[test]
    fn what_was_not_applied_here_is_not_kept() {
        let events = Events::default();
        events.note(2, outcome(10));
        events.skip_to(1);
        assert_eq!(indexes(&events), [2]);
        events.skip_to(9);
        assert_eq!((indexes(&events), events.lock().floor), (vec![], 9));
    }
}
