//! Tests of the data directory through its public API: openraft's suite, crashes, damage, and a model.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod compiled;
mod damage;
mod directory;
mod golden;
mod hanging;
mod log;
mod model;
mod numbers;
mod snapshots;
mod suite;
mod support;
