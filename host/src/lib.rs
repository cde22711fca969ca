//! Conclave: a host for replicated state machines that are WebAssembly components.
pub mod api;
pub mod error;
pub mod proto;
pub mod types;

pub mod config;
