//! Compiles the protobuf: Rust types, and the descriptor set that the host serves the methods from.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    conclave_protobuf::compile("proto", &["my_machine/v1/my_machine.proto"])?;
    Ok(())
}
