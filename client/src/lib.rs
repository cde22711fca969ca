//! Client for Conclave.
//!
//! A [`Client`] is given some nodes of a cluster and finds the leader itself, since every response
//! names it. It keeps its connections. If a node is down, silent or busy, the client calls another
//! one. It retries with growing, jittered pauses until the call's deadline. The first node is
//! chosen at random, and subscriptions are spread over the nodes.
//!
//! ```no_run
//! # async fn example() -> Result<(), conclave_client::Error> {
//! use conclave_client::Client;
//! use serde_json::json;
//!
//! let client = Client::builder().endpoints(["127.0.0.1:7101", "127.0.0.1:7102"]).build()?;
//! client.call_json("kv.v1.KV/Put", json!({"key": "color", "text": "green"})).await?;
//! let answer = client.call_json("kv.v1.KV/Get", json!({"key": "color"})).await?;
//! # drop(answer); Ok(()) }
//! ```
//!
//! Messages are JSON here; their types come from the nodes' reflection. With compiled types, use
//! [`Client::kv`] for the key-value store and [`Client::call`] for any state machine.
//!
//! # Retries
//!
//! | failed with | read | write | write with [`CallOptions::retry_unknown`] |
//! |---|---|---|---|
//! | no connection; a stream that the node refused (REFUSED_STREAM, GOAWAY); UNAVAILABLE with `conclave-leader`, or any code of the next row with `conclave-outcome: not-applied` | yes | yes | yes |
//! | other UNAVAILABLE (a proxy may have lost the call); connection lost during the call; no response in time; `conclave-outcome: unknown` | yes | **no** | yes |
//! | any other response: a failure of the state machine, a trap, a limit | no | no | no |
//!
//! A busy node returns UNAVAILABLE with `not-applied`, so calls are retried until there is room. A
//! trap is INTERNAL with [`Error::trap_kind`]. `docs/clients.md` lists all codes.
//!
//! A write with an unknown outcome may have been applied, so repeating it may apply it twice. Only the
//! caller can allow that. If it was not allowed, [`Error::outcome_unknown`] reports such an outcome.
//!
//! # Caveats
//!
//! There is no TLS and no exactly-once session yet. A [`Subscription`] is one stream from one node
//! and ends with it; [`Kv::watch`] continues at another node.

mod backup;
mod builder;
mod catalog;
mod client;
mod cluster;
mod codec;
mod components;
mod connection;
mod error;
#[path = "../../host/types/src/grpc_codes.rs"]
mod grpc_codes;
mod heard;
mod kv;
mod method;
mod nodes;
mod options;
pub mod proto;
mod reflection;
mod reflection_stream;
mod retry;
mod subscription;
mod watch;

pub use backup::{BackupData, BackupStream};
pub use builder::Builder;
pub use catalog::{Method, MethodKind};
pub use client::{Answer, Client};
pub use components::Permissions;
pub use error::Error;
pub use kv::Kv;
pub use method::MethodName;
pub use options::{CallOptions, Consistency};
pub use subscription::{JsonSubscription, Subscription};
pub use tonic::Code;
pub use watch::Watch;
