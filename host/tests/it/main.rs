//! Stories at the outermost boundary: real processes, real disks, real sockets.
//!
//! Each test starts nodes of its own on loopback, and ends them by dropping the [`harness::Cluster`].
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking and say what they skip"
)]

mod bad_input;
mod dev;
mod durability;
mod foreign;
mod harness;
mod import;
mod kv;
mod peers;
mod projects;
mod recovery;
mod traps;
