//! Generated protobuf messages.
#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    reason = "generated code; the .proto files carry the documentation"
)]

/// The cluster service, for operators.
pub mod cluster {
    include!(concat!(env!("OUT_DIR"), "/conclave.cluster.v1.rs"));
}

/// The default state machine.
pub mod kv {
    include!(concat!(env!("OUT_DIR"), "/kv.v1.rs"));
}
