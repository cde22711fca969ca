//! Conclave: a host for replicated state machines that are WebAssembly components.
pub mod cli;
pub mod proto;
pub mod types;
