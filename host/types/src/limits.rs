//! Defaults of the limits that several layers share, in one place: a node, `conclave check` and the tests use the
//! same ones.
//!
//! The limits that a state machine may rely on are part of the contract (`wit/types.wit`): [`RESPONSE_BYTES`] and
//! [`EVENT_BYTES`] are also the least that a node's configuration allows. The SDK has the same figures, and a
//! test holds the two together.

use bytes::Bytes;

const MIB: usize = 1 << 20;

/// The largest request message, in bytes.
pub const REQUEST_BYTES: usize = 4 * MIB;
/// The largest response of one call, in bytes: what gRPC clients take by default.
pub const RESPONSE_BYTES: usize = 4 * MIB;
/// The events of one entry, in bytes: topics, payloads and [`EVENT_OVERHEAD_BYTES`] for each event. Twice the
/// largest request, because an event of a key-value store holds the key twice and the value once.
pub const EVENT_BYTES: usize = 8 * MIB;
/// The bytes that an event counts beside its topic and payload: the host keeps two vectors for it.
pub const EVENT_OVERHEAD_BYTES: usize = 64;
/// The bytes by which the limit of events exceeds that of requests, at least: for the keys of a batch, which
/// its events repeat, and the expired keys that a command may delete beside its own work.
pub const EVENT_BYTES_ABOVE_REQUEST: usize = MIB;
/// Fuel of one command or tick.
pub const FUEL_PER_CALL: u64 = 2_000_000_000;
/// The fuel of a query as a fraction of that of a command: queries of all callers share one instance.
pub const FUEL_PER_QUERY_DIVISOR: u64 = 2;
/// Fuel of one call that moves the whole state: a state machine may serialize a gigabyte in one call.
pub const FUEL_PER_STATE_CALL: u64 = 200_000_000_000;
/// Linear memory of one instance, in bytes.
pub const MEMORY_BYTES: usize = 1024 * MIB;
/// The most that 32-bit addresses reach.
pub const MEMORY_BYTES_MOST: usize = 4096 * MIB - (64 << 10);

/// The limits that decide outcomes: the same on every node at the same entry.
///
/// A cluster begins with [`ClusterLimits::DEFAULT`]. Every change is an entry of the log, and a snapshot holds the limits
/// of its index, so no entry is ever applied under other limits than the first time. The stack and the tables of a
/// state machine decide outcomes too; they are constants of a version and part of the engine's fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterLimits {
    /// Linear memory of one instance, all its memories together, in bytes. A node keeps two instances, and a third
    /// while it restores a snapshot. Calls that move the state have twice as much
    /// ([`Self::state_call_memory_bytes_max`]).
    pub memory_bytes_max: usize,
    /// Fuel of one `apply` or `tick`; about one unit an instruction, and more for those that take longer
    /// (`machine/engine.rs`). A put of 256 bytes into the key-value store takes 1.6×10⁴.
    pub fuel_per_call: u64,
    /// Fuel of one `query` or `subscribe`. Decides no outcome of an entry, but answers should not depend on the node.
    pub fuel_per_query: u64,
    /// Fuel of one call that moves the whole state: `describe`, `snapshot`, `restore`, `finish`.
    pub fuel_per_state_call: u64,
    /// The response of one call, in bytes; for a subscription its initial messages together. A command whose
    /// response is larger traps; a query fails.
    pub response_bytes_max: usize,
    /// The events of one entry, in bytes: topics, payloads and [`EVENT_OVERHEAD_BYTES`] for each event.
    pub event_bytes_max: usize,
}

/// A change of limits. Absent: as before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitsChange {
    /// See [`ClusterLimits`].
    pub memory_bytes_max: Option<usize>,
    /// See [`ClusterLimits`].
    pub fuel_per_call: Option<u64>,
    /// See [`ClusterLimits`]. Absent with a `fuel_per_call`: half of that.
    pub fuel_per_query: Option<u64>,
    /// See [`ClusterLimits`].
    pub fuel_per_state_call: Option<u64>,
    /// See [`ClusterLimits`].
    pub response_bytes_max: Option<usize>,
    /// See [`ClusterLimits`].
    pub event_bytes_max: Option<usize>,
}

impl LimitsChange {
    /// The limits that are given here and have another value there: name, the value here, the value there.
    pub fn differences(&self, limits: &ClusterLimits) -> Vec<(&'static str, u64, u64)> {
        let bytes = |bytes: Option<usize>| bytes.map(|bytes| bytes as u64);
        let given = [
            bytes(self.memory_bytes_max),
            self.fuel_per_call,
            self.fuel_per_query,
            self.fuel_per_state_call,
            bytes(self.response_bytes_max),
            bytes(self.event_bytes_max),
        ];
        let pairs = given.into_iter().zip(limits.by_name());
        let pairs = pairs.filter_map(|(given, (name, there))| Some((name, given?, there)));
        pairs.filter(|(_, here, there)| here != there).collect()
    }
}

