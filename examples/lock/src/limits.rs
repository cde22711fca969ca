//! The limits. Checked before any change, and again when a snapshot is restored.

use conclave_sdk::Failure;

/// The longest name or owner, in bytes.
pub const NAME_BYTES_MAX: usize = 256;
/// The shortest ttl. A shorter lease could end before its reply arrives.
pub const TTL_MS_MIN: u64 = 100;
/// The longest ttl. An owner that dies with such a lease blocks the lock for a day.
pub const TTL_MS_MAX: u64 = 24 * 60 * 60 * 1000;
/// The maximum number of held locks. With the waiting owners they take about 60 MB of memory.
pub const LOCKS_MAX: usize = 50_000;
/// The maximum number of owners that wait for one lock. Every read of the lock returns all of them.
pub const WAITING_MAX: usize = 64;
/// The maximum number of waiting owners of all locks together.
pub const WAITING_TOTAL_MAX: usize = 50_000;
/// The maximum number of locks per page.
pub const PAGE_LOCKS_MAX: usize = 100;
/// The maximum number of leases that one entry ends beside its own work. If more are left, the
/// state requests another tick.
pub const ENDED_PER_ENTRY: usize = 1000;

pub(crate) fn check_name(what: &str, name: &str) -> Result<(), Failure> {
    if (1..=NAME_BYTES_MAX).contains(&name.len()) {
        return Ok(());
    }
    Err(Failure::invalid_argument(format!(
        "{what} has {} bytes; it must have 1 to {NAME_BYTES_MAX}",
        name.len()
    )))
}

pub(crate) fn check_ttl(ttl_ms: u64) -> Result<(), Failure> {
    if (TTL_MS_MIN..=TTL_MS_MAX).contains(&ttl_ms) {
        return Ok(());
    }
    Err(Failure::invalid_argument(format!(
        "ttl_ms is {ttl_ms}; it must be {TTL_MS_MIN} to {TTL_MS_MAX}"
    )))
}
