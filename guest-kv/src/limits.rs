//! What is too much. Checked before anything changes, and again when a snapshot is restored.

use conclave_sdk::Failure;

/// A key is a path-like name, and is copied into every page token: longer is a mistake.
pub const KEY_BYTES_MAX: usize = 4096;
/// Every value travels through the log in one entry, beside others.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Bounds the work of one entry, as etcd does.
pub const OPERATIONS_MAX: usize = 128;
/// The same, for what a Txn compares.
pub const COMPARES_MAX: usize = 128;
/// What a record takes beside its key and value: its revisions, its places in the two trees and what
/// the allocator adds. Measured in a machine (`measure_key_values_in_memory` in the host's tests): 110
/// bytes, 170 with a ttl, and some percent of values that were overwritten with larger and smaller ones.
pub const RECORD_OVERHEAD_BYTES: usize = 256;
/// What all records may count together: keys, values and [`RECORD_OVERHEAD_BYTES`] each. A quarter of the
/// 1 GiB of memory that the host gives by default: a snapshot under way holds what is overwritten
/// meanwhile, up to the same again, and the allocator may leave gaps. The store must say no well before
/// the host's limit does: where in the heap that is met differs from replica to replica.
pub const STORE_BYTES_MAX: u64 = 256 << 20;
/// The length of a page when the caller does not say.
pub const PAGE_KEYS_DEFAULT: usize = 1000;
/// The longest page.
pub const PAGE_KEYS_MAX: usize = 10_000;
/// The bytes of keys and values that one answer gives. Hosts and many gRPC clients refuse messages above
/// 4 MiB; one value over the bound still leaves room to that.
pub const RESPONSE_BYTES_MAX: usize = 2 << 20;
/// Expired keys that a command deletes beside its own work: more than a command can add, so that the
/// backlog shrinks even where nobody ticks, and little enough not to be felt.
pub const SWEPT_PER_COMMAND: usize = 2 * OPERATIONS_MAX;
/// The bytes of the events of such deletions, as the host counts them. The deletion that reaches the limit is the last
/// one.
pub const SWEPT_BYTES_PER_COMMAND: usize = 256 << 10;
/// The same for a tick: the events of an entry have a limit.
pub const SWEPT_BYTES_PER_TICK: usize = 2 << 20;
/// The bytes of the events of a batch or transaction, as the host counts them: what every host takes. With requests of
/// at most 4 MiB, which is the default, no batch reaches it.
pub const EVENT_BYTES_MAX: usize = conclave_sdk::limits::EVENT_BYTES_MAX;
/// Expired keys that a tick deletes. It asks to be woken again for the rest.
pub const SWEPT_PER_TICK: usize = 4096;

/// A key must name something.
pub(crate) fn check_key(key: &str) -> Result<(), Failure> {
    if key.is_empty() {
        return Err(Failure::invalid_argument("the key is empty"));
    }
    within("the key", key.len(), KEY_BYTES_MAX, "bytes")
}

/// `what` may have at most `allowed` of `unit`.
pub(crate) fn within(what: &str, actual: usize, allowed: usize, unit: &str) -> Result<(), Failure> {
    if actual <= allowed {
        return Ok(());
    }
    Err(Failure::invalid_argument(format!(
        "{what} has {actual} {unit}; at most {allowed} are allowed"
    )))
}
