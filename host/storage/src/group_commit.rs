//! How long a batch is held open for more, and what keeps step with it.
//!
//! A batch costs the same few hundred microseconds of work whether it has one entry or a hundred: the sync,
//! and waking all who take part in it. When many write at once a batch that begins with the first entry
//! has a few of theirs, and the rest makes the next one. Held open for as long as the last one took, it
//! has twice as many and half of the cost; and nobody waits longer than the batch in front of them would
//! have made them wait. A few writers are not a crowd, and wait for nothing.
//!
//! The peers are sent what this node writes. Sent at once, each entry of a crowd would be a message of its own
//! to every peer, with an answer, and so would each step of the commit. Sent as this node begins a batch, one
//! message has it all; and nobody is answered before this node has written it anyway.

use std::time::Duration;

use tokio::{sync::watch, time::timeout};

/// So many entries in a batch are a crowd.
const GROUP_ENTRIES: usize = 4;
/// On a slow disk entries gather during the sync anyway.
const PAUSE_MAX: Duration = Duration::from_millis(1);
/// Peers do not wait for a disk that is slower than theirs, nor for a batch that does not come.
const STEP_MAX: Duration = Duration::from_millis(2);

/// What the last batch says of the next.
#[derive(Default)]
pub(super) struct GroupCommit {
    pause: Duration,
}

impl GroupCommit {
    /// Whether many write.
    pub(super) fn is_there(&self) -> bool {
        !self.pause.is_zero()
    }

    /// How long to wait once this many entries have come at once. As many as a crowd's are what a leader
    /// has held open already.
    pub(super) fn pause(&self, first: usize) -> Duration {
        if first < GROUP_ENTRIES { self.pause } else { Duration::ZERO }
    }

    /// A batch had so many entries and took so long.
    pub(super) fn note(&mut self, entries: usize, took: Duration) {
        self.pause = if entries < GROUP_ENTRIES { Duration::ZERO } else { took.min(PAUSE_MAX) };
    }
}

/// Keeps step with the storage thread while it writes for a crowd.
#[derive(Debug)]
pub struct BatchWindow(watch::Receiver<bool>);

impl BatchWindow {
    pub fn new(mut batches: watch::Receiver<bool>) -> Self {
        batches.mark_unchanged();
        Self(batches)
    }

    /// Returns at once, unless many write: then once a batch has been begun since this returned last, or
    /// after two milliseconds.
    pub async fn step(&mut self) {
        if *self.0.borrow() {
            // Late or never: on with what there is.
            let _ = timeout(STEP_MAX, self.0.changed()).await;
        }
        self.0.mark_unchanged();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_crowd_is_followed_batch_by_batch_and_nobody_else_is_waited_for() {
        let batches = watch::Sender::new(false);
        let mut pace = BatchWindow::new(batches.subscribe());
        assert!(pace.step().now_or_never().is_some(), "a few writers are sent at once");
        batches.send_replace(true);
        assert!(pace.step().now_or_never().is_some(), "a batch was begun since");
        assert!(pace.step().now_or_never().is_none(), "none was");
        batches.send_replace(true);
        assert!(pace.step().now_or_never().is_some(), "another");
        let began = Instant::now();
        pace.step().await;
        assert!(began.elapsed() >= STEP_MAX, "none came");
        batches.send_replace(false);
        pace.step().await;
        assert!(pace.step().now_or_never().is_some(), "the group_commit has gone");
    }

    #[test]
    fn only_a_crowd_waits_and_never_longer_than_a_batch_takes() {
        let mut group_commit = GroupCommit::default();
        assert_eq!(group_commit.pause(1), Duration::ZERO);
        group_commit.note(1, Duration::from_micros(300));
        assert_eq!(group_commit.pause(1), Duration::ZERO);
        group_commit.note(16, Duration::from_micros(300));
        assert_eq!(group_commit.pause(1), Duration::from_micros(300));
        assert_eq!(group_commit.pause(16), Duration::ZERO, "a leader has waited already");
        group_commit.note(16, Duration::from_millis(30));
        assert_eq!(group_commit.pause(1), PAUSE_MAX);
        group_commit.note(3, Duration::from_micros(300));
        assert_eq!(group_commit.pause(1), Duration::ZERO);
    }
}
