//! The limits that settings set: one table of names, defaults and ranges.
//!
//! Every constant of type [`Limit`] has the name of its setting in upper case. The validation of
//! settings, the help texts and `docs/operating/limits.md` follow from this table. A node,
//! `conclave check` and the tests use the same defaults.
//!
//! The contract (`wit/types.wit`) guarantees some limits to every state machine, so a configuration
//! cannot set lower values: [`RESPONSE_BYTES_MAX`] and [`EVENT_BYTES_MAX`]. The SDK has the same
//! figures, and a test compares the two.

mod cluster;

use std::time::Duration;

pub use cluster::{ClusterLimits, LimitsChange};

use crate::duration;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const MIB_64: u64 = 1 << 20;
const TIB_64: u64 = 1 << 40;

/// The fuel of a call. Less than the minimum would not even suffice to decode a request.
const FUEL: Limit<u64> = Limit::new(2_000_000_000, 1_000_000, 1_000_000_000_000);

/// The longest time without traffic, and between snapshots.
const WEEK: Duration = seconds(7 * 24 * 3600);

/// The bytes that an event counts in addition to its topic and payload, because the host keeps two
/// vectors per event.
pub const EVENT_OVERHEAD_BYTES: usize = 64;
/// The least difference between the limit of events and the limit of requests, in bytes. The events
/// of a batch repeat its keys, and a command may also delete expired keys.
pub const EVENT_BYTES_ABOVE_REQUEST: usize = MIB;
/// The divisor that gives the fuel of a query from that of a command. Queries of all callers share
/// one instance.
pub const FUEL_PER_QUERY_DIVISOR: u64 = 2;

/// The interval of the leader's heartbeats.
pub const HEARTBEAT: Limit<Duration> = Limit::new(millis(100), millis(10), seconds(10));
/// The shortest silence after which a follower starts an election. The minimum follows from the
/// shortest heartbeat.
pub const ELECTION_MIN: Limit<Duration> = Limit::new(millis(800), millis(50), seconds(120));
/// The longest silence after which a follower starts an election.
pub const ELECTION_MAX: Limit<Duration> = Limit::new(seconds(1), millis(60), seconds(120));
/// The time limit of a request whose caller set no deadline.
pub const REQUEST_TIMEOUT: Limit<Duration> =
    Limit::new(seconds(10), millis(100), CALL_TIME_MAX).because("no call on a node takes longer");
/// The maximum time of a call on a node.
pub const CALL_TIME_MAX: Duration = seconds(300);

/// The largest request message, in bytes.
pub const REQUEST_BYTES_MAX: Limit<usize> = Limit::new(4 * MIB, KIB, 16 * MIB);
/// The largest response of one call, in bytes. The default is that of gRPC clients.
pub const RESPONSE_BYTES_MAX: Limit<usize> =
    Limit::new(4 * MIB, 4 * MIB, 64 * MIB).because(RELIED_ON);
/// The largest events of one entry, in bytes: topics, payloads and [`EVENT_OVERHEAD_BYTES`] per
/// event. The default is twice the largest request, because an event of a key-value store holds
/// the key twice and the value once.
pub const EVENT_BYTES_MAX: Limit<usize> = Limit::new(8 * MIB, 8 * MIB, 64 * MIB).because(RELIED_ON);
const RELIED_ON: &str = "every state machine may rely on the minimum";
/// Fuel of one command or tick.
pub const FUEL_PER_CALL: Limit<u64> = FUEL;
/// Fuel of one query or subscription.
pub const FUEL_PER_QUERY: Limit<u64> =
    FUEL.with_default(FUEL_PER_CALL.default / FUEL_PER_QUERY_DIVISOR);
/// Fuel of one call that moves the whole state. A state machine may serialize a gigabyte in one call.
pub const FUEL_PER_STATE_CALL: Limit<u64> = FUEL.with_default(200_000_000_000);
/// Linear memory of one instance, in bytes. The maximum is the memory that 32-bit addresses reach.
pub const MEMORY_BYTES_MAX: Limit<usize> = Limit::new(1024 * MIB, 16 * MIB, 4096 * MIB - 64 * KIB);

/// The number of commands in flight on the leader.
pub const COMMANDS_IN_FLIGHT_MAX: Limit<usize> = Limit::new(8192, 1, 1_000_000);
/// The number of subscriptions of a node.
pub const SUBSCRIPTIONS_MAX: Limit<usize> = Limit::new(10_000, 1, 1_000_000);
/// The number of subscriptions of a connection. Other calls need room beside them.
pub const SUBSCRIPTIONS_PER_CONNECTION_MAX: Limit<usize> = Limit::new(512, 1, 1000);
/// The number of connections of clients. The limit of open files may lower the default.
pub const CONNECTIONS_MAX: Limit<usize> = Limit::new(4096, 1, 1_000_000);
/// The time after which a connection without calls is closed.
pub const CONNECTION_IDLE: Limit<Duration> = Limit::new(seconds(1800), seconds(1), WEEK).or_never();
/// The age at which a connection is closed.
pub const CONNECTION_AGE: Limit<Duration> = Limit::new(Duration::ZERO, seconds(1), WEEK).or_never();

/// The number of entries since the last snapshot after which one is taken.
pub const SNAPSHOT_ENTRIES: Limit<u64> = Limit::new(50_000, 100, 100_000_000);
/// The bytes of entries since the last snapshot after which one is taken.
pub const SNAPSHOT_BYTES: Limit<u64> = Limit::new(64 * MIB_64, MIB_64, TIB_64);
/// The time since the last snapshot after which one is taken.
pub const SNAPSHOT_INTERVAL: Limit<Duration> =
    Limit::new(seconds(3600), seconds(1), WEEK).or_never();
