//! Compiles the protobuf: Rust types, and the descriptor set that the host serves the methods from.

fn main() -> anyhow::Result<()> {
    conclave_protobuf::compile("proto", &["hostile/v1/hostile.proto"])
}
