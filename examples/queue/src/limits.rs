//! The limits. Checked before any change.

use std::fmt::Display;

use conclave_sdk::Failure;

/// The longest queue name or idempotency key, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// The largest payload, in bytes. Store larger data elsewhere, with its address in the queue.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 10;
/// The bytes that a message counts in addition to its payload: its entries in the maps, and the
/// allocator's overhead.
pub const MESSAGE_OVERHEAD_BYTES: usize = 512;
/// The limit for all messages together, in bytes. A snapshot in progress contains all of them once
/// more. The limit is therefore an eighth of the host's default memory limit of 1 GiB.
pub const BYTES_MAX: usize = 128 << 20;
/// The maximum number of queues.
pub const QUEUES_MAX: usize = 1000;
/// The maximum number of idempotency keys of all queues.
pub const KEYS_MAX: usize = 100_000;
/// The lifetime of a key in milliseconds. Longer than any caller retries the same message.
pub const KEY_KEPT_MS: u64 = 10 * 60 * 1000;
/// The maximum number of messages per call of Receive.
pub const RECEIVE_MAX: usize = 32;
/// The maximum bytes of payloads per response. The first payload may be larger.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;
/// The shortest lease. A shorter lease could end before its reply arrives.
pub const LEASE_MS_MIN: u64 = 100;
/// The longest lease. With a longer one, a message whose receiver died would be invisible for days.
pub const LEASE_MS_MAX: u64 = 12 * 60 * 60 * 1000;
/// The default number of deliveries after which a message becomes a dead letter.
pub const RECEIVES_DEFAULT: u32 = 5;
/// The maximum for this setting of a queue.
pub const RECEIVES_MAX: u32 = 1000;
/// The maximum number of dead letters per call of Redrive.
pub const REDRIVE_MAX: u32 = 1000;
/// The maximum number of leases and keys that one entry ends beside its own work. If more are left,
/// the state requests another tick.
pub const ENDED_PER_ENTRY: usize = 1000;

/// Checks that `value` is within a range.
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
