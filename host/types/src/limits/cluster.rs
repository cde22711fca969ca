//! The limits that decide outcomes: the same on every node at the same entry.

use bytes::Bytes;

use super::{
    EVENT_BYTES_ABOVE_REQUEST, EVENT_BYTES_MAX, FUEL_PER_CALL, FUEL_PER_QUERY,
    FUEL_PER_QUERY_DIVISOR, FUEL_PER_STATE_CALL, LimitError, MEMORY_BYTES_MAX, RESPONSE_BYTES_MAX,
};

/// The limits that decide outcomes. They are the same on every node at the same entry.
///
/// A cluster starts with [`ClusterLimits::DEFAULT`]. Every change is a log entry, and a snapshot
/// holds the limits of its index. Replaying an entry therefore always uses the limits that it was
/// first applied with. The stack and the tables of a state machine also decide outcomes. They are
/// constants of a version, and part of the engine's fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterLimits {
    /// Linear memory of one instance in bytes, as the sum of all its memories. A node keeps two
    /// instances, and a third while it restores a snapshot. Calls that move the state have twice as
    /// much ([`Self::state_call_memory_bytes_max`]).
    pub memory_bytes_max: usize,
    /// Fuel of one `apply` or `tick`: about one unit per instruction, and more for slow instructions
    /// (`machine/engine.rs`). A put of 256 bytes into the key-value store takes 1.6×10⁴.
    pub fuel_per_call: u64,
    /// Fuel of one `query` or `subscribe`. It decides no outcome of an entry, but responses should
    /// not depend on the node.
    pub fuel_per_query: u64,
    /// Fuel of one call that moves the whole state: `describe`, `snapshot`, `restore`, `finish`.
    pub fuel_per_state_call: u64,
    /// The largest response of one call in bytes. For a subscription, the sum of its initial
    /// messages. A command whose response is larger traps, and a query fails.
    pub response_bytes_max: usize,
    /// The largest events of one entry, in bytes: topics, payloads and [`super::EVENT_OVERHEAD_BYTES`] per event.
    pub event_bytes_max: usize,
}

/// A change of limits. An absent limit keeps its value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitsChange {
    /// See [`ClusterLimits`].
    pub memory_bytes_max: Option<usize>,
    /// See [`ClusterLimits`].
    pub fuel_per_call: Option<u64>,
    /// See [`ClusterLimits`]. If absent while `fuel_per_call` is given: half of `fuel_per_call`.
    pub fuel_per_query: Option<u64>,
    /// See [`ClusterLimits`].
    pub fuel_per_state_call: Option<u64>,
    /// See [`ClusterLimits`].
    pub response_bytes_max: Option<usize>,
    /// See [`ClusterLimits`].
    pub event_bytes_max: Option<usize>,
}

impl LimitsChange {
    /// Returns the limits of this change that differ from `limits`: name, value in the change,
    /// value in `limits`.
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

impl ClusterLimits {
    /// The limits before any change, and the defaults. Never change them: the log of every cluster
    /// depends on them up to its first change of limits. A newer version that needs other defaults
    /// sets them with a log entry, as a configuration does.
    pub const DEFAULT: Self = Self {
        memory_bytes_max: MEMORY_BYTES_MAX.default,
        fuel_per_call: FUEL_PER_CALL.default,
        fuel_per_query: FUEL_PER_QUERY.default,
        fuel_per_state_call: FUEL_PER_STATE_CALL.default,
        response_bytes_max: RESPONSE_BYTES_MAX.default,
        event_bytes_max: EVENT_BYTES_MAX.default,
    };

    /// Linear memory during `snapshot`, `read`, `restore`, `write` and `finish`, in bytes. It is
    /// twice `memory_bytes_max`, because such a call often holds the state and its serialized bytes
    /// together. A call that grows the state beyond `memory_bytes_max` traps. Any state below that
    /// limit can therefore be saved and restored.
    #[must_use]
    pub fn state_call_memory_bytes_max(&self) -> usize {
        self.memory_bytes_max.saturating_mul(2).min(MEMORY_BYTES_MAX.max)
    }

