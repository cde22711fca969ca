//! Conclave: a host for replicated state machines that are WebAssembly components.
//!
//! This crate is one node: [`Node`] for programs that run nodes inside themselves, [`config`] for its settings, and
//! [`replay`] for the log of a stopped node. The layers below are crates of their own.

mod backend;
pub mod config;
mod embed;
pub mod node;
pub mod replay;

pub use self::embed::Node;
