//! The protocol between nodes, over gRPC on the peer port.
//!
//! [`peers`] holds the connections: each [`peer`] has its [`connection`]s, and [`backoff`] paces
//! their retries. [`local`] is this node's identity, with its records about the peers, which it
//! compares with their [`standing`]. [`client`] sends openraft's requests, on connections that
//! [`factory`] provides; [`pacing`] times them and [`heartbeats`] triggers heartbeats. [`port`]
//! admits the peers' connections, [`service`] handles their requests, and [`message`] checks their
//! messages.
//!
//! Contract: a node answers a request, and accepts a response, only after both sides have checked
//! that they belong to the same cluster, are the intended nodes, and still have the data
//! directory that they had at their first contact. The handshake admits one connection, and
//! nothing else is read before it. Traffic is not encrypted: the peer port belongs on a private
//! network.

mod backoff;
pub mod client;
mod connection;
mod factory;
#[doc(hidden)]
pub mod fuzz;
pub(super) mod heartbeats;
pub mod local;
mod message;
mod pacing;
pub mod peer;
pub mod peers;
pub mod port;
pub mod service;
pub(super) mod standing;

pub(super) use self::factory::{NetworkFactory, OwnGiving};

/// The version of the protocol between peers. Nodes of different versions do not
/// communicate. Version 2 added components to the log and to snapshots. Version 3 added the
/// confirmation of leaders. Version 4 admits each connection by its own handshake.
pub const PROTOCOL_VERSION: u32 = 4;

/// The largest message between peers: one log entry of the largest request with room to spare, or a
/// batch of smaller ones.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The metadata on errors of a node that is stopping: the request had no effect.
pub const REFUSED_HEADER: &str = "conclave-refused";
