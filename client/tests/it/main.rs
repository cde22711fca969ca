//! Tests of the client against scripted nodes, each a real gRPC server in this process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod fake;
mod leader;
mod reflection;
mod retries;
