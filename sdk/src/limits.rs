//! The minimum limits that every host guarantees, from the contract (`wit/types.wit`).
//!
//! A reply above a limit is rolled back like a trap. If the size of a response depends on requests,
//! the state machine must compute it before it changes the state, and fail with RESOURCE_EXHAUSTED
//! if it is too large. An operator may raise the limits of a node, but cannot lower them below
//! these values.

/// The largest response of a call, in bytes. For a subscription, the largest total of the initial messages.
pub const RESPONSE_BYTES_MAX: usize = 4 << 20;
/// The largest total of the events of one reply, in bytes, as counted by
/// [`Event::counted_bytes`](crate::Event::counted_bytes). A host's limit is also at least 1 MiB
/// above its limit for requests, which is 4 MiB by default.
pub const EVENT_BYTES_MAX: usize = 8 << 20;
/// The number of bytes that each event counts in addition to its topic and payload.
pub const EVENT_OVERHEAD_BYTES: usize = 64;
/// The default limit for requests, in bytes. An operator may raise it to 16 MiB.
pub const REQUEST_BYTES_DEFAULT: usize = 4 << 20;
