//! The timing of elections, heartbeats and peer calls, and the arithmetic between them.
//!
//! openraft has three settings; ours are what an operator observes. In openraft a follower waits for one
//! *lease*, its longest election timeout, and then for a random time between its two timeouts. So the
//! silence that starts an election lies between [`Timing::election_min`] and [`Timing::election_max`]
//! exactly if the lease is half of `election_max`, and the shortest wait is `election_min` less the lease.
//!
//! openraft bounds a heartbeat by its heartbeat interval and a vote by its shortest wait, so both settings
//! limit the round trips that a cluster tolerates. Heartbeats are therefore sent by our own clock, at
//! [`Timing::heartbeat`], and openraft's interval is the longest deadline that it allows.

use std::time::Duration;

/// openraft requires its heartbeat interval to be shorter than the shortest wait.
const DEADLINE_MARGIN: Duration = Duration::from_millis(1);

/// The timing of elections and calls. The election timeout must be several heartbeats, or a single late one
/// starts an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often a leader sends heartbeats. Default 100 ms, at least 10 ms.
    pub heartbeat: Duration,
    /// A follower that receives nothing for a random time between these two starts an election. Default
    /// 800 ms, at least half of `election_max` and 2 heartbeats.
    pub election_min: Duration,
    /// Default 1000 ms, at least `election_min` and a heartbeat.
    pub election_max: Duration,
    /// How long a request may take whose caller set no deadline. Default 10 s.
    pub request_timeout: Duration,
}

impl Timing {
    /// How long after the last message of a leader its followers grant no other node a vote.
    pub fn lease(&self) -> Duration {
        self.election_max / 2
    }

    /// The shortest random wait after the lease, in which a round of votes must fit.
    pub fn wait_min(&self) -> Duration {
        self.election_min.saturating_sub(self.lease())
    }

    /// The deadline of a heartbeat.
    pub fn call_deadline(&self) -> Duration {
        self.wait_min().saturating_sub(DEADLINE_MARGIN)
    }

    /// The longest round trip between members with which elections and heartbeats succeed. A tenth of the
    /// deadline is left to the nodes themselves.
    pub fn round_trip_max(&self) -> Duration {
        self.call_deadline() * 9 / 10
    }

    /// The advice for a round trip that is too long. The election timeouts follow `heartbeat_ms` if they
    /// are not set, and leave three heartbeats for a call.
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::config::{Config, Settings};

    fn timing(heartbeat: Option<u64>, min: Option<u64>, max: Option<u64>) -> Option<Timing> {
        let settings = Settings {
            node_id: Some(1),
            cluster_id: Some("test".into()),
            data_dir: Some("/tmp/none".into()),
            master_key_file: Some("/tmp/key".into()),
            members: vec!["1=127.0.0.1:7201,127.0.0.1:7101".into()],
            heartbeat_ms: heartbeat,
            election_min_ms: min,
            election_max_ms: max,
            ..Settings::default()
        };
        Config::from_settings(settings, None).ok().map(|config| config.timing)
    }

    /// Whatever settings are accepted, openraft accepts what follows from them, and a call has more time than
    /// a heartbeat interval.
    #[test]
    fn accepted_settings_satisfy_the_inequalities() {
        let choices = [None, Some(10), Some(50), Some(100), Some(400), Some(1000), Some(5000)];
        let longer = [None, Some(300), Some(900), Some(1000), Some(4000), Some(35_000)];
        let mut accepted = 0;
        for heartbeat in choices {
            for min in longer {
                for max in longer {
                    let Some(timing) = timing(heartbeat, min, max) else { continue };
                    accepted += 1;
                    assert!(timing.wait_min() < timing.lease(), "{timing:?}");
                    assert!(timing.call_deadline() < timing.wait_min(), "{timing:?}");
                    assert!(timing.call_deadline() > timing.heartbeat, "{timing:?}");
                    assert_eq!(timing.lease() + timing.wait_min(), timing.election_min);
                    assert_eq!(timing.lease() * 2, timing.election_max);
                }
            }
        }
        assert!(accepted > 20, "{accepted}");
    }

    #[test]
    fn defaults_tolerate_a_round_trip_of_250_ms() {
        let timing = timing(None, None, None).unwrap();
        assert!(timing.round_trip_max() > Duration::from_millis(260), "{timing:?}");
    }

    /// The advice is sufficient.
    #[test]
    fn advice_tolerates_the_round_trip() {
        for round_trip in [300, 500, 1000, 3000] {
            let round_trip = Duration::from_millis(round_trip);
            let text = timing(None, None, None).unwrap().advice(round_trip);
            let heartbeat = text.split("heartbeat_ms to ").nth(1).unwrap();
            let heartbeat = heartbeat.split(' ').next().unwrap().parse().unwrap();
            let advised = timing(Some(heartbeat), None, None).unwrap();
            assert!(advised.round_trip_max() > round_trip, "{text}: {advised:?}");
        }
    }
}
