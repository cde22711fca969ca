//! The time limit for the transfer of a request or a response.

use std::time::Duration;

/// Minimum transfer rate. Slower readers and writers are aborted.
pub(super) const BYTES_PER_SECOND_MIN: usize = 64 * 1024;

/// The time allowed for a message of `bytes` bytes.
pub(super) fn transfer_time(bytes: usize, least: Duration) -> Duration {
    least + Duration::from_millis((bytes * 1000 / BYTES_PER_SECOND_MIN) as u64)
}
