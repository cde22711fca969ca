//! Generated protobuf code. Wire types stay at the edges: [`convert`] turns them into the shared types.
#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the .proto files carry the documentation"
)]

pub mod convert;

/// The serialized `FileDescriptorSet` of the services on the client port, for reflection.
pub const CLIENT_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/client_descriptor.bin"));

/// Calls of the state machine with raw bytes, on the client port.
pub mod machine {
    tonic::include_proto!("conclave.machine.v1");
}

/// The service for operators, on the client port.
pub mod cluster {
    tonic::include_proto!("conclave.cluster.v1");
}

/// The protocol between peers, and the messages of the log and of snapshots.
pub mod raft {
    tonic::include_proto!("conclave.raft.v1");
}

/// The messages in a backup file.
pub mod backup {
    tonic::include_proto!("conclave.backup.v1");
}
