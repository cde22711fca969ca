//! The bindings that wit-bindgen generates from `wit/`, in a module of their own.
//!
//! The SDK uses the generated records of the interface `types` as its own value types.
//! [`crate::types`] re-exports them and adds constructors. A second set of types would cost a copy
//! per call.

#![allow(unsafe_code, reason = "the canonical ABI moves values through raw memory")]
#![allow(missing_docs, unreachable_pub, unused_qualifications, reason = "generated")]
#![allow(clippy::all, clippy::allow_attributes_without_reason, reason = "generated")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::host_endian_bytes, reason = "generated")]

wit_bindgen::generate!({
    path: "../wit",
    world: "machine",
    runtime_path: "::conclave_sdk::__private::wit_bindgen::rt",
    pub_export_macro: true,
    export_macro_name: "export_bindings",
    default_bindings_module: "::conclave_sdk::__private::bindings",
    additional_derives: [PartialEq, Eq],
    generate_unused_types: true,
});