/// A limit that is out of range, or does not fit another one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} = {value}: {rule}")]
pub struct LimitError {
    /// The limit.
    pub name: &'static str,
    /// The value that was to be set.
    pub value: u64,
    /// The values that are allowed.
    pub rule: String,
}

/// A call with less fuel would not get through its own decoding.
const FUEL_LEAST: u64 = 1_000_000;
const FUEL_MOST: u64 = 1_000_000_000_000;
/// The least memory that a configuration may allow.
const MEMORY_BYTES_LEAST: usize = 16 * MIB;
/// The largest answer that a configuration may allow.
const ANSWER_BYTES_MOST: usize = 64 * MIB;

impl ClusterLimits {
    /// The limits before any entry, and the defaults. Never change them: the log of every cluster rests on them up to
    /// the first change. A newer version that wants other defaults sets them with an entry, as a configuration does.
    pub const DEFAULT: Self = Self {
        memory_bytes_max: MEMORY_BYTES,
        fuel_per_call: FUEL_PER_CALL,
        fuel_per_query: FUEL_PER_CALL / FUEL_PER_QUERY_DIVISOR,
        fuel_per_state_call: FUEL_PER_STATE_CALL,
        response_bytes_max: RESPONSE_BYTES,
        event_bytes_max: EVENT_BYTES,
    };

    /// Linear memory during `snapshot`, `read`, `restore`, `write` and `finish`, in bytes. It is twice `memory_bytes_max`,
    /// because such a call often holds the state and its bytes together: a call that would let the state grow beyond
    /// the limit traps, and what is below the limit can be saved and restored.
    #[must_use]
    pub fn state_call_memory_bytes_max(&self) -> usize {
        self.memory_bytes_max.saturating_mul(2).min(MEMORY_BYTES_MOST)
    }

    /// These limits with a change.
    ///
    /// # Errors
    /// A limit is out of range, or too small for requests of `request_bytes_max`.
    pub fn changed(
        &self,
        change: &LimitsChange,
        request_bytes_max: usize,
    ) -> Result<Self, LimitError> {
        let fuel_per_call = change.fuel_per_call.unwrap_or(self.fuel_per_call);
        let half = (fuel_per_call / FUEL_PER_QUERY_DIVISOR).max(FUEL_LEAST);
        let fuel_per_query = match change.fuel_per_call {
            Some(_) => half,
            None => self.fuel_per_query,
        };
        let limits = Self {
            memory_bytes_max: change.memory_bytes_max.unwrap_or(self.memory_bytes_max),
            fuel_per_call,
            fuel_per_query: change.fuel_per_query.unwrap_or(fuel_per_query),
            fuel_per_state_call: change.fuel_per_state_call.unwrap_or(self.fuel_per_state_call),
            response_bytes_max: change.response_bytes_max.unwrap_or(self.response_bytes_max),
            event_bytes_max: change.event_bytes_max.unwrap_or(self.event_bytes_max),
        };
        limits.check()?;
        limits.check_fits(request_bytes_max)?;
        Ok(limits)
    }

    /// Refuses a limit that is out of range.
    pub fn check(&self) -> Result<(), LimitError> {
        let fuel = |name, value: u64| {
            let rule = || format!("must be between {FUEL_LEAST} and {FUEL_MOST}");
            within(name, value, FUEL_LEAST..=FUEL_MOST, rule)
        };
        let bytes = |name, value: usize, least: usize, most: usize, why: &str| {
            let rule = || format!("must be between {least}{why} and {most}");
            within(name, value as u64, least as u64..=most as u64, rule)
        };
        let relied_on = ", which every state machine may rely on,";
        bytes(
            "memory_bytes_max",
            self.memory_bytes_max,
            MEMORY_BYTES_LEAST,
            MEMORY_BYTES_MOST,
            "",
        )?;
        fuel("fuel_per_call", self.fuel_per_call)?;
        fuel("fuel_per_query", self.fuel_per_query)?;
        fuel("fuel_per_state_call", self.fuel_per_state_call)?;
        bytes(
            "response_bytes_max",
            self.response_bytes_max,
            RESPONSE_BYTES,
            ANSWER_BYTES_MOST,
            relied_on,
        )?;
        bytes("event_bytes_max", self.event_bytes_max, EVENT_BYTES, ANSWER_BYTES_MOST, relied_on)
    }

