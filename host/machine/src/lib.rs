//! Runs replicated state machines that are WebAssembly components.
//!
//! # Purpose
//! [`Engine`] compiles, and [`Component::load`] checks whether a component implements a state
//! machine. [`Worker`] runs the two instances that a node keeps. The **primary** applies committed
//! entries in the order of the log. The **standby** follows it, answers queries and writes snapshots.
//! [`Standalone`] is a single instance, for tools that examine a state machine without a node.
//!
//! # Contract
//! 1. Every entry has an outcome, a function of the log alone: a reply, a failure, or a
//!    [`Trap`](conclave_types::Trap). A trap leaves the state as it was before the entry.
//! 2. Any other error is a [`FatalError`]: the worker stops applying entries and reports the reason.
//! 3. A guest cannot observe the node on which it runs: the served part of WASI is a function of
//!    the log (`wasi`).
//! 4. Everything is bounded: calls by fuel; memory, stack and answers by limits; queues by their length.
//! 5. The component changes at one entry of the log, and all components of a worker come from one engine.
//! 6. A watcher receives the events of entries once and in order, on any node ([`Worker::subscribe`]).
//! 7. This layer does not depend on Raft, disks or networks, nor on how components get into the log. It
//!    receives entries, with the components that they name, and an [`EntrySource`] to rebuild instances
//!    from. The one exception is the store of compiled code, which is optional ([`CompiledCode`]).
//!
//! # How a trap is rolled back
//! A trap leaves a guest's memory as it was in the middle of the call, and wasmtime locks the
//! instance. An undo is impossible, because the state is whatever the guest has built in its
//! memory. Therefore a node holds the state twice.
//!
//! ```text
//!            entries                          entries that the primary has finished
//!   apply ───────────► primary ─────────────────────────────────► standby ◄── queries, snapshots
//!                         │ traps at N                               │
//!                         ▼                                          │
//!                    is dropped ◄── becomes the primary, at N−1 ─────┘
//!                                         a new standby: the last snapshot, then the log
//! ```
//!
//! The standby only applies entries that the primary has finished, so an entry that traps never
//! reaches it. Until a new standby has caught up, the primary answers queries between batches. If
//! the primary traps again before that, it waits for the standby.
//!
//! The standby compares its outcomes with the primary's. If they differ, the state machine is not a
//! function of the log, or a query changed the state. The standby is then replaced, and
//! [`Worker::standby_problem`] names the entry. The primary continues, also while no standby can be
//! built. Only a trap of the primary at that time ends the worker with a fatal error.
//!
//! A snapshot of this node counts only after it has been restored into a new instance. That
//! instance becomes the standby ([`Worker::replace_standby`]).
//!
//! # How another component continues with the state
//! At an entry that activates a component, the primary streams its own snapshot into a new instance
//! of that component, piece by piece, and drops the old instance. This is the state migration. The
//! standby does the same with its own state when it reaches the entry. So writes wait for one
//! migration and linearizable queries for two. Only the instances and some pieces of 256 KiB are
//! held in memory.
//!
//! If the new component does not accept the state, the old instances continue unchanged. If the old
//! component traps while its snapshot is read, that is rolled back like a trap. Both are an
//! outcome, [`Outcome::Failure`](conclave_types::Outcome::Failure), and are recorded like a trap. A
//! rehearsal ([`rehearse`]) detects most of these problems in advance.
//!
//! # Caveats
//! - A node needs twice the memory of the state. It needs three times while it activates a
//!   component or checks that a snapshot can be restored, and four times while it restores one from
//!   a peer. A rehearsal needs it once more.
//! - A snapshot in progress is lost when its standby becomes the primary, traps, or changes to
//!   another component. The caller must take another.
//! - The effect of limits depends on the layout of the guest's heap, which differs in a restored
//!   instance. Limits are so high that only runaway calls reach them. A state machine whose state
//!   grows has to stop well before (`limits.rs`).
//! - While a snapshot is read, the standby needs more memory and fuel than the primary. An entry
//!   that exhausts them then costs the snapshot, not the node.

#[cfg(feature = "bench")]
pub mod bench;
mod bindings;
mod clock;
mod compiled;
mod component;
mod composition;
mod descriptor_scan;
mod descriptors;
pub mod diff;
mod engine;
mod entry_context;
mod entry_source;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod guest_log;
mod instance;
mod limits;
mod log_import;
mod metrics;
mod migration;
mod rehearsal;
mod restoring;
mod standalone;
mod state;
mod thread;
mod trap;
mod wasi;
mod worker;

pub use compiled::{CompiledCode, Compiling};
pub use component::{Component, Description, Memory};
pub use descriptors::{MethodKind, MethodSpec};
pub use engine::Engine;
pub use entry_context::EntryContext;
pub use entry_source::{Entry, EntrySource, SavedState, Work};
pub use error::{
    Broken, Ended, EntrySourceError, Error, FatalError, LoadError, QueryError, SnapshotError,
    WatchError,
};
pub use instance::AnswerSize;
pub use limits::{Limits, SNAPSHOT_CHUNK_BYTES_MAX};
pub use metrics::{Metrics, export_state};
pub use rehearsal::{NotReady, Rehearsal, rehearse};
pub use standalone::{OpenSnapshot, Standalone};
pub use trap::TrapReport;
pub use worker::{
    Answered, BatchItem, Done, Restored, StateStream, Subscribed, Subscribing, Watcher, Worker,
};

/// Returns the longest prefix of `text` that has at most `bytes_max` bytes and ends at a
/// character boundary.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}
