//! Including what a machine's build script made of its protobuf files.

/// Includes the Rust types of a protobuf package, and `DESCRIPTOR_SET`, as `conclave_protobuf::compile`
/// wrote them from the build script. Generated code belongs in a module of its own:
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

        /// The services and everything that they import, serialized.
        pub const DESCRIPTOR_SET: &[u8] =
            include_bytes!(concat!(env!("OUT_DIR"), "/descriptor_set.bin"));
    };
}
