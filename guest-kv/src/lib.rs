//! The default machine: the key-value store `kv.v1.KV` (`proto/kv/v1/kv.proto`).
//!
//! - `limits`: what is too much;
//! - `state`: the keys, in maps that share structure;
//! - `step`: what one operation does to them;
//! - `transaction`: operations together, and what they may depend on;
//! - `range`: pages of keys, and `watch`: their changes;
//! - `snapshot`: the state as bytes (`docs/snapshot-format.md`), and `restore`: back again;
//! - `machine`: [`Kv`], which ties them to the contract.
//!
//! Expiry needs no clock of its own: a key is invisible from its time on, by the time of the entry
//! that looks, and is deleted later, by a tick or beside some other command.
//!
//! The store counts what it holds and refuses to grow past `limits::STORE_BYTES_MAX`, long before the
//! host's limit of memory: a refusal is the same on every replica, and where a heap is full is not.

mod key;
pub mod limits;
mod machine;
mod range;
mod restore;
mod snapshot;
mod state;
mod step;
mod transaction;
mod watch;

/// The messages of `kv.v1`.
pub mod pb {
    #![allow(missing_docs, reason = "generated from the proto file, which says it all")]
    conclave_sdk::include_protobuf!("kv.v1");
}

pub use machine::Kv;

conclave_sdk::export!(Kv);
