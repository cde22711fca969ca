//! Tests at the outermost boundary: real processes, real disks, real sockets.
//!
//! Each test starts its own nodes on loopback, and ends them by dropping the [`harness::Cluster`].
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::too_many_lines,
    reason = "tests fail by panicking and say what they skip"
)]

mod backup;
mod bad_input;
mod chaos;
mod clocks;
mod components;
mod cuts;
mod dev;
mod dev_watch;
mod divergence;
mod divergence_events;
mod durability;
mod examples;
mod export;
mod foreign;
mod full_disk;
mod harness;
mod import;
mod kv;
mod leadership;
mod limits;
mod link;
mod network;
mod peer_limits;
mod peers;
mod power_cut;
mod process;
mod projects;
mod recorded;
mod recover;
mod recovery;
mod replay;
mod snapshots;
mod stalled;
mod traps;
mod watching;
