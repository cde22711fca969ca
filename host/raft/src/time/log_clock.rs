//! One node's estimate of the log's time: a value that advances with a monotonic clock.
//!
//! # Contract
//! 1. Between two readings the time advances as the monotonic clock does. Towards a target it is
//!    slewed by at most [`SLEW_PPM`] of the elapsed time, in either direction. So it never stands
//!    still and never goes backwards by itself.
//! 2. No entry's stamp is above the estimate: [`LogClock::observe`] raises it.
//! 3. It jumps in three cases only: an entry that is already in the log has a later stamp; the
//!    clock is not known to follow the log's pace, and [`LogClock::settle`] gets evidence; or a
//!    leader reports its own clock.
//!
//! The type reads no clock: readings are arguments, so it is tested without waiting.

use std::time::Duration;

/// The largest difference between the rate of the log's time and that of the leader's
/// monotonic clock, in parts per million. NTP slews by as much. An error of one second is
/// corrected in 33 minutes.
pub(super) const SLEW_PPM: u128 = 500;

const PARTS: u128 = 1_000_000;
const NANOS_PER_MS: u128 = 1_000_000;

/// Nanoseconds since the Unix epoch.
pub(super) type Nanos = u128;

pub(super) fn nanos_of_ms(ms: u64) -> Nanos {
    u128::from(ms) * NANOS_PER_MS
}

pub(super) fn ms_of_nanos(nanos: Nanos) -> u64 {
    u64::try_from(nanos / NANOS_PER_MS).unwrap_or(u64::MAX)
}

/// An estimate of the log's time. See the module page.
#[derive(Clone, Debug)]
pub(super) struct LogClock {
    /// The log's time at `at`.
    time: Nanos,
    /// The reading of the monotonic clock.
    at: Duration,
    /// The latest stamp in the log, as far as this node has applied it.
    latest_stamp: Nanos,
    /// Whether the estimate follows the pace of a leader. Otherwise it is a lower bound: it does
    /// not include the time during which this node, or the whole cluster, was down.
    known: bool,
}

/// The evidence of the log's time for a leader that does not know its pace.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Evidence {
    /// The latest time reported by a node that has followed the log's pace.
    pub(super) followed: Option<Nanos>,
    /// The clock of a majority of the voters, if their clocks agree.
    pub(super) majority: Option<Nanos>,
    /// This node's wall clock.
    pub(super) wall: Nanos,
}

impl LogClock {
    /// Creates a clock without information about the log, at a reading of the monotonic clock.
    pub(super) fn new(at: Duration) -> Self {
        Self { time: 0, at, latest_stamp: 0, known: false }
    }

    /// Advances to a reading of the monotonic clock and returns the log's time at that reading.
    pub(super) fn advance(&mut self, at: Duration, target: Option<Nanos>) -> Nanos {
        let elapsed = at.saturating_sub(self.at).as_nanos();
        self.at = self.at.max(at);
        self.time = self.time.saturating_add(elapsed);
        if let Some(target) = target {
            let most = elapsed * SLEW_PPM / PARTS;
            self.time = target.clamp(self.time - most.min(self.time), self.time + most);
        }
        self.time = self.time.max(self.latest_stamp);
        self.time
    }

    /// Records an applied entry's stamp. The stamp counts from the next reading on: the time since
    /// the last reading passed before the stamp.
    pub(super) fn observe(&mut self, stamp: Nanos) {
        self.latest_stamp = self.latest_stamp.max(stamp);
    }

    /// Adopts the leader's log time at this reading. From then on the pace is known.
    pub(super) fn follow(&mut self, at: Duration, leader: Nanos) {
        let since = self.at.saturating_sub(at).as_nanos();
        self.at = self.at.max(at);
        self.time = leader.saturating_add(since).max(self.latest_stamp);
        self.known = true;
    }

    /// Returns whether the estimate follows the log's pace.
    pub(super) fn is_known(&self) -> bool {
        self.known
    }

    /// Determines the log's time for a leader whose clock does not follow the log's pace.
    ///
    /// After the whole cluster was down, wall clocks are the only evidence of the duration, and a
    /// single one may be wrong. So only a majority of clocks that agree advances the time. Without
    /// evidence the time continues from the last stamp, and a later call may still advance it. Only
    /// a log without any stamp starts with the node's own clock.
    pub(super) fn settle(&mut self, at: Duration, evidence: Evidence) {
        self.advance(at, None);
        let Evidence { followed, majority, wall } = evidence;
        let fresh = (self.latest_stamp == 0).then_some(wall);
        if let Some(time) = followed.or(majority).or(fresh) {
            self.time = self.time.max(time);
            self.known = true;
        }
    }

