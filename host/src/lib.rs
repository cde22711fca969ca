//! Conclave: a host for replicated state machines that are WebAssembly components.
pub mod crypto;
pub mod proto;
pub mod storage;
pub mod types;