    /// An answer may return what a request stored, and its events repeat it.
    fn check_fits(&self, request_bytes_max: usize) -> Result<(), LimitError> {
        if self.response_bytes_max < request_bytes_max {
            return Err(LimitError {
                name: "response_bytes_max",
                value: self.response_bytes_max as u64,
                rule: format!(
                    "must be at least request_bytes_max ({request_bytes_max}), because an answer may return what a \
                     request stored: raise response_bytes_max or lower request_bytes_max"
                ),
            });
        }
        let least = request_bytes_max + EVENT_BYTES_ABOVE_REQUEST;
        if self.event_bytes_max < least {
            return Err(LimitError {
                name: "event_bytes_max",
                value: self.event_bytes_max as u64,
                rule: format!(
                    "must be at least {least}, 1 MiB more than request_bytes_max ({request_bytes_max}), because the \
                     events of a command repeat what it stores: raise event_bytes_max or lower request_bytes_max"
                ),
            });
        }
        Ok(())
    }

    /// The limits as they count in the digest of outcomes: each as eight bytes, little-endian, in the order of
    /// [`Self::by_name`].
    pub fn to_bytes(&self) -> Bytes {
        let bytes: Vec<u8> =
            self.by_name().iter().flat_map(|(_, value)| value.to_le_bytes()).collect();
        bytes.into()
    }

    /// The limits by name.
    pub fn by_name(&self) -> [(&'static str, u64); 6] {
        [
            ("memory_bytes_max", self.memory_bytes_max as u64),
            ("fuel_per_call", self.fuel_per_call),
            ("fuel_per_query", self.fuel_per_query),
            ("fuel_per_state_call", self.fuel_per_state_call),
            ("response_bytes_max", self.response_bytes_max as u64),
            ("event_bytes_max", self.event_bytes_max as u64),
        ]
    }
}

fn within(
    name: &'static str,
    value: u64,
    range: std::ops::RangeInclusive<u64>,
    rule: impl FnOnce() -> String,
) -> Result<(), LimitError> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(LimitError { name, value, rule: rule() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;

    #[test]
    fn a_change_leaves_the_other_limits() {
        let change = LimitsChange { memory_bytes_max: Some(64 * MIB), ..LimitsChange::default() };
        let changed = ClusterLimits::DEFAULT.changed(&change, REQUEST_BYTES).unwrap();
        let expected = ClusterLimits { memory_bytes_max: 64 * MIB, ..ClusterLimits::DEFAULT };
        assert_eq!(changed, expected);
        assert_eq!(change.differences(&changed), []);
        assert_eq!(
            change.differences(&ClusterLimits::DEFAULT),
            [("memory_bytes_max", 64 << 20, 1 << 30)]
        );
    }

    #[test]
    fn the_fuel_of_queries_follows_that_of_commands_unless_it_is_given() {
        let changed = |fuel_per_call, fuel_per_query| {
            let change = LimitsChange { fuel_per_call, fuel_per_query, ..LimitsChange::default() };
            let changed = ClusterLimits::DEFAULT.changed(&change, REQUEST_BYTES).unwrap();
            (changed.fuel_per_call, changed.fuel_per_query)
        };
        assert_eq!(changed(Some(8_000_000), None), (8_000_000, 4_000_000));
        assert_eq!(changed(Some(1_000_000), None), (1_000_000, 1_000_000));
        assert_eq!(changed(Some(8_000_000), Some(2_000_000)), (8_000_000, 2_000_000));
        assert_eq!(changed(None, Some(7_000_000)), (2_000_000_000, 7_000_000));
        assert_eq!(changed(None, None), (2_000_000_000, 1_000_000_000));
    }

    #[test]
    fn limits_that_cannot_hold_are_refused_by_name() {
        type Case = (fn(&mut LimitsChange), usize, &'static str);
        let cases: &[Case] = &[
            (|c| c.memory_bytes_max = Some(1 << 20), REQUEST_BYTES, "memory_bytes_max"),
            (|c| c.memory_bytes_max = Some(1 << 32), REQUEST_BYTES, "memory_bytes_max"),
            (|c| c.fuel_per_call = Some(999_999), REQUEST_BYTES, "fuel_per_call"),
            (|c| c.fuel_per_query = Some(0), REQUEST_BYTES, "fuel_per_query"),
            (|c| c.fuel_per_state_call = Some(1 << 50), REQUEST_BYTES, "fuel_per_state_call"),
            (|c| c.response_bytes_max = Some(1 << 20), REQUEST_BYTES, "may rely on"),
            (|c| c.event_bytes_max = Some(1 << 20), REQUEST_BYTES, "may rely on"),
            (|_| (), 5 * MIB, "raise response_bytes_max"),
            (|c| c.response_bytes_max = Some(16 * MIB), 8 * MIB, "raise event_bytes_max"),
        ];
        for (change, request_bytes_max, says) in cases {
            let mut changed = LimitsChange::default();
            change(&mut changed);
            let refused = ClusterLimits::DEFAULT.changed(&changed, *request_bytes_max);
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains(says), "{refused:?} does not say {says:?}");
        }
    }
}
