//! The default state machine: the key-value store `kv.v1.KV` (`proto/kv/v1/kv.proto`).
//!
//! - `limits`: the limits of requests, responses and the store;
//! - `state`: the keys, in maps that share structure;
//! - `step`: the effects of one operation;
//! - `transaction`: batches of operations, and the conditions of a Txn;
//! - `range`: pages of keys, and `watch`: streams of their changes;
//! - `snapshot`: serialization of the state (`docs/snapshot-format.md`), and `restore`: the reverse;
//! - `machine`: [`Kv`], which implements the contract.
//!
//! Expiry needs no clock of its own. A key is invisible from its expiry time on, according to the
//! time of the entry that reads it. It is deleted later, by a tick or by another command.
//!
//! The store counts its bytes and refuses to grow past `limits::STORE_BYTES_MAX`, long before the
//! host's memory limit. Such a refusal is the same on every replica. The point at which a heap is
//! full is not.

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
    #![allow(missing_docs, reason = "generated from the proto file, which has the documentation")]
    conclave_sdk::include_protobuf!("kv.v1");
}

pub use machine::Kv;

conclave_sdk::export!(Kv);
