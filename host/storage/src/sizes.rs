//! Approximate sizes of the log's entries from any index on, to within one step.

use std::collections::VecDeque;

use crate::raft_types::{Entry, Payload};

/// The number of bytes between two marks. A log of 1 GiB takes 256 KiB of memory here.
const STEP_BYTES: u64 = 64 << 10;

/// The approximate memory of an entry in addition to its payload.
const ENTRY_OVERHEAD_BYTES: usize = 128;

/// The sizes of the log's entries.
#[derive(Clone, Default)]
pub(super) struct Sizes {
    /// Marks: an index, and the bytes of all entries before it since counting began. Both increase.
    marks: VecDeque<(u64, u64)>,
    /// The bytes of all entries since counting began.
    total: u64,
}

impl Sizes {
    /// Counts the next entry.
    pub(super) fn append(&mut self, index: u64, bytes: u64) {
        if self.marks.back().is_none_or(|(_, before)| self.total - before >= STEP_BYTES) {
            self.marks.push_back((index, self.total));
        }
        self.total += bytes;
    }

    /// Removes the entries from `next` on.
    pub(super) fn truncate(&mut self, next: u64) {
        while let Some((_, before)) = self.marks.pop_back_if(|(index, _)| *index >= next) {
            self.total = before;
        }
    }

    /// Removes the entries before `first`.
    pub(super) fn purge(&mut self, first: u64) {
        while self.marks.get(1).is_some_and(|(index, _)| *index <= first) {
            self.marks.pop_front();
        }
    }

    /// Returns the bytes of the entries after `index`, or at most one step more.
    pub(super) fn after(&self, index: u64) -> u64 {
        let at = self.marks.partition_point(|(watermark, _)| *watermark <= index + 1);
        let watermark = at.checked_sub(1).and_then(|at| self.marks.get(at)).or(self.marks.front());
        watermark.map_or(0, |(_, before)| self.total - before)
    }

    /// Returns the lowest mark's index from which the entries have at most `bytes_max` bytes.
    /// `None` if there is no such mark.
    pub(super) fn first_within(&self, bytes_max: u64) -> Option<u64> {
        let at = self.marks.partition_point(|(_, before)| self.total - before > bytes_max);
        self.marks.get(at).map(|(index, _)| *index)
    }
}

/// Returns the approximate memory of an entry.
pub(super) fn entry_bytes(entry: &Entry) -> usize {
    let payload = match &entry.payload {
        Payload::Blank => 0,
        Payload::Normal(command) => command.kind.bytes(),
        Payload::Membership(membership) => 128 * membership.nodes().count(),
    };
    payload + ENTRY_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_known_to_within_a_step() {
        let mut sizes = Sizes::default();
        assert_eq!((sizes.after(0), sizes.first_within(0)), (0, None));
        for index in 1..=100 {
            sizes.append(index, STEP_BYTES / 4);
        }
        let exact = |after: u64| (100 - after) * STEP_BYTES / 4;
        for index in 0..=100 {
            let found = sizes.after(index);
            assert!(
                (exact(index)..=exact(index) + STEP_BYTES).contains(&found),
                "{index}: {found}"
            );
        }
        let first = sizes.first_within(10 * STEP_BYTES).unwrap();
        assert!(exact(first - 1) <= 10 * STEP_BYTES && first <= 64, "{first}");
        assert_eq!(sizes.first_within(u64::MAX), Some(1));
        assert_eq!(sizes.first_within(0), None, "the last entries have more than 0 bytes");

        sizes.purge(50);
        let first = sizes.first_within(u64::MAX).unwrap();
        assert!((46..=50).contains(&first), "{first}");
        let before = sizes.after(70);
        sizes.truncate(81);
        assert_eq!(before - sizes.after(70), 20 * STEP_BYTES / 4);
        sizes.append(81, 7);
        assert_eq!(sizes.after(80), 7);
    }
}
