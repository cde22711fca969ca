//! Rust bindings generated from `wit/`. They are private to this layer.
#![allow(
    missing_docs,
    clippy::all,
    unused_qualifications,
    unreachable_pub,
    unsafe_code,
    reason = "generated from wit/, whose comments are the reference; the component ABI needs unsafe"
)]

wasmtime::component::bindgen!({
    path: "../../wit",
    world: "machine",
    // Arguments are borrowed: a request goes from the log's buffer into the guest in one copy.
    ownership: Borrowing { duplicate_if_necessary: true },
});
