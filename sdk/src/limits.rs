//! The limits that every host keeps at least, from the contract (`wit/types.wit`).
//!
//! A reply above a limit is rolled back like a trap. So a machine whose answers depend on what callers send counts
//! what it is about to answer, and refuses with RESOURCE_EXHAUSTED before it changes anything. An operator may raise
//! the limits of a node, but not lower them below these.

/// The largest response of a call, in bytes; for a subscription the initial messages together.
pub const RESPONSE_BYTES_MAX: usize = 4 << 20;
/// The events of one reply, in bytes, as [`Event::counted_bytes`](crate::Event::counted_bytes) counts them. The
/// limit is also at least 1 MiB above that of requests, which is 4 MiB by default.
pub const EVENT_BYTES_MAX: usize = 8 << 20;
/// The bytes that each event counts beside its topic and payload.
pub const EVENT_OVERHEAD_BYTES: usize = 64;
/// The largest request by default, in bytes. An operator may raise it to 16 MiB.
pub const REQUEST_BYTES_DEFAULT: usize = 4 << 20;
