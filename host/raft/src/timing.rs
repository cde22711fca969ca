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

use std::time::Duration;

/// openraft requires its heartbeat interval to be shorter than the shortest wait.
const DEADLINE_MARGIN: Duration = Duration::from_millis(1);

/// The timing of elections and calls. The election timeout must be several heartbeats, because
/// otherwise a single late heartbeat starts an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The interval between a leader's heartbeats. Default 100 ms, at least 10 ms.
    pub heartbeat: Duration,
    /// The lower bound of the random time after which a follower without messages starts an
    /// election. Default 800 ms, at least half of `election_max` and 2 heartbeats.
    pub election_min: Duration,
    /// The upper bound of that time. Default 1000 ms, at least `election_min` and a heartbeat.
    pub election_max: Duration,
    /// The time limit of a request whose caller set no deadline. Default 10 s.
    pub request_timeout: Duration,
}

impl Timing {
    /// Returns the time after a leader's last message during which its followers vote for no other
    /// node (Raft thesis, section 4.2.3).
    pub fn lease(&self) -> Duration {
        self.election_max / 2
    }

    /// Returns the shortest random wait after the lease, in which a round of votes must fit.
    pub fn wait_min(&self) -> Duration {
        self.election_min.saturating_sub(self.lease())
    }

    /// Returns the deadline of a heartbeat.
    pub fn call_deadline(&self) -> Duration {
        self.wait_min().saturating_sub(DEADLINE_MARGIN)
    }

    /// Returns the longest round trip between members with which elections and heartbeats succeed.
    /// A tenth of the deadline is left to the nodes themselves.
    pub fn round_trip_max(&self) -> Duration {
        self.call_deadline() * 9 / 10
    }

    /// Returns the advice for a round trip that is too long. The election timeouts follow
    /// `heartbeat_ms` if they are not set, and leave three heartbeats for a call.
    pub fn advice(&self, round_trip: Duration) -> String {
        format!(
            "the round trip of {} ms is longer than heartbeat_ms ({}), election_min_ms ({}) and \
             election_max_ms ({}) allow together, {} ms: set heartbeat_ms to {} or more on every node and \
             leave the other two unset",
            round_trip.as_millis(),
            self.heartbeat.as_millis(),
            self.election_min.as_millis(),
            self.election_max.as_millis(),
            self.round_trip_max().as_millis(),
            (round_trip.as_millis() / 2).max(self.heartbeat.as_millis() + 1)
        )
    }
}
