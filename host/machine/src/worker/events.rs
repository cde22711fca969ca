//! Buffer of recent events, read by subscriptions.
//!
//! # Contract
//! 1. The newest events are kept in memory, in the order of the log: all events after the *oldest
//!    retained index* up to the last entry that the standby has applied.
//! 2. A watcher receives each later event whose topic is in its range, once and in order. If one of
//!    them is no longer kept, it gets an error. A watcher never waits for another, and nothing
//!    waits for a watcher.
//! 3. An entry's events are recorded once, when the standby first applies it. A rebuilt standby
//!    applies entries again.
//! 4. An event wakes only the watchers whose range contains its topic. A watcher that has taken all of its
//!    own events is never behind the oldest retained index, however many other events have been dropped.
//!
//! # Caveat
//! A standby that is built from this node's own snapshot has not applied the entries before it. The
//! oldest retained index then moves to the snapshot's index, and watchers behind it end. If another
//! node's state replaces the state of this node, all watchers end, because the events that they
//! received may not be part of the cluster's history.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;

use super::{
    seats::{Seat, Seats, TopicRange},
    status::Status,
};
use crate::error::{Ended, WatchError};
use conclave_types::{Event, Outcome};

/// The maximum size of the kept events. A watcher that resumes after a lost connection should still
/// find its position. With events of a kilobyte, this is one second of a cluster's fastest writes.
const KEPT_BYTES_MAX: usize = 16 << 20;
/// The approximate overhead of an event in bytes.
const EVENT_BYTES: usize = 96;
/// The number of bytes of events that a watcher takes at once, or more if one entry has more. A
/// subscriber that does not read holds that much.
const TAKEN_BYTES: usize = 64 << 10;

/// The events of one entry.
struct Noted {
    index: u64,
    events: Vec<Event>,
}

impl Noted {
    fn bytes(&self) -> usize {
        self.events.iter().map(|event| bytes_of(&event.topic, &event.payload)).sum()
    }
}

fn bytes_of(topic: &[u8], payload: &[u8]) -> usize {
    topic.len() + payload.len() + EVENT_BYTES
}

#[derive(Default)]
struct Kept {
    /// The oldest retained index: all events after it are kept.
    oldest_retained: u64,
    /// The last entry that was recorded.
    reached: u64,
    noted: VecDeque<Noted>,
    bytes: usize,
    seats: Seats,
}

/// The event buffer. See the module documentation.
#[derive(Default)]
pub(super) struct Events {
    kept: Mutex<Kept>,
    /// The number of watchers, readable without the lock.
    watchers: AtomicUsize,
}

impl Events {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the standby has applied an entry. Ignores entries that were applied before.
    pub(super) fn note(&self, index: u64, outcome: Option<Outcome>) {
        let mut kept = self.lock();
        if index <= kept.reached {
            return;
        }
        kept.reached = index;
        let Some(Outcome::Reply(reply)) = outcome else { return };
        if reply.events.is_empty() {
            return;
        }
        for event in &reply.events {
            kept.seats.of_topic(&event.topic).for_each(|seat| seat.happened(index));
        }
        let noted = Noted { index, events: reply.events };
        kept.bytes += noted.bytes();
        kept.noted.push_back(noted);
        // The newest entry is kept even if it alone exceeds the limit.
        while kept.bytes > KEPT_BYTES_MAX
            && kept.noted.len() > 1
            && let Some(oldest) = kept.noted.pop_front()
        {
            kept.bytes -= oldest.bytes();
            kept.oldest_retained = oldest.index;
        }
    }

    /// Drops all events, because another node's state at `index` replaces the standby's. This also
    /// applies if the standby had reached the same index: its events may be those of a diverged
    /// state machine.
    pub(super) fn reset(&self, index: u64) {
        let mut kept = self.lock();
        kept.begin_at(index);
        kept.end_watchers();
    }

    /// Ends all current watchers.
    pub(super) fn end_watchers(&self) {
        self.lock().end_watchers();
    }

    /// Moves to `index`, because the standby stands there without having applied the entries before it.
    pub(super) fn skip_to(&self, index: u64) {
        let mut kept = self.lock();
        if index <= kept.reached {
            return;
        }
        let missed = kept.reached + 1;
        kept.begin_at(index);
        for seat in kept.seats.all() {
            seat.happened(missed);
        }
    }

    /// Wakes all watchers, so that they check whether they have to end.
    pub(super) fn wake(&self) {
        for seat in self.lock().seats.all() {
            seat.wake();
        }
    }

    /// Returns the current number of watchers.
    pub(super) fn watchers(&self) -> usize {
        self.watchers.load(Ordering::Relaxed)
    }

    /// Returns whether there are watchers.
    pub(super) fn is_watched(&self) -> bool {
        self.watchers() > 0
    }
}

impl Kept {
    fn begin_at(&mut self, index: u64) {
        self.noted.clear();
        (self.oldest_retained, self.reached, self.bytes) = (index, index, 0);
    }

    fn end_watchers(&self) {
        for seat in self.seats.all() {
            seat.replace();
        }
    }
}

/// A subscription's stream of events: those whose topic is in its range.
pub struct Watcher {
    events: Arc<Events>,
    status: Arc<Status>,
    range: TopicRange,
    seat: Arc<Seat>,
    /// All events up to this index have been taken.
    position: u64,
    taken: VecDeque<(u64, Vec<Bytes>)>,
}

