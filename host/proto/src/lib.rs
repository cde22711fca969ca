//! Generated protobuf code. Wire types stay at the edges: `types/convert.rs` turns them into ours.
#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the .proto files carry the documentation"
)]

pub mod convert;

/// The serialized `FileDescriptorSet` of the services on the client port, for reflection.
pub const CLIENT_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/client_descriptor.bin"));

/// Calls to the machine with raw bytes.
pub mod machine {
    tonic::include_proto!("conclave.machine.v1");
}

/// For operators.
pub mod cluster {
    tonic::include_proto!("conclave.cluster.v1");
}

/// Between peers.
pub mod raft {
    tonic::include_proto!("conclave.raft.v1");
}
