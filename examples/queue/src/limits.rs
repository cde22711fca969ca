//! What is too much. Checked before anything changes.

use std::fmt::Display;

use conclave_sdk::Failure;

/// A queue's name or an idempotency key, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// A payload. What is larger belongs elsewhere, with its address in the queue.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 10;
/// What a message takes beside its payload: its places in the maps, and what the allocator adds.
pub const MESSAGE_OVERHEAD_BYTES: usize = 512;
/// What all messages may count together. A snapshot holds them all once more while it is written, so
/// this is an eighth of the 1 GiB of memory that a host gives by default.
pub const BYTES_MAX: usize = 128 << 20;
/// Queues there may be.
pub const QUEUES_MAX: usize = 1000;
/// Idempotency keys that are kept, of all queues.
pub const KEYS_MAX: usize = 100_000;
/// How long a key is kept: longer than anybody goes on sending the same message again.
pub const KEY_KEPT_MS: u64 = 10 * 60 * 1000;
/// Messages that one call receives.
pub const RECEIVE_MAX: usize = 32;
/// Payloads that one answer holds; the first may be larger.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Shorter, and a lease would end while its answer is on the way.
pub const LEASE_MS_MIN: u64 = 100;
/// Longer, and a message whose receiver died would be out of sight for days.
pub const LEASE_MS_MAX: u64 = 12 * 60 * 60 * 1000;
/// How often a message of a new queue is given out before it is a dead letter.
pub const RECEIVES_DEFAULT: u32 = 5;
/// The most that a queue can be set to.
pub const RECEIVES_MAX: u32 = 1000;
/// Dead letters that one call gives another life.
pub const REDRIVE_MAX: u32 = 1000;
/// Leases and keys that one entry ends beside its own work. A tick asks to be woken again for the rest.
pub const ENDED_PER_ENTRY: usize = 1000;

/// `value` lies in `range`.
pub(crate) fn check<T: PartialOrd + Display>(
    what: &str,
    value: T,
    (least, most): (T, T),
) -> Result<(), Failure> {
    if least <= value && value <= most {
        return Ok(());
    }
    Err(Failure::invalid_argument(format!("{what} is {value}; it must be {least} to {most}")))
}
