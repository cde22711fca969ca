//! The timing of elections, heartbeats and peer calls, and the arithmetic between them.
//!
//! openraft has three settings; Conclave's settings are the effects that an operator observes. In
//! openraft a follower waits for one *lease*, its longest election timeout, and then for a random
//! time between its two timeouts. So the silence that starts an election lies between
//! [`Timing::election_min`] and [`Timing::election_max`] exactly if the lease is half of
//! `election_max` and the shortest wait is `election_min` less the lease.
//!
//! openraft bounds a heartbeat by its heartbeat interval and a vote by its shortest wait, so both
//! settings limit the round trips that a cluster tolerates. Conclave therefore sends heartbeats
//! at its own interval, [`Timing::heartbeat`], and sets openraft's interval to the longest
//! deadline that openraft allows.
//!
//! Invariants, which [`Timing::new`] asserts:
//! - heartbeat < call deadline < shortest wait < lease < election_min < election_max
//! - The leader's use of the lease ends before the promise of its followers.
//! - A round trip that is tolerated ends before the deadline of a call.

use std::time::Duration;

use conclave_types::{
    duration,
    limits::{ELECTION_MAX, ELECTION_MIN, HEARTBEAT, LimitError, REQUEST_TIMEOUT},
};

/// openraft requires its heartbeat interval to be shorter than the shortest wait.
const DEADLINE_MARGIN: Duration = Duration::from_millis(1);
/// The part of the followers' promise that the leader uses: the rates of clocks may differ by a tenth.
const USED_TENTHS: u32 = 9;
/// The default election timeouts in tenths of the longest, and in heartbeats.
const ELECTION_MIN_PARTS: u32 = 8;
const ELECTION_MAX_PARTS: u32 = 10;

/// The pauses between attempts to reach a peer double from the first to the second. The first retry
/// is quick, because a process that was restarted listens again within about 10 ms.
pub(crate) const RETRY_PAUSE_MIN: Duration = Duration::from_millis(20);
/// See [`RETRY_PAUSE_MIN`].
pub(crate) const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);

/// The timing of elections and calls. The election timeout must be several heartbeats, because
/// otherwise a single late heartbeat starts an election. [`Timing::new`] checks that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The interval between a leader's heartbeats.
    pub heartbeat: Duration,
    /// The lower bound of the random time after which a follower without messages starts an
    /// election: at least half of `election_max` and 2 heartbeats.
    pub election_min: Duration,
    /// The upper bound of that time: at least `election_min` and a heartbeat.
    pub election_max: Duration,
    /// The time limit of a request whose caller set no deadline.
    pub request_timeout: Duration,
}

impl Timing {
    /// Creates a timing from the values that are given. A missing election timeout is derived from
    /// the other one, or both from the heartbeat interval if that is long.
    ///
    /// # Errors
    /// A value is out of range, or conflicts with another one.
    pub fn new(
        heartbeat: Option<Duration>,
        election_min: Option<Duration>,
        election_max: Option<Duration>,
        request_timeout: Option<Duration>,
    ) -> Result<Self, LimitError> {
        let heartbeat = HEARTBEAT.or_default(heartbeat);
        HEARTBEAT.check("heartbeat", heartbeat)?;
        for (limit, name, given) in [
            (ELECTION_MIN, "election_min", election_min),
            (ELECTION_MAX, "election_max", election_max),
        ] {
            given.map_or(Ok(()), |given| limit.check(name, given))?;
        }
        let (election_min, election_max) = match (election_min, election_max) {
            (Some(min), Some(max)) => (min, max),
            (Some(min), None) => (min, min * ELECTION_MAX_PARTS / ELECTION_MIN_PARTS),
            (None, Some(max)) => (max * ELECTION_MIN_PARTS / ELECTION_MAX_PARTS, max),
            (None, None) => (
                (heartbeat * ELECTION_MIN_PARTS).max(ELECTION_MIN.default),
                (heartbeat * ELECTION_MAX_PARTS).max(ELECTION_MAX.default),
            ),
        };
        let request_timeout = REQUEST_TIMEOUT.or_default(request_timeout);
        REQUEST_TIMEOUT.check("request_timeout", request_timeout)?;
        let timing = Self { heartbeat, election_min, election_max, request_timeout };
        timing.check_elections()?;
        timing.assert_invariants();
        Ok(timing)
    }

