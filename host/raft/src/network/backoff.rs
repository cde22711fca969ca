//! Exponential back-off with jitter, and a rate limit for repeated log messages.

use std::time::{Duration, Instant};

use crate::timing::{RETRY_PAUSE_MAX as PAUSE_MAX, RETRY_PAUSE_MIN as PAUSE_MIN};

/// The limit after refusals: a peer that refuses this node rarely accepts it later by itself.
const REFUSED_PAUSE_MAX: Duration = Duration::from_secs(5);
/// The interval at which a lasting problem is logged again.
const REPEAT_INTERVAL: Duration = Duration::from_secs(60);
/// A problem that ends within this time is not logged, because members start one after the other.
const QUIET: Duration = Duration::from_secs(1);

/// Returns the pause before attempt `failures + 1`. It doubles from [`PAUSE_MIN`] to
/// [`PAUSE_MAX`]. A random
/// part of up to one half is subtracted, so that nodes do not retry in step.
pub(super) fn pause(failures: u32) -> Duration {
    jittered(PAUSE_MIN.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(PAUSE_MAX))
}

/// Returns the pause after refusals.
pub(super) fn pause_refused(refusals: u32) -> Duration {
    jittered(PAUSE_MAX.saturating_mul(refusals.clamp(1, 5)).min(REFUSED_PAUSE_MAX))
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..=1.0))
}

/// A problem that may repeat, with the times of its first occurrence and of its last log message.
#[derive(Debug, Default)]
pub(super) struct Problem {
    began: Option<Instant>,
    logged: Option<Instant>,
    reason: String,
    count: u64,
}

impl Problem {
    /// Counts one more occurrence. Returns the number of occurrences if the problem is to be logged
    /// now. A refusal is logged at once, an unreachable peer after one second. Then the problem is
    /// logged again once per minute, or when the reason of a refusal changes.
    pub(super) fn occurred(&mut self, reason: &str, refused: bool, now: Instant) -> Option<u64> {
        let began = *self.began.get_or_insert(now);
        self.count += 1;
        let due = match self.logged {
            None => refused || now.duration_since(began) >= QUIET,
            Some(logged) if now.duration_since(logged) >= REPEAT_INTERVAL => true,
            // The reason why a peer cannot be reached changes often. The reason of a refusal does not.
            Some(logged) => refused && reason != self.reason && now.duration_since(logged) >= QUIET,
        };
        due.then(|| {
            self.logged = Some(now);
            reason.clone_into(&mut self.reason);
            self.count
        })
    }

    /// Ends the problem. Returns the number of occurrences if the problem was logged.
    pub(super) fn over(&mut self) -> Option<u64> {
        let ended = std::mem::take(self);
        ended.logged.map(|_| ended.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_second_and_never_vanish() {
        for (failures, longest) in [(1, 20), (2, 40), (3, 80), (7, 1000), (u32::MAX, 1000)] {
            let longest = Duration::from_millis(longest);
            for _ in 0..20 {
                let pause = pause(failures);
                assert!(pause <= longest && pause >= longest / 2, "{failures}: {pause:?}");
            }
        }
        assert!(pause_refused(100) >= REFUSED_PAUSE_MAX / 2);
    }

    #[test]
    fn problem_is_logged_once_and_then_once_per_minute() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut problem = Problem::default();
        let logged =
            (0..180).filter_map(|at| problem.occurred("refused", true, start + second * at));
        assert_eq!(logged.collect::<Vec<_>>(), [1, 61, 121]);
        assert_eq!(problem.over(), Some(180));
        assert_eq!(problem.over(), None, "it is over");
        let logged = (0..90).filter_map(|at| problem.occurred("down", false, start + second * at));
        assert_eq!(logged.collect::<Vec<_>>(), [2, 62], "not at once");
    }
}
