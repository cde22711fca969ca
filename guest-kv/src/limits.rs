//! The limits of the store. Checked before any change, and again when a snapshot is restored.

use conclave_sdk::Failure;

/// The longest key. A key is a path-like name and is copied into every page token; a longer one is
/// a mistake.
pub const KEY_BYTES_MAX: usize = 4096;
/// The largest value. Every value goes through the log in one entry, possibly with others.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// The maximum number of operations per call. Bounds the work of one entry, as etcd does.
pub const OPERATIONS_MAX: usize = 128;
/// The maximum number of compares of a Txn, for the same reason.
pub const COMPARES_MAX: usize = 128;
/// The bytes that a record counts beside its key and value: its revisions, its entries in the two
/// trees, and the allocator's overhead. Measured in a component (`measure_key_values_in_memory` in
/// the host's tests): 110 bytes, 170 with a ttl, and some percent of values that were overwritten
/// with larger and smaller ones.
pub const RECORD_OVERHEAD_BYTES: usize = 256;
/// The limit for all records together: keys, values and [`RECORD_OVERHEAD_BYTES`] each. This is a
/// quarter of the host's default memory limit of 1 GiB. A snapshot in progress keeps overwritten
/// records, up to the same amount again, and the allocator may leave gaps. The store must refuse well
/// before the host's limit is reached, because the heap layout at that point differs between replicas.
pub const STORE_BYTES_MAX: u64 = 256 << 20;
/// The default length of a page.
pub const PAGE_KEYS_DEFAULT: usize = 1000;
/// The maximum length of a page.
pub const PAGE_KEYS_MAX: usize = 10_000;
/// The maximum bytes of keys and values in one response. Hosts and many gRPC clients reject
/// messages above 4 MiB; a response that exceeds this limit by one value still fits.
pub const RESPONSE_BYTES_MAX: usize = 2 << 20;
/// The number of expired keys that a command also deletes. It is larger than the number of keys
/// that a command can add, so the backlog shrinks even without ticks. It is small enough not to
/// delay the command noticeably.
pub const SWEPT_PER_COMMAND: usize = 2 * OPERATIONS_MAX;
/// The limit for the events of such deletions, in bytes as counted by the host. The deletion that
/// reaches the limit is the last one.
pub const SWEPT_BYTES_PER_COMMAND: usize = 256 << 10;
/// The same limit for a tick. The events of an entry have a limit.
pub const SWEPT_BYTES_PER_TICK: usize = 2 << 20;
/// The limit for the events of a batch or transaction, in bytes as counted by the host: the minimum
/// that every host accepts. With the default request limit of 4 MiB, no batch reaches it.
pub const EVENT_BYTES_MAX: usize = conclave_sdk::limits::EVENT_BYTES_MAX;
/// The number of expired keys that one tick deletes. If more are left, the store requests another tick.
pub const SWEPT_PER_TICK: usize = 4096;

/// Checks that a key is not empty and not too long.
pub(crate) fn check_key(key: &str) -> Result<(), Failure> {
    if key.is_empty() {
        return Err(Failure::invalid_argument("the key is empty"));
    }
    within("the key", key.len(), KEY_BYTES_MAX, "bytes")
}

/// Fails unless `actual` is at most `allowed`. The failure names `what` and `unit`.
pub(crate) fn within(what: &str, actual: usize, allowed: usize, unit: &str) -> Result<(), Failure> {
    if actual <= allowed {
        return Ok(());
    }
    Err(Failure::invalid_argument(format!(
        "{what} has {actual} {unit}; at most {allowed} are allowed"
    )))
}
