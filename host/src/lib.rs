//! Conclave: a host for replicated state machines that are WebAssembly components.
pub mod machine;
pub mod proto;
pub mod types;
