//! Runs replicated state machines that are WebAssembly components.
//!
//! # Purpose
//! [`Engine`] compiles, [`Component::load`] finds out whether a component is a machine, and [`Worker`]
//! runs the two instances of it that a node keeps: the **head**, which applies committed entries in
//! the order of the log, and the **reader**, which follows it, answers queries and writes snapshots.
//! [`Standalone`] is one instance by itself, for whoever examines a machine without a node.
//!
//! # Contract
//! 1. Every entry has an outcome, a function of the log alone: a reply, a failure, or a
//!    [`Trap`](conclave_types::Trap). A trap leaves the state as it was before the entry.
//! 2. What is no outcome is a [`Fault`]: the worker applies nothing any more and says why.
//! 3. A guest sees nothing of this node: what it may import of WASI is a function of the log (`wasi`).
//! 4. Everything ends: fuel bounds calls, limits bound memory, stack and answers, queues are bounded.
//! 5. Components change at one entry of the log, and all components of a worker come from one engine.
//! 6. What entries bring about, a watcher sees once and in order, on any node ([`Worker::subscribe`]).
//! 7. This layer knows nothing of Raft, disks or networks, nor of how components get into the log. It gets
//!    entries, with the components that they name, and a [`EntrySource`] to rebuild instances from. The one
//!    exception is compiled code that is kept, which helps and is never needed ([`CompiledCode`]).
//!
//! # How a trap is rolled back
//! A trap leaves a guest's memory as it was in mid-call, and wasmtime locks the instance. There is no
//! way to undo: the state is what the guest has built. So a node holds it twice.
//!
//! ```text
//!            entries                          entries that the primary has finished
//!   apply ──────────────► head ─────────────────────────────────► reader ◄── queries, snapshots
//!                          │ traps at N                             │
//!                          ▼                                        │
//!                     is dropped ◄── becomes the primary, at N−1 ──────┘
//!                                          a new reader: the last snapshot, then the log
//! ```
//!
//! The standby only ever applies what the primary has finished, so it is never broken by an entry. Until the
//! new reader has caught up, the primary answers queries between batches. If the primary traps again before
//! that, it waits for the standby. The standby compares its outcomes with the primary's. Where they differ,
//! the machine is not a function of the log, or a query changed the state: the standby is replaced, and
//! [`Worker::standby_problem`] names the entry. The primary continues, as it does while no reader can be
//! built. Only a head that traps then ends the worker with a fault.
//!
//! A snapshot of this node is restored into a fresh instance before it counts, and that instance becomes
//! the standby ([`Worker::replace_standby`]).
//!
//! # How another component goes on
//! At an entry that activates a component, the primary streams its own snapshot into a fresh instance of that
//! component, piece by piece, and drops the old one; the standby does the same with its own state when it
//! comes to the entry. So writes wait for one carry-over, linearizable queries for two, and nothing is
//! held but instances and some pieces of 256 KiB. If the new component does not take the state, the old
//! instances go on as they are. If the old one breaks over its own snapshot, that is rolled back like a
//! trap. Either is an outcome, [`Outcome::Failure`](conclave_types::Outcome::Failure), and recorded like
//! a trap. [`rehearse`] finds most of that out before.
//!
//! # Caveats
//! - A node needs twice the memory of the state, three times while it activates a component or checks that a
//!   snapshot can be restored, and four times while it restores one from a peer; once more for a
//!   rehearsal.
//! - A snapshot under way is lost when its reader becomes the primary, or traps, or goes on with another
//!   component; take another.
//! - Limits depend on the layout of the guest's heap, which a restored instance has differently.
//!   They are set so high that only runaway calls meet them, and machines whose state grows have to
//!   stop well before (`limits.rs`).
//! - While a snapshot is read the standby needs more memory and fuel than the primary. An entry that
//!   exhausts it then costs the snapshot, not the node.

#[cfg(feature = "bench")]
pub mod bench;
#[cfg(not(feature = "bench"))]
mod bench;
mod bindings;
mod clock;
mod compiled;
mod component;
mod composition;
mod descriptor_scan;
mod descriptors;
pub mod diff;
mod engine;
mod entry_source;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod guest_log;
mod instance;
mod limits;
mod migration;
mod rehearsal;
mod restoring;
mod standalone;
mod thread;
mod trap;
mod wasi;
mod worker;

pub use compiled::{CompiledCode, Compiling};
pub use component::{Component, Description, Memory};
pub use descriptors::{MethodKind, MethodSpec};
pub use engine::Engine;
pub use entry_source::{Entry, EntrySource, SavedState, TrapReport, Work};
pub use error::{
    EntrySourceError, Error, FatalError, LoadError, QueryError, SnapshotError, WatchError,
};
pub use instance::{AnswerSize, EntryContext};
pub use limits::{Limits, SNAPSHOT_CHUNK_BYTES_MAX};
pub use rehearsal::{NotReady, Rehearsal, rehearse};
pub use standalone::{Broke, OpenSnapshot, Standalone};
pub use worker::{
    Answered, BatchItem, Done, Restored, StateStream, Stats, Subscribed, Subscribing, Watcher,
    Worker,
};

/// The longest beginning of `text` that has at most `bytes_max` bytes and ends at a character.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}
