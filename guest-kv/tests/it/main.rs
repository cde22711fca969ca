//! Native tests of the store at its boundary: through the contract, with encoded messages.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

mod answers;
mod commands;
mod expiry;
mod model;
mod ranges;
mod room;
mod snapshots;
mod store;
mod transactions;
mod watching;
