//! Tests of the client port and the admin port over a scripted replica, with real sockets and real clients.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    reason = "tests"
)]

mod backups;
mod bench;
mod calls;
mod components;
mod errors;
mod fake;
mod fake_components;
mod health;
mod peers;
mod ports;
mod protos;
mod reflection;
mod subscriptions;
mod transfers;
