//! How long a batch is held open for more.
//!
//! A batch costs the same few hundred microseconds of work whether it has one entry or a hundred: the sync,
//! and waking all who take part in it. When many write at once a batch that begins with the first entry
//! has a few of theirs, and the rest makes the next one. Held open for as long as the last one took, it
//! has twice as many and half of the cost; and nobody waits longer than the batch in front of them would
//! have made them wait. A few writers are not a crowd, and wait for nothing.

use std::time::Duration;

/// So many entries in a batch are a crowd.
const CROWD_ENTRIES: usize = 4;
/// On a slow disk entries gather during the sync anyway.
const PAUSE_MAX: Duration = Duration::from_millis(1);

/// What the last batch says of the next.
#[derive(Default)]
pub(super) struct Crowd {
    pause: Duration,
}

impl Crowd {
    /// How long to wait once the first entry is there.
    pub(super) fn pause(&self) -> Duration {
        self.pause
    }

    /// A batch had so many entries and took so long.
    pub(super) fn note(&mut self, entries: usize, took: Duration) {
        self.pause = if entries < CROWD_ENTRIES { Duration::ZERO } else { took.min(PAUSE_MAX) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_crowd_waits_and_never_longer_than_a_batch_takes() {
        let mut crowd = Crowd::default();
        assert_eq!(crowd.pause(), Duration::ZERO);
        crowd.note(1, Duration::from_micros(300));
        assert_eq!(crowd.pause(), Duration::ZERO);
        crowd.note(16, Duration::from_micros(300));
        assert_eq!(crowd.pause(), Duration::from_micros(300));
        crowd.note(16, Duration::from_millis(30));
        assert_eq!(crowd.pause(), PAUSE_MAX);
        crowd.note(3, Duration::from_micros(300));
        assert_eq!(crowd.pause(), Duration::ZERO);
    }
}
