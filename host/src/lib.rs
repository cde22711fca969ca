//! Conclave: a host for replicated state machines that are WebAssembly components.
//!
//! The layers in reading order, from the words that all share to the node that wires them together.
//! Each depends only on those above it: `tests/layers.rs` holds the table.
//!
//! A program that wants nodes inside itself needs [`Node`] and [`config`], and nothing else of this.
pub mod types;

pub mod config;
pub mod crypto;
pub mod error;
pub mod supervise;
pub mod telemetry;

pub mod machine;
pub mod modules;
pub mod proto;
pub mod storage;

pub mod check;

pub mod raft;

pub mod api;
pub mod replay;

pub mod embed;
pub mod node;

pub mod cli;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;

pub use embed::Node;
