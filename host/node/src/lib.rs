//! Conclave: a host for replicated state machines that are WebAssembly components.
//!
//! This crate is one node. [`Node`] is for programs that run nodes in their own process, [`config`] has
//! the settings, and [`replay`] replays the log of a stopped node. The layers below are separate crates.

mod backend;
pub mod backup;
pub mod config;
mod embed;
pub mod node;
pub mod replay;

pub use self::embed::Node;
