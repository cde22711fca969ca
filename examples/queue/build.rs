//! Compiles the protobuf to Rust types and to the descriptor set from which the host serves the methods.

fn main() -> anyhow::Result<()> {
    conclave_protobuf::compile("proto", &["queue/v1/queue.proto"])
}
