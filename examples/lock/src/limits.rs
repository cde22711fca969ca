//! What is too much. Checked before anything changes, and again when a snapshot is restored.

use conclave_sdk::Failure;

/// A name or an owner, in bytes.
pub const NAME_BYTES_MAX: usize = 256;
/// Shorter, and a lease would end while its answer is on the way.
pub const TTL_MS_MIN: u64 = 100;
/// Longer, and a lease is no longer one: whoever dies with it keeps the others out for a day.
pub const TTL_MS_MAX: u64 = 24 * 60 * 60 * 1000;
/// Locks that may be held at once: with those who wait, about 60 MB of the machine's memory.
pub const LOCKS_MAX: usize = 50_000;
/// Owners that may wait for one lock. Every look at the lock names them all.
pub const WAITING_MAX: usize = 64;
/// Owners that may wait for all locks together.
pub const WAITING_TOTAL_MAX: usize = 50_000;
/// Locks in a page.
pub const PAGE_LOCKS_MAX: usize = 100;
/// Leases that one entry ends beside its own work. A tick asks to be woken again for the rest.
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
