//! The modules of a cluster: which there are, which one is active, and how two of them differ.
//!
//! [`registry`] is what the log says of modules, [`stored`] its bytes in a snapshot, [`diff`] what clients
//! would notice of a change.
//!
//! # Contract
//! The registry is a function of the log alone: the same entries give the same registry, and the same
//! answers, on every node and after every restart. Nothing here compiles, blocks, or knows of time.
//!
//! # Caveats
//! The bytes of all modules are held in memory, up to [`registry::BYTES_MAX`] together, and are part of each
//! snapshot. Whether a module could be run is not known here: `raft/modules` finds that out before it
//! proposes an activation.

pub mod diff;
pub mod registry;
mod stored;

pub use registry::Registry;
pub use stored::Unreadable;
