//! Exponential back-off with jitter, and a log that repeats itself at most once per minute.

use std::time::{Duration, Instant};

/// The first retry is quick: a process that was restarted listens again within some 10 ms.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A peer that refuses this node does not change its mind by itself.
const REFUSED_PAUSE_MAX: Duration = Duration::from_secs(5);
/// How often a problem that lasts is logged again.
const REPEAT_INTERVAL: Duration = Duration::from_secs(60);
/// A problem that is over by then is not logged: members start one after the other.
const QUIET: Duration = Duration::from_secs(1);

/// The pause before attempt `failures + 1`: it doubles from 20 ms to a second, and a random part of up to a
/// half is taken off, so that nodes do not retry in step.
pub(super) fn pause(failures: u32) -> Duration {
    jittered(PAUSE_MIN.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(PAUSE_MAX))
}

/// The same after refusals.
pub(super) fn pause_refused(refusals: u32) -> Duration {
    jittered(PAUSE_MAX.saturating_mul(refusals.clamp(1, 5)).min(REFUSED_PAUSE_MAX))
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..=1.0))
}

/// A problem that may repeat: when it began, and when it was last logged.
#[derive(Debug, Default)]
pub(super) struct Problem {
    began: Option<Instant>,
    logged: Option<Instant>,
    reason: String,
    count: u64,
}

impl Problem {
    /// Counts one more occurrence. Returns how often it has occurred, if that is to be logged now: a refusal
    /// at once, an unreachable peer after a second; then again once per minute, or with another refusal.
    pub(super) fn occurred(&mut self, reason: &str, refused: bool, now: Instant) -> Option<u64> {
        let began = *self.began.get_or_insert(now);
        self.count += 1;
        let due = match self.logged {
            None => refused || now.duration_since(began) >= QUIET,
            Some(logged) if now.duration_since(logged) >= REPEAT_INTERVAL => true,
            // Why a peer cannot be reached changes all the time; why it refuses does not.
            Some(logged) => refused && reason != self.reason && now.duration_since(logged) >= QUIET,
        };
        due.then(|| {
            self.logged = Some(now);
            reason.clone_into(&mut self.reason);
            self.count
        })
    }

    /// Ends the problem. Returns how often it occurred, if it had been logged.
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
