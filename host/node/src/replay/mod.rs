//! Replay of a stopped node's log, to any index in its data directory, with the original components
//! or another one.
//!
//! [`Source`] is the data to replay. [`Player`] applies it entry by entry and answers queries in
//! between. [`Seen`] is an entry with its outcome, [`LoggedCall`] is a call without its outcome.
//! [`Messages`] converts requests and responses to JSON.
//!
//! # Contract
//! 1. Entries have the same outcomes as on the node, because the same code applies them: the worker of
//!    the machine layer, with its clock, rollback and second instance. The registry of components
//!    decides which component is active. The node's limits must be given, since they influence outcomes.
//! 2. Traps recorded by the node happen again, which yields their backtraces.
//! 3. Only entries that the node knew to be committed are applied, unless the caller requests more.
//! 4. The data directory is not changed: the replay uses a copy
//!    ([`Storage::open_copy`](conclave_storage::Storage::open_copy)).
//!
//! # Caveats
//! - A replay begins at the newest snapshot, or at the first entry if the log still contains it. No
//!   state in between is available, since the log before a snapshot is purged.
//! - A replay takes the memory of a node's state machine, and twice that to compare two components.
//! - A trap that depends on the layout of the guest's heap (a memory limit) may not happen again in
//!   an instance that was restored from a snapshot.

mod calls;
mod entry_source;
mod error;
mod messages;
mod player;
mod seen;
mod source;

pub use self::{
    calls::{LoggedCall, LoggedCalls},
    error::Error,
    messages::{EncodeError, Messages},
    player::Player,
    seen::{Kind, Seen},
    source::{Parts, Source, Span, Start},
};
