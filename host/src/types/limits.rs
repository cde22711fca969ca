//! Defaults of the limits that several layers share, in one place: a node, `conclave check` and the tests use the
//! same ones.
//!
//! The limits that a state machine may rely on are part of the contract (`wit/types.wit`): [`RESPONSE_BYTES`] and
//! [`EVENT_BYTES`] are also the least that a node's configuration allows. The SDK has the same figures, and a
//! test holds the two together.

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
/// Linear memory of one instance, in bytes.
pub const MEMORY_BYTES: usize = 1024 * MIB;
/// The most that 32-bit addresses reach.
pub const MEMORY_BYTES_MOST: usize = 4096 * MIB - (64 << 10);
