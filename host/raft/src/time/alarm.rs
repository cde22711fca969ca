//! Alarms about clocks that disagree.

use std::fmt;

/// A disagreement of clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alarm {
    /// The majority's clock is ahead of this node's own by this many nanoseconds, or behind it if
    /// negative.
    OwnClock(i128),
    /// The log's time is ahead of the majority's clocks by this many nanoseconds, or behind them if
    /// negative.
    LogTime(i128),
    /// No majority of the voters' clocks agrees.
    NoMajority,
}

impl Alarm {
    /// Whether both alarms say the same except for the amount, which changes all the time.
    pub(super) fn is_like(self, other: Self) -> bool {
        match (self, other) {
            (Self::OwnClock(by), Self::OwnClock(other))
            | (Self::LogTime(by), Self::LogTime(other)) => (by < 0) == (other < 0),
            (Self::NoMajority, Self::NoMajority) => true,
            _ => false,
        }
    }
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::OwnClock(by) => write!(
                f,
                "this node's clock is {} the majority's by {}: check its time synchronization",
                if by < 0 { "ahead of" } else { "behind" },
                seconds(by)
            ),
            Self::LogTime(by) if by > 0 => write!(
                f,
                "the log's time is ahead of the majority's clocks by {}: ttls keep their lengths, but times \
                 of day in state machines are wrong by that amount",
                seconds(by)
            ),
            Self::LogTime(by) => write!(
                f,
                "the log's time is behind the majority's clocks by {}: if the clocks are right, run \
                 `conclave cluster set-time now`",
                seconds(by)
            ),
            Self::NoMajority => f.write_str(
                "no majority of the voters' clocks agrees: check the nodes' time synchronization",
            ),
        }
    }
}

fn seconds(nanos: i128) -> String {
    format!("{:.1} s", nanos.unsigned_abs() as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only a change of the kind or of the direction is logged.
    #[test]
    fn amounts_do_not_distinguish_alarms() {
        let alarms =
            [Alarm::OwnClock(5), Alarm::OwnClock(-5), Alarm::LogTime(5), Alarm::LogTime(-5)];
        for (at, one) in alarms.iter().chain([&Alarm::NoMajority]).enumerate() {
            for (other_at, other) in alarms.iter().chain([&Alarm::NoMajority]).enumerate() {
                assert_eq!(one.is_like(*other), at == other_at, "{one:?} and {other:?}");
            }
        }
        assert!(Alarm::OwnClock(5).is_like(Alarm::OwnClock(7_000_000_000)));
        assert!(Alarm::LogTime(-5).is_like(Alarm::LogTime(-7_000_000_000)));
        assert!(
            Alarm::OwnClock(-2_500_000_000)
                .to_string()
                .contains("ahead of the majority's by 2.5 s")
        );
    }
}