    /// Returns these limits with a change applied.
    ///
    /// # Errors
    /// A limit is out of range, or too small for requests of `request_bytes_max`.
    pub fn changed(
        &self,
        change: &LimitsChange,
        request_bytes_max: usize,
    ) -> Result<Self, LimitError> {
        let fuel_per_call = change.fuel_per_call.unwrap_or(self.fuel_per_call);
        let half = (fuel_per_call / FUEL_PER_QUERY_DIVISOR).max(FUEL_PER_QUERY.min);
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

    /// Rejects a limit that is out of range.
    pub fn check(&self) -> Result<(), LimitError> {
        MEMORY_BYTES_MAX.check("memory_bytes_max", self.memory_bytes_max)?;
        FUEL_PER_CALL.check("fuel_per_call", self.fuel_per_call)?;
        FUEL_PER_QUERY.check("fuel_per_query", self.fuel_per_query)?;
        FUEL_PER_STATE_CALL.check("fuel_per_state_call", self.fuel_per_state_call)?;
        RESPONSE_BYTES_MAX.check("response_bytes_max", self.response_bytes_max)?;
        EVENT_BYTES_MAX.check("event_bytes_max", self.event_bytes_max)
    }

    /// Checks the limits against the largest request: a response may return what a request stored,
    /// and its events repeat it.
    fn check_fits(&self, request_bytes_max: usize) -> Result<(), LimitError> {
        if self.response_bytes_max < request_bytes_max {
            return Err(LimitError {
                name: "response_bytes_max",
                value: self.response_bytes_max.to_string(),
                rule: format!(
                    "must be at least request_bytes_max ({request_bytes_max}), because a response may return what a \
                     request stored: raise response_bytes_max or lower request_bytes_max"
                ),
            });
        }
        let least = request_bytes_max + EVENT_BYTES_ABOVE_REQUEST;
        if self.event_bytes_max < least {
            return Err(LimitError {
                name: "event_bytes_max",
                value: self.event_bytes_max.to_string(),
                rule: format!(
                    "must be at least {least}, 1 MiB more than request_bytes_max ({request_bytes_max}), because the \
                     events of a command repeat what it stores: raise event_bytes_max or lower request_bytes_max"
                ),
            });
        }
        Ok(())
    }

    /// Encodes the limits for the digest of outcomes: each limit as eight bytes, little-endian, in
    /// the order of [`Self::by_name`].
    pub fn to_bytes(&self) -> Bytes {
        let bytes: Vec<u8> =
            self.by_name().iter().flat_map(|(_, value)| value.to_le_bytes()).collect();
        bytes.into()
    }

    /// Returns the limits with their names.
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;
    use crate::limits::REQUEST_BYTES_MAX;

    #[test]
    fn a_change_leaves_the_other_limits() {
        let change = LimitsChange { memory_bytes_max: Some(64 << 20), ..LimitsChange::default() };
        let changed = ClusterLimits::DEFAULT.changed(&change, REQUEST_BYTES_MAX.default).unwrap();
        let expected = ClusterLimits { memory_bytes_max: 64 << 20, ..ClusterLimits::DEFAULT };
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
            let changed =
                ClusterLimits::DEFAULT.changed(&change, REQUEST_BYTES_MAX.default).unwrap();
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
            (|c| c.memory_bytes_max = Some(1 << 20), REQUEST_BYTES_MAX.default, "memory_bytes_max"),
            (|c| c.memory_bytes_max = Some(1 << 32), REQUEST_BYTES_MAX.default, "memory_bytes_max"),
            (|c| c.fuel_per_call = Some(999_999), REQUEST_BYTES_MAX.default, "fuel_per_call"),
            (|c| c.fuel_per_query = Some(0), REQUEST_BYTES_MAX.default, "fuel_per_query"),
            (
                |c| c.fuel_per_state_call = Some(1 << 50),
                REQUEST_BYTES_MAX.default,
                "fuel_per_state_call",
            ),
            (|c| c.response_bytes_max = Some(1 << 20), REQUEST_BYTES_MAX.default, "may rely on"),
            (|c| c.event_bytes_max = Some(1 << 20), REQUEST_BYTES_MAX.default, "may rely on"),
            (|_| (), 5 << 20, "raise response_bytes_max"),
            (|c| c.response_bytes_max = Some(16 << 20), 8 << 20, "raise event_bytes_max"),
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
