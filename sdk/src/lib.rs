//! Write a Conclave state machine in Rust.
//!
//! A machine is a type that implements [`Machine`]: it applies the entries of a replicated log, one
//! call an entry, and answers questions about the state that they lead to. [`export!`] makes its crate
//! a WebAssembly component, and a Conclave cluster does the rest: consensus, encryption, snapshots,
//! gRPC.
//!
//! This is a whole machine. With protobuf messages and the [`Router`] it becomes a typed gRPC service:
//! see `examples/counter`.
//!
//! ```
//! use conclave_sdk::{Call, Context, Failure, Machine, Reply};
//!
//! #[derive(Default)]
//! struct Counter(u64);
//!
//! impl Machine for Counter {
//!     const NAME: &'static str = "counter";
//!     const VERSION: &'static str = "1.0.0";
//!     const STATE_VERSION: u32 = 1;
//!
//!     fn apply(&mut self, _: &Context, call: &Call) -> Result<Reply, Failure> {
//!         match call.method.as_str() {
//!             "Increment" => self.0 += 1,
//!             other => return Err(Failure::unimplemented(format!("there is no method {other}"))),
//!         }
//!         Ok(Reply::new(self.save()))
//!     }
//!
//!     fn query(&self, _: &Context, _: &Call) -> Result<Vec<u8>, Failure> {
//!         Ok(self.save())
//!     }
//!
//!     fn save(&self) -> Vec<u8> {
//!         self.0.to_be_bytes().to_vec()
//!     }
//!
//!     fn load(_: u32, bytes: &[u8]) -> Result<Self, Failure> {
//!         let bytes = bytes.try_into().map_err(|_| Failure::invalid_argument("not 8 bytes"))?;
//!         Ok(Self(u64::from_be_bytes(bytes)))
//!     }
//! }
//!
//! conclave_sdk::export!(Counter);
//! # let mut log = conclave_sdk::testing::Log::new();
//! # log.apply(Call::new("Increment", [])).apply(Call::new("Unknown", []));
//! # conclave_sdk::testing::check::<Counter>(&log);
//! ```
//!
//! # Determinism
//!
//! Every replica applies the same entries and must come to the same state. What an entry brings along
//! ([`Context`]) is a machine's only source of time and chance. `clippy.toml` beside this crate bans the
//! types that break this most often; copy it beside your own `Cargo.toml`. The kit in [`testing`] finds
//! most of the rest.
//!
//! # Panics
//!
//! A panic is a trap: the host rolls the entry back, answers its caller with INTERNAL and the metadata
//! `conclave-trap`, the same on every replica, and continues with the next entry. The message goes to the
//! node's log. Panic where an invariant of the machine is broken; return a [`Failure`] for what a caller can do.

// The code that wit-bindgen generates here, and that `export!` expands to elsewhere, names things by
// this crate's name.
extern crate self as conclave_sdk;

mod machine;
mod timers;
mod types;

mod protobuf;
mod router;
pub mod snapshot;

pub mod limits;
pub mod log;
#[cfg(not(target_family = "wasm"))]
pub mod testing;

#[doc(hidden)]
pub mod bindings;
mod guest;

pub use machine::Machine;
pub use prost;
pub use router::{Respond, Router};
pub use timers::Timers;
pub use types::{Call, Code, Context, Description, Event, Failure, Reply, Subscription};

/// What the macros expand to. Not for use by hand.
#[doc(hidden)]
pub mod __private {
    pub use crate::{
        bindings,
        guest::{Component, Slot, start},
    };
    pub use wit_bindgen;
}
