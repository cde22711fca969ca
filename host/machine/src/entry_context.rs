//! The context of an entry: its position in the log, its time and its seed.

/// The context of an entry or a query, passed beside the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryContext {
    /// The log index of the entry; for a query, that of the last applied entry.
    pub index: u64,
    /// The state machine's time, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// A number that looks random and is a function of the cluster and the index.
    pub seed: u64,
}

impl EntryContext {
    /// The context of calls that no entry causes: the first second of the year 2000. The time is
    /// not zero because Go's runtime takes a clock that shows zero for a broken one.
    pub(super) const STILL: Self = Self { index: 0, time_ms: 946_684_800_000, seed: 0 };
}