impl Watcher {
    /// Creates a watcher of the events after `position`, an index that the standby has reached. An
    /// empty `to_topic` means no end.
    ///
    /// # Errors
    /// Fails if events after `position` are no longer kept.
    pub(super) fn new(
        events: Arc<Events>,
        status: Arc<Status>,
        position: u64,
        from_topic: Vec<u8>,
        to_topic: Vec<u8>,
    ) -> Result<Self, WatchError> {
        let range = TopicRange { from: from_topic, to: to_topic };
        let seat = Arc::<Seat>::default();
        let mut kept = events.lock();
        if position < kept.oldest_retained {
            return Err(WatchError::Gone {
                index: position,
                oldest_retained: kept.oldest_retained,
            });
        }
        let begin = kept.noted.partition_point(|noted| noted.index <= position);
        let mut later = kept.noted.range(begin..);
        let first = later.find(|noted| range.has_any_of(&noted.events));
        seat.set_pending(first.map_or(0, |noted| noted.index));
        kept.seats.insert(range.clone(), Arc::clone(&seat));
        events.watchers.fetch_add(1, Ordering::Relaxed);
        drop(kept);
        Ok(Self { events, status, range, seat, position, taken: VecDeque::new() })
    }

    /// Returns the next entry with events in the range: its index and the payloads. Cancel safe.
    ///
    /// # Errors
    /// Returns the reason why this watcher has ended.
    pub async fn next(&mut self) -> Result<(u64, Vec<Bytes>), WatchError> {
        let seat = Arc::clone(&self.seat);
        loop {
            self.check_state()?;
            if let Some(next) = self.taken.pop_front() {
                return Ok(next);
            }
            match self.status.check() {
                Ok(()) => {}
                Err(Ended::Stopped) => return Err(WatchError::Stopped),
                Err(Ended::Fatal(fatal_error)) => return Err(WatchError::Fatal(fatal_error)),
            }
            self.take()?;
            if self.taken.is_empty() {
                seat.woken().await;
            }
        }
    }

    /// Returns an index up to which [`Watcher::next`] has returned all events, if it would wait
    /// now. `None` if it would return at once.
    ///
    /// # Errors
    /// Fails as [`Watcher::next`] does.
    pub fn position(&mut self) -> Result<Option<u64>, WatchError> {
        self.check_state()?;
        if self.taken.is_empty() {
            self.take()?;
        }
        Ok(self.taken.is_empty().then_some(self.position))
    }

    fn check_state(&self) -> Result<(), WatchError> {
        match self.seat.is_replaced() {
            true => Err(WatchError::Replaced { index: self.position }),
            false => Ok(()),
        }
    }

    fn take(&mut self) -> Result<(), WatchError> {
        let kept = self.events.lock();
        self.check_state()?;
        let pending = self.seat.pending();
        if pending == 0 {
            self.position = self.position.max(kept.reached);
            return Ok(());
        }
        if pending <= kept.oldest_retained {
            return Err(WatchError::Gone {
                index: self.position,
                oldest_retained: kept.oldest_retained,
            });
        }
        let mut bytes = 0;
        let begin = kept.noted.partition_point(|noted| noted.index < pending);
        for noted in kept.noted.range(begin..) {
            if !self.range.has_any_of(&noted.events) {
                continue;
            }
            if bytes > TAKEN_BYTES {
                self.seat.set_pending(noted.index);
                return Ok(());
            }
            let events = noted.events.iter().filter(|event| self.range.contains(&event.topic));
            let payloads: Vec<_> = events.map(|event| event.payload.clone()).collect();
            bytes += payloads.iter().map(|payload| bytes_of(&[], payload)).sum::<usize>();
            self.taken.push_back((noted.index, payloads));
            self.position = noted.index;
        }
        self.seat.set_pending(0);
        self.position = self.position.max(kept.reached);
        Ok(())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.events.lock().seats.remove(&self.range, &self.seat);
        self.events.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watcher({})", self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conclave_types::Reply;

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
        assert_eq!((indexes(&events), events.lock().oldest_retained), (vec![2], 0));
        events.note(5, outcome(KEPT_BYTES_MAX / 2));
        events.note(6, outcome(KEPT_BYTES_MAX / 2));
        assert_eq!((indexes(&events), events.lock().oldest_retained), (vec![6], 5));
        // Exceeds the limit: the newest entry stays until the next one comes.
        events.note(7, outcome(KEPT_BYTES_MAX));
        assert_eq!((indexes(&events), events.lock().oldest_retained), (vec![7], 6));
        events.note(8, outcome(10));
        assert_eq!((indexes(&events), events.lock().oldest_retained), (vec![8], 7));
    }

    /// A node that is repaired while the cluster is idle may already stand at the index of
    /// the peer's state.
    #[test]
    fn a_reset_drops_the_events_up_to_the_same_index() {
        let events = Events::default();
        events.note(2, outcome(10));
        events.skip_to(2);
        assert_eq!(indexes(&events), [2], "a rebuilt standby keeps them");
        events.reset(2);
        assert!(indexes(&events).is_empty());
        let (oldest_retained, reached) = {
            let kept = events.lock();
            (kept.oldest_retained, kept.reached)
        };
        assert_eq!((oldest_retained, reached), (2, 2));
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
        assert_eq!((indexes(&events), events.lock().oldest_retained), (vec![], 9));
    }
}