    fn check_elections(&self) -> Result<(), LimitError> {
        let Self { heartbeat, election_min, election_max, .. } = *self;
        let refused =
            |name, value, rule| Err(LimitError { name, value: duration::text(value), rule });
        let least = election_max / 2 + heartbeat * 2;
        if election_min < least {
            let rule = format!(
                "must be at least half of election_max ({}) and 2 times heartbeat ({}) together, so {}: a shorter \
                 timeout elects a new leader whenever a few heartbeats are late",
                duration::text(election_max),
                duration::text(heartbeat),
                duration::text(least)
            );
            return refused("election_min", election_min, rule);
        }
        let least = election_min + heartbeat;
        if election_max < least {
            let rule = format!(
                "must be at least election_min + heartbeat ({}): if all nodes start their elections at once, no node \
                 wins",
                duration::text(least)
            );
            return refused("election_max", election_max, rule);
        }
        ELECTION_MIN.check("election_min", election_min)?;
        ELECTION_MAX.check("election_max", election_max)
    }

    fn assert_invariants(&self) {
        let wait = self.wait_min();
        assert!(self.heartbeat < self.call_deadline(), "{self:?}");
        assert!(self.call_deadline() < wait && wait < self.lease(), "{self:?}");
        assert!(self.lease() < self.election_min, "{self:?}");
        assert!(self.election_min < self.election_max, "{self:?}");
        assert!(self.lease_used() < self.lease(), "{self:?}");
        assert!(self.round_trip_max() < self.call_deadline(), "{self:?}");
    }

    /// Returns the time after a leader's last message during which its followers vote for no other
    /// node (Raft thesis, section 4.2.3).
    pub fn lease(&self) -> Duration {
        self.election_max / 2
    }

    /// Returns the part of [`Timing::lease`] during which a leader serves reads without a round,
    /// counted from the sending of a heartbeat. The rest is a margin for clocks of different rates.
    pub fn lease_used(&self) -> Duration {
        self.lease() * USED_TENTHS / 10
    }

    /// Returns the shortest random wait after the lease, in which a round of votes must fit.
    pub fn wait_min(&self) -> Duration {
        self.election_min.saturating_sub(self.lease())
    }

    /// Returns the deadline of a heartbeat.
    pub fn call_deadline(&self) -> Duration {
        self.wait_min().saturating_sub(DEADLINE_MARGIN)
    }

    /// Returns the time in which an election usually succeeds: the longest silence, and a second
    /// round of votes.
    pub fn election_time(&self) -> Duration {
        self.election_max * 2
    }

    /// Returns the time for which a request waits for a leader: one election that fails, and one
    /// that succeeds.
    pub fn leader_patience(&self) -> Duration {
        self.election_max * 3
    }

    /// Returns the longest round trip between members with which elections and heartbeats succeed.
    /// A tenth of the deadline is left to the nodes themselves.
    pub fn round_trip_max(&self) -> Duration {
        self.call_deadline() * 9 / 10
    }

