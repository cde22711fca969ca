//! Tests of the machine layer at its boundary: real components, an entry source in memory,
//! and the results.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::too_many_lines,
    reason = "tests: a failure is a panic, and the measurements are printed"
)]

mod activation;
mod agreement;
mod answers;
mod cluster_limits;
mod entry_source;
mod faults;
mod largest;
mod loading;
mod measure;
mod not_activated;
mod printed;
mod queries;
mod rehearsal;
mod rotation;
mod snapshots;
mod standby;
mod story;
mod subscriptions;
mod support;
mod traps;
mod versions;
mod wasi;
