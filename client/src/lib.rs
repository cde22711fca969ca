//! Client for Conclave.
//!
//! A [`Client`] knows some nodes of a cluster and finds the leader by itself: every answer names it.
//! It keeps its connections, asks another node when one is down, silent or busy, and continues with growing,
//! jittered pauses until the call's deadline. The first node that it asks is drawn by lot, and subscriptions are spread over
//! the nodes.
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
//! Messages are JSON here, which the nodes' reflection explains. With types that are compiled in,
//! [`Client::call`] is for any machine what [`Client::kv`] is for the key-value store.
//!
//! # What is retried
//!
//! | failed with | read | write | write with [`CallOptions::retry_unknown`] |
//! |---|---|---|---|
//! | no connection; a stream that the node refused (REFUSED_STREAM, GOAWAY); UNAVAILABLE with `conclave-leader`, or any of the next row's codes with `conclave-outcome: not-applied` | yes | yes | yes |
//! | UNAVAILABLE otherwise (a proxy may have lost the call); connection lost under the call; no answer in time; `conclave-outcome: unknown` | yes | **no** | yes |
//! | any other answer: the state machine's failure, a trap, a limit | no | no | no |
//!
//! A node that is busy answers UNAVAILABLE with `not-applied`, so calls are retried until there is room. A trap is
//! INTERNAL with [`Error::trap_kind`]. `docs/clients.md` has all codes.
//!
//! A write whose outcome is unknown may have been applied, so repeating it may apply it twice. That is
//! the caller's to allow; [`Error::outcome_unknown`] tells when it was not.
//!
//! # Caveats
//!
//! No TLS and no exactly-once sessions yet. A [`Subscription`] is one stream from one node, and ends with it;
//! [`Kv::watch`] goes on with another.

mod builder;
mod client;
mod cluster;
mod codec;
mod components;
mod connection;
mod error;
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

pub use builder::Builder;
pub use client::{Answer, Client};
pub use components::Permissions;
pub use error::Error;
pub use kv::Kv;
pub use method::MethodName;
pub use options::{CallOptions, Consistency};
pub use reflection::{Method, MethodKind};
pub use subscription::{JsonSubscription, Subscription};
pub use tonic::Code;
pub use watch::Watch;
