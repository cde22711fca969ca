//! The clock of a state machine: it derives each entry's context (index, time, seed) from the log
//! and the cluster's key alone.

use super::entry_context::EntryContext;

/// Follows the log and computes the context of each entry. Index and time never go back.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    key: [u8; 32],
    index: u64,
    time_ms: u64,
}

impl Clock {
    /// Creates a clock that stands after entry `index`, at `time_ms`.
    pub(super) fn new(key: [u8; 32], index: u64, time_ms: u64) -> Self {
        Self { key, index, time_ms }
    }

    /// Advances to an entry that was proposed at `proposed_ms`, and returns its context.
    /// Entries that trap advance the clock too: the time of later entries must not depend on
    /// whether an earlier one was run.
    pub(super) fn advance(&mut self, index: u64, proposed_ms: u64) -> EntryContext {
        self.follow(index, proposed_ms);
        self.now()
    }

    /// Advances without computing a context, because the caller has it or does not need it. The
    /// seed costs a hash.
    pub(super) fn follow(&mut self, index: u64, proposed_ms: u64) {
        // The clocks of leaders differ, but a state machine's time never goes back.
        self.move_to(index, self.time_ms.max(proposed_ms));
    }

    /// Advances over entries that the state machine does not see.
    pub(super) fn skip_to(&mut self, index: u64) {
        self.move_to(index, self.time_ms);
    }

    /// Moves forward. The caller has checked the order of entries that it has read.
    fn move_to(&mut self, index: u64, time_ms: u64) {
        // A log may begin at index 0, where a clock without entries stands.
        let is_later = index > self.index || (index, self.index) == (0, 0);
        assert!(
            is_later,
            "the clock stands at entry {}, and entry {index} is not later",
            self.index
        );
        assert!(time_ms >= self.time_ms, "the time at entry {index} goes back");
        (self.index, self.time_ms) = (index, time_ms);
    }

    pub(super) fn index(&self) -> u64 {
        self.index
    }

    pub(super) fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// Returns the context of the last entry, which queries get.
    pub(super) fn now(&self) -> EntryContext {
        EntryContext { index: self.index, time_ms: self.time_ms, seed: seed(&self.key, self.index) }
    }
}

/// Computes the seed of an entry: the first eight bytes, read as little-endian, of BLAKE3 over the
/// little-endian index, keyed with the cluster's key. Never change this: replays depend on it.
fn seed(key: &[u8; 32], index: u64) -> u64 {
    let hash = blake3::keyed_hash(key, &index.to_le_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_never_goes_back_and_the_seed_is_a_function_of_key_and_index() {
        let mut clock = Clock::new([7; 32], 4, 1000);
        let first = clock.advance(5, 2000);
        let second = clock.advance(6, 1500);
        assert_eq!((first.time_ms, second.time_ms), (2000, 2000));
        assert_ne!(first.seed, second.seed);
        assert_eq!(Clock::new([7; 32], 0, 0).advance(5, 0).seed, first.seed);
        assert_ne!(Clock::new([8; 32], 0, 0).advance(5, 0).seed, first.seed);
    }

    #[test]
    #[should_panic(expected = "the clock stands at entry 4, and entry 4 is not later")]
    fn an_index_that_does_not_go_forward_is_a_bug() {
        Clock::new([7; 32], 4, 1000).advance(4, 1000);
    }

    #[test]
    fn the_seed_does_not_change_between_versions() {
        assert_eq!(seed(&[7; 32], 5), GOLDEN);
    }

    /// The expected seed, recorded once.
    const GOLDEN: u64 = 15_881_417_487_988_671_163;
}
