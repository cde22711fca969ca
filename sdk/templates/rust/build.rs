//! Compiles the protobuf to Rust types and to the descriptor set from which the host serves the methods.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    conclave_protobuf::compile("proto", &["my_machine/v1/my_machine.proto"])?;
    Ok(())
}
