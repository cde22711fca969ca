//! The offsets of the members' wall clocks from this node's, and the clock that a majority shares.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::log_clock::Nanos;
use conclave_types::NodeId;

/// The largest difference between clocks that agree. Beyond it a node raises an alarm.
pub(super) const OFFSET_MAX: Duration = Duration::from_millis(500);

/// One comparison of clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offset {
    /// The peer's clock minus this node's, in nanoseconds.
    pub(super) nanos: i128,
    /// The largest error of the offset: half of the round trip.
    pub(super) error: Duration,
}

impl Offset {
    /// The offset of this node's own clock.
    pub(super) const OWN: Self = Self { nanos: 0, error: Duration::ZERO };

    /// Computes the offset from a request and its response: the peer's clock was read about
    /// half-way (RFC 5905, section 8, without the peer's own processing time, which is short).
    pub(super) fn measured(sent_wall: Nanos, round_trip: Duration, peer_wall: Nanos) -> Self {
        let half = round_trip / 2;
        let here = i128::try_from(sent_wall).unwrap_or(i128::MAX / 2) + half.as_nanos() as i128;
        let there = i128::try_from(peer_wall).unwrap_or(i128::MAX / 2);
        Self { nanos: there - here, error: half }
    }

    fn agrees(&self, other: &Self) -> bool {
        let most = OFFSET_MAX + self.error + other.error;
        self.nanos.abs_diff(other.nanos) <= most.as_nanos()
    }
}

/// Returns the clock of a majority of each set of voters, as an offset from this node's own.
/// `None`: no such majority agrees.
pub(super) fn majority(
    configs: &[BTreeSet<NodeId>],
    offsets: &BTreeMap<NodeId, Offset>,
) -> Option<i128> {
    let voters: BTreeSet<NodeId> = configs.iter().flatten().copied().collect();
    let known: Vec<(NodeId, Offset)> =
        voters.iter().filter_map(|id| offsets.get(id).map(|offset| (*id, *offset))).collect();
    let agreeing = known.iter().map(|(_, center)| {
        let mut near: Vec<_> = known.iter().filter(|(_, other)| center.agrees(other)).collect();
        near.sort_by_key(|(_, offset)| offset.nanos);
        near
    });
    let is_majority = |near: &Vec<&(NodeId, Offset)>| {
        !configs.is_empty()
            && configs.iter().all(|config| {
                near.iter().filter(|(id, _)| config.contains(id)).count() * 2 > config.len()
            })
    };
    let most = agreeing.filter(is_majority).max_by_key(Vec::len)?;
    Some(most[most.len() / 2].1.nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(millis: &[Option<i128>]) -> BTreeMap<NodeId, Offset> {
        let known = (1..).zip(millis).filter_map(|(id, ms)| ms.map(|ms| (id, ms)));
        known
            .map(|(id, ms)| (id, Offset { nanos: ms * 1_000_000, error: Duration::ZERO }))
            .collect()
    }

    fn of(voters: u64, millis: &[Option<i128>]) -> Option<i128> {
        majority(&[(1..=voters).collect()], &offsets(millis)).map(|nanos| nanos / 1_000_000)
    }

    #[test]
    fn the_clock_that_counts_is_the_one_of_a_majority_of_the_voters() {
        const HOUR: i128 = 3_600_000;
        assert_eq!(of(1, &[Some(0)]), Some(0));
        assert_eq!(of(3, &[Some(0), Some(20), Some(-10)]), Some(0));
        assert_eq!(
            of(3, &[Some(0), Some(HOUR), Some(HOUR + 20)]),
            Some(HOUR + 20),
            "this node is wrong"
        );
        assert_eq!(of(3, &[Some(0), Some(HOUR), Some(10)]), Some(10), "another node is wrong");
        assert_eq!(of(3, &[Some(0), Some(HOUR), None]), None);
        assert_eq!(of(3, &[Some(0), None, None]), None);
        assert_eq!(of(2, &[Some(0), Some(HOUR)]), None);
        assert_eq!(of(5, &[Some(0), Some(1), Some(HOUR), Some(HOUR), None]), None);
        assert_eq!(of(0, &[]), None);
        assert_eq!(majority(&[], &offsets(&[Some(0)])), None);
    }

    #[test]
    fn in_a_joint_configuration_both_sets_need_a_majority() {
        let configs = [[1, 2, 3].into(), [3, 4, 5].into()];
        let all_near = offsets(&[Some(0), Some(1), None, Some(2), Some(3)]);
        assert!(majority(&configs, &all_near).is_some());
        let one_far = offsets(&[Some(0), Some(1), None, Some(2), Some(9_000)]);
        assert_eq!(majority(&configs, &one_far), None);
    }

    #[test]
    fn an_offset_is_taken_at_the_middle_of_the_round_trip() {
        let offset = Offset::measured(10_000_000, Duration::from_millis(4), 15_000_000);
        assert_eq!(offset, Offset { nanos: 3_000_000, error: Duration::from_millis(2) });
        // A long round trip has a large error, so a large offset still agrees.
        let slow = Offset { nanos: 700_000_000, error: Duration::from_millis(300) };
        assert!(slow.agrees(&Offset::OWN));
        assert!(!Offset { error: Duration::from_millis(100), ..slow }.agrees(&Offset::OWN));
    }
}