/// The number of new entries that a snapshot by time requires.
pub const SNAPSHOT_INTERVAL_ENTRIES: Limit<u64> = Limit::new(1000, 1, 100_000_000);
/// The number of entries that stay in the log although a snapshot covers them.
pub const KEEP_ENTRIES: Limit<u64> = Limit::new(5000, 0, 10_000_000);
/// The bytes of entries that stay in the log although a snapshot covers them.
pub const KEEP_BYTES: Limit<u64> = Limit::new(64 * MIB_64, 0, TIB_64);
/// The bytes of log that a leader retains for a follower that is catching up.
pub const CATCH_UP_BYTES: Limit<u64> = Limit::new(1024 * MIB_64, MIB_64, TIB_64);
/// The time without progress after which the transfer of a snapshot ends.
pub const SNAPSHOT_STALL: Limit<Duration> = Limit::new(seconds(30), seconds(1), seconds(600));
/// The interval between consistency checks.
pub const CONSISTENCY_CHECK_INTERVAL: Limit<Duration> =
    Limit::new(seconds(10), millis(100), seconds(3600)).or_never();

const fn millis(number: u64) -> Duration {
    Duration::from_millis(number)
}

const fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

/// A value that a limit bounds.
pub trait LimitValue: Copy + PartialOrd + Default {
    /// Returns the value as a user writes it.
    fn text(self) -> String;
}

impl LimitValue for u64 {
    fn text(self) -> String {
        self.to_string()
    }
}

impl LimitValue for usize {
    fn text(self) -> String {
        self.to_string()
    }
}

impl LimitValue for Duration {
    fn text(self) -> String {
        duration::text(self)
    }
}

/// The default and the range of a setting.
#[derive(Clone, Copy, Debug)]
pub struct Limit<T> {
    /// The value if none is given.
    pub default: T,
    /// The smallest allowed value.
    pub min: T,
    /// The largest allowed value.
    pub max: T,
    /// Zero is allowed as well, and disables the function.
    pub or_never: bool,
    /// The reason for the range, if it is not obvious.
    reason: &'static str,
}

impl<T: LimitValue> Limit<T> {
    const fn new(default: T, min: T, max: T) -> Self {
        Self { default, min, max, or_never: false, reason: "" }
    }

    const fn with_default(self, default: T) -> Self {
        Self { default, ..self }
    }

    const fn or_never(self) -> Self {
        Self { or_never: true, ..self }
    }

    const fn because(self, reason: &'static str) -> Self {
        Self { reason, ..self }
    }

    /// Returns the given value, or else the default.
    pub fn or_default(&self, given: Option<impl Into<T>>) -> T {
        given.map_or(self.default, Into::into)
    }

    /// Rejects a value that is out of range. `name` is that of the setting.
    pub fn check(&self, name: &'static str, value: T) -> Result<(), LimitError> {
        let is_in_range = self.min <= value && value <= self.max;
        if is_in_range || self.or_never && value == T::default() {
            return Ok(());
        }
        let (min, max) = (self.min.text(), self.max.text());
        let never = if self.or_never { ", or 0 for never" } else { "" };
        let colon = if self.reason.is_empty() { "" } else { ": " };
        let rule = format!("must be between {min} and {max}{never}{colon}{}", self.reason);
        Err(LimitError { name, value: value.text(), rule })
    }

    /// Returns the default and the range for a help text: `[default: 100ms; 10ms to 10s]`.
    #[must_use]
    pub fn help(&self) -> String {
        format!("[default: {}; {}]", self.default.text(), self.range())
    }

    /// Returns the range for a help text: `10ms to 10s`.
    #[must_use]
    pub fn range(&self) -> String {
        let never = if self.or_never { ", or 0" } else { "" };
        format!("{} to {}{never}", self.min.text(), self.max.text())
    }
}

/// The error for a limit that is out of range, or that conflicts with another limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} = {value}: {rule}")]
pub struct LimitError {
    /// The name of the limit.
    pub name: &'static str,
    /// The rejected value.
    pub value: String,
    /// The values that are allowed.
    pub rule: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_outside_the_range_are_refused_with_the_range() {
        let check = |limit: &Limit<Duration>, ms| {
            limit.check("it", millis(ms)).map_err(|error| error.to_string())
        };
        assert_eq!(check(&HEARTBEAT, 10), Ok(()));
        assert_eq!(check(&HEARTBEAT, 10_000), Ok(()));
        let rule = "it = 9ms: must be between 10ms and 10s";
        assert_eq!(check(&HEARTBEAT, 9), Err(rule.to_owned()));
        assert!(check(&HEARTBEAT, 0).is_err());
        assert_eq!(check(&CONNECTION_IDLE, 0), Ok(()));
        let rule = "it = 1ms: must be between 1s and 7days, or 0 for never";
        assert_eq!(check(&CONNECTION_IDLE, 1), Err(rule.to_owned()));
    }

    #[test]
    fn help_has_the_default_and_the_range() {
        assert_eq!(HEARTBEAT.help(), "[default: 100ms; 10ms to 10s]");
        assert_eq!(CONNECTION_IDLE.help(), "[default: 30m; 1s to 7days, or 0]");
        assert_eq!(REQUEST_BYTES_MAX.help(), "[default: 4194304; 1024 to 16777216]");
    }
}