    /// Applies the time that an operator has set, once its entry is in the log.
    pub(super) fn set(&mut self, at: Duration, time: Nanos) {
        self.advance(at, None);
        self.time = self.time.max(time);
        self.known = true;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn s(seconds: u64) -> Nanos {
        u128::from(seconds) * 1_000_000_000
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Returns a clock that followed a leader: at 100 s of its monotonic clock the
    /// log's time was 5,000 s.
    fn following() -> LogClock {
        let mut clock = LogClock::new(at(90));
        clock.observe(s(5_000));
        clock.follow(at(100), s(5_000));
        clock
    }

    #[test]
    fn time_passes_at_the_pace_of_the_monotonic_clock_and_a_wrong_wall_clock_only_slews_it() {
        let mut clock = following();
        assert_eq!(clock.advance(at(110), None), s(5_010));
        // The wall clock is an hour ahead for ten seconds: 5 ms.
        assert_eq!(clock.advance(at(120), Some(s(5_020 + 3_600))), s(5_020) + 5_000_000);
        // The wall clock is an hour behind for twenty seconds: 10 ms.
        let expected = s(5_040) + 5_000_000 - 10_000_000;
        assert_eq!(clock.advance(at(140), Some(s(5_040 - 3_600))), expected);
        // An offset that one step can cover is reached and not exceeded.
        assert_eq!(clock.advance(at(240), Some(s(5_140))), s(5_140));
    }

    #[test]
    fn a_successor_continues_from_what_its_leader_showed() {
        let mut clock = following();
        clock.follow(at(130), s(5_029));
        assert!(clock.is_known());
        assert_eq!(clock.advance(at(131), None), s(5_030));
        // The process is paused: the monotonic clock continues.
        assert_eq!(clock.advance(at(131) + HOUR, None), s(5_030 + 3_600));
        // No stamp of the log is above the estimate.
        clock.observe(s(10_000));
        assert_eq!(clock.advance(at(131) + HOUR, None), s(10_000));
    }

    /// A cluster that was down for a week.
    #[test]
    fn after_downtime_only_a_majority_of_clocks_moves_the_time_on() {
        let week = s(7 * 86_400);
        let mut clock = LogClock::new(at(0));
        clock.observe(s(5_000));
        let alone = Evidence { wall: s(5_000) + week, ..Evidence::default() };
        clock.settle(at(3), alone);
        assert!(!clock.is_known());
        assert_eq!(clock.advance(at(4), None), s(5_001), "one clock is no evidence");
        let majority = Some(s(5_000) + week);
        clock.settle(at(5), Evidence { majority, ..alone });
        assert!(clock.is_known());
        assert_eq!(clock.advance(at(5), None), s(5_000) + week);
    }

    #[test]
    fn a_pace_that_a_peer_has_followed_counts_more_than_wall_clocks() {
        let mut clock = LogClock::new(at(0));
        clock.observe(s(5_000));
        let evidence =
            Evidence { followed: Some(s(5_100)), majority: Some(s(9_000)), wall: s(9_000) };
        clock.settle(at(3), evidence);
        assert_eq!(clock.advance(at(3), None), s(5_100));
    }

    #[test]
    fn a_log_that_is_ahead_of_all_clocks_continues_at_its_pace() {
        let mut clock = LogClock::new(at(0));
        clock.observe(s(90_000));
        clock.settle(at(3), Evidence { majority: Some(s(5_000)), ..Evidence::default() });
        assert!(clock.is_known());
        // A ttl of 5 s that starts now ends after 5 s, within 500 ppm.
        let put = clock.advance(at(10), Some(s(5_007)));
        let ends = clock.advance(at(15), Some(s(5_012)));
        assert_eq!(ends - put, s(5) - 2_500_000);
    }

    /// An entry is applied between two readings: its own stamp counts.
    #[test]
    fn a_stamp_is_no_time_to_which_what_passed_before_is_added() {
        let mut clock = following();
        clock.observe(s(5_010));
        assert_eq!(clock.advance(at(110), None), s(5_010));
        clock.observe(s(5_030));
        assert_eq!(clock.advance(at(120), None), s(5_030));
        // A node that has just started, on a host that has run for a day.
        let mut clock = LogClock::new(at(86_400));
        clock.observe(s(5_000));
        assert_eq!(clock.advance(at(86_401), None), s(5_000));
        assert_eq!(clock.advance(at(86_402), None), s(5_001));
    }

    #[test]
    fn a_new_log_begins_with_the_clock_that_there_is() {
        let mut clock = LogClock::new(at(0));
        clock.settle(at(3), Evidence { wall: s(7_000), ..Evidence::default() });
        assert_eq!((clock.advance(at(3), None), clock.is_known()), (s(7_000), true));
    }

    #[test]
    fn an_operator_sets_the_time_forwards_only() {
        let mut clock = following();
        clock.set(at(110), s(8_000));
        assert_eq!(clock.advance(at(111), None), s(8_001));
        clock.set(at(111), s(6_000));
        assert_eq!(clock.advance(at(111), None), s(8_001));
    }

    proptest! {
        /// For all wall clocks and all sequences of readings: from a known pace on, the log's time
        /// differs from the elapsed time by at most 500 ppm, never goes back, and reaches every stamp.
        #[test]
        fn no_wall_clock_moves_the_time_beyond_its_rate(
            steps in proptest::collection::vec(
                (0..100_000_000_u64, proptest::option::of(any::<u64>()), 0..3_u8), 1..200)
        ) {
            let mut clock = following();
            let (mut now, mut last) = (at(100), s(5_000));
            for (micros, wall_ms, settles) in steps {
                now += Duration::from_micros(micros);
                let target = wall_ms.map(nanos_of_ms);
                let elapsed = u128::from(micros) * 1_000;
                let time = clock.advance(now, target);
                let most = elapsed * SLEW_PPM / PARTS;
                prop_assert!(time >= last + elapsed - most && time <= last + elapsed + most);
                if settles == 0 {
                    // An entry with this stamp comes back from the log.
                    clock.observe(nanos_of_ms(ms_of_nanos(time)));
                    prop_assert_eq!(clock.advance(now, target), time);
                }
                last = time;
            }
        }
    }
}
