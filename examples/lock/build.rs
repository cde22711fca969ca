//! Compiles the protobuf to Rust types and to the descriptor set from which the host serves the methods.

fn main() -> anyhow::Result<()> {
    conclave_protobuf::compile("proto", &["lock/v1/lock.proto"])
}