    /// Returns the advice for a round trip that is too long. The election timeouts follow
    /// the heartbeat interval if they are not set, and leave three heartbeats for a call.
    pub fn advice(&self, round_trip: Duration) -> String {
        let advised = (round_trip / 2).max(self.heartbeat) + Duration::from_millis(1);
        format!(
            "the round trip of {} is longer than heartbeat ({}), election_min ({}) and election_max ({}) allow \
             together, {}: set heartbeat to {} or more on every node and leave the other two unset",
            duration::text(round_trip),
            duration::text(self.heartbeat),
            duration::text(self.election_min),
            duration::text(self.election_max),
            duration::text(self.round_trip_max()),
            duration::text(advised)
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn timing(
        heartbeat: Option<u64>,
        min: Option<u64>,
        max: Option<u64>,
    ) -> Result<Timing, LimitError> {
        let [heartbeat, min, max] = [heartbeat, min, max].map(|ms| ms.map(Duration::from_millis));
        Timing::new(heartbeat, min, max, None)
    }

    proptest! {
        /// Goal: openraft accepts the values derived from any accepted settings. [`Timing::new`]
        /// itself asserts the inequalities of this module.
        #[test]
        fn accepted_settings_satisfy_the_inequalities(
            heartbeat in prop::option::of(1_u64..20_000),
            min in prop::option::of(1_u64..200_000),
            gap in prop::option::of(0_u64..50_000),
        ) {
            let max = gap.map(|gap| min.unwrap_or(1000) + gap);
            if let Ok(timing) = timing(heartbeat, min, max) {
                let ms = |duration: Duration| duration.as_millis();
                // openraft counts whole milliseconds.
                prop_assert!(ms(timing.call_deadline()) < ms(timing.wait_min()));
                prop_assert!(ms(timing.wait_min()) < ms(timing.lease()));
                prop_assert_eq!(timing.lease() + timing.wait_min(), timing.election_min);
                prop_assert_eq!(timing.lease() * 2, timing.election_max);
            }
        }

        #[test]
        fn every_heartbeat_in_range_is_accepted_alone(heartbeat in 10_u64..=10_000) {
            prop_assert!(timing(Some(heartbeat), None, None).is_ok());
        }
    }

    #[test]
    fn defaults_are_those_of_the_limits() {
        let timing = timing(None, None, None).unwrap();
        assert_eq!(timing.election_min, ELECTION_MIN.default);
        assert_eq!(timing.election_max, ELECTION_MAX.default);
    }

    /// Each line: settings that conflict, and a part of the error.
    #[test]
    fn settings_that_conflict_are_refused() {
        for (heartbeat, min, max, says) in [
            (Some(9), None, None, "heartbeat = 9ms: must be between 10ms and 10s"),
            (None, Some(200), None, "election_min = 200ms: must be at least half of election_max"),
            (None, None, Some(300), "2 times heartbeat (100ms) together, so 350ms"),
            (None, Some(900), Some(950), "must be at least election_min + heartbeat (1s)"),
            (None, Some(u64::MAX), None, "must be between 50ms and 2m"),
            (None, None, Some(u64::MAX), "must be between 60ms and 2m"),
            (None, Some(120_000), None, "election_max = 2m 30s: must be between 60ms and 2m"),
        ] {
            let refusal = timing(heartbeat, min, max).unwrap_err().to_string();
            assert!(refusal.contains(says), "{refusal:?} does not say {says:?}");
        }
    }

    #[test]
    fn defaults_tolerate_a_round_trip_of_250_ms() {
        let timing = timing(None, None, None).unwrap();
        assert!(timing.round_trip_max() > Duration::from_millis(260), "{timing:?}");
    }

    /// Goal: the advised settings tolerate the round trip.
    #[test]
    fn advice_tolerates_the_round_trip() {
        for round_trip in [300, 500, 1000, 3000] {
            let round_trip = Duration::from_millis(round_trip);
            let text = timing(None, None, None).unwrap().advice(round_trip);
            let advised = text.split("set heartbeat to ").nth(1).unwrap();
            let advised = advised.split(" or more").next().unwrap();
            let heartbeat = Some(duration::parse(advised).unwrap());
            let advised = Timing::new(heartbeat, None, None, None).unwrap();
            assert!(advised.round_trip_max() > round_trip, "{text}: {advised:?}");
        }
    }
}
