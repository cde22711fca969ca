//! Tests of the timing rules, for all accepted settings.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use super::{Config, Settings, Timing};

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

/// Goal: openraft accepts the values derived from any accepted settings, and a call has more time
/// than a heartbeat interval.
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

/// Goal: the advised settings tolerate the round trip.
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
