//! A stopped node's log, applied again: to any index that its directory reaches, with the component of the time
//! or another one.
//!
//! [`Source`] is what there is to replay, [`Player`] applies it entry by entry and answers queries on the way,
//! [`Seen`] is what an entry was and what came of it, [`Asked`] what it was alone, [`Messages`] turns requests and answers into JSON.
//!
//! # Contract
//! 1. Entries have the outcomes that they had on the node, because they take the same way: the machine layer's
//!    worker applies them, with its clock, its rollback and its second instance, and the registry of
//!    components decides which one is active. The node's limits must be given, as they decide outcomes too.
//! 2. Traps that the node has recorded are run into again: that is how their backtraces are had.
//! 3. Only what the node knew to be committed is applied, unless the caller goes further on purpose.
//! 4. Nothing is written: the store is a copy ([`Storage::open_copy`](conclave_storage::Storage::open_copy)).
//!
//! # Caveats
//! - A replay begins at the newest snapshot, or at the very beginning if the log still reaches back to it. In
//!   between there is nothing: the log before a snapshot is purged.
//! - It takes the memory of a node's machine, twice that when two components are compared.
//! - A trap that depends on how the guest's heap is laid out (a limit on memory) may not happen again in an
//!   instance that was restored from a snapshot.

mod calls;
mod entry_source;
mod error;
mod messages;
mod player;
mod seen;
mod source;

pub use self::{
    calls::{Asked, AskedAll},
    error::Error,
    messages::Messages,
    player::Player,
    seen::{Kind, Seen},
    source::{Parts, Source, Span, Start},
};
