//! Adaptive group commit: the delay before a batch, and the batch window that replication follows.
//!
//! A batch costs the same few hundred microseconds for one entry or for a hundred: the sync, and
//! the wake-up of the waiting tasks. Under load, a batch that starts with the first entry contains
//! only a few of the concurrent entries, and the rest wait for the next batch. Delaying the batch
//! by the duration of the previous batch roughly doubles the entries per batch and halves the cost.
//! No request waits longer than the previous batch would have made it wait. With few concurrent
//! writers there is no delay.
//!
//! The node also replicates its entries to its peers. Without a batch window, each entry under load
//! would be a separate message with a separate response for each peer, and so would each step of
//! the commit. Replication therefore waits until the node starts a batch, and then sends one
//! message. This does not delay clients, because the node answers only after its own write.

use std::time::Duration;

use tokio::{sync::watch, time::timeout};

/// The least number of entries in a batch that counts as load.
const GROUP_ENTRIES: usize = 4;
/// The longest delay before a batch. On a slow disk, entries accumulate during the sync anyway.
const PAUSE_MAX: Duration = Duration::from_millis(1);
/// The longest time that replication waits for a batch. Peers should not wait for a slower disk, or
/// for a batch that does not start.
const STEP_MAX: Duration = Duration::from_millis(2);

/// The delay for the next batch, derived from the last batch.
#[derive(Default)]
pub(super) struct GroupCommit {
    pause: Duration,
}

impl GroupCommit {
    /// Whether the last batch indicates load.
    pub(super) fn is_there(&self) -> bool {
        !self.pause.is_zero()
    }

    /// Returns the delay for a batch that starts with `first` entries. The delay is zero if there
    /// are many, because the leader has already collected them.
    pub(super) fn pause(&self, first: usize) -> Duration {
        if first < GROUP_ENTRIES { self.pause } else { Duration::ZERO }
    }

    /// Records the size and duration of a batch.
    pub(super) fn note(&mut self, entries: usize, took: Duration) {
        self.pause = if entries < GROUP_ENTRIES { Duration::ZERO } else { took.min(PAUSE_MAX) };
    }
}

/// The batch window: lets replication follow the batches of the storage thread under load.
#[derive(Debug)]
pub struct BatchWindow(watch::Receiver<bool>);

impl BatchWindow {
    pub fn new(mut batches: watch::Receiver<bool>) -> Self {
        batches.mark_unchanged();
        Self(batches)
    }

    /// Returns at once without load. Under load, returns after a batch has started since the last
    /// return, or after two milliseconds.
    pub async fn step(&mut self) {
        if *self.0.borrow() {
            // After the timeout, continue with the available entries.
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
        assert!(pace.step().now_or_never().is_some(), "without load there is no wait");
        batches.send_replace(true);
        assert!(pace.step().now_or_never().is_some(), "a batch has started");
        assert!(pace.step().now_or_never().is_none(), "no batch has started");
        batches.send_replace(true);
        assert!(pace.step().now_or_never().is_some(), "another batch has started");
        let began = Instant::now();
        pace.step().await;
        assert!(began.elapsed() >= STEP_MAX, "no batch started");
        batches.send_replace(false);
        pace.step().await;
        assert!(pace.step().now_or_never().is_some(), "the load has ended");
    }

    #[test]
    fn only_a_crowd_waits_and_never_longer_than_a_batch_takes() {
        let mut group_commit = GroupCommit::default();
        assert_eq!(group_commit.pause(1), Duration::ZERO);
        group_commit.note(1, Duration::from_micros(300));
        assert_eq!(group_commit.pause(1), Duration::ZERO);
        group_commit.note(16, Duration::from_micros(300));
        assert_eq!(group_commit.pause(1), Duration::from_micros(300));
        assert_eq!(group_commit.pause(16), Duration::ZERO, "the leader has already collected them");
        group_commit.note(16, Duration::from_millis(30));
        assert_eq!(group_commit.pause(1), PAUSE_MAX);
        group_commit.note(3, Duration::from_micros(300));
        assert_eq!(group_commit.pause(1), Duration::ZERO);
    }
}
