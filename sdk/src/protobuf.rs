//! The macro that includes the code generated from protobuf files.

/// Includes the Rust types of a protobuf package and its `DESCRIPTOR_SET`, which the build script
/// generated with `conclave_protobuf::compile`. Put the generated code into a module of its own:
///
/// ```ignore
/// mod pb {
///     conclave_sdk::include_protobuf!("counter.v1");
/// }
/// ```
#[macro_export]
macro_rules! include_protobuf {
    ($package:literal) => {
        include!(concat!(env!("OUT_DIR"), "/", $package, ".rs"));

        /// The serialized `FileDescriptorSet` of the services and everything that they import.
        pub const DESCRIPTOR_SET: &[u8] =
            include_bytes!(concat!(env!("OUT_DIR"), "/descriptor_set.bin"));
    };
}
