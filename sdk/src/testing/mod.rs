//! Tests that a machine keeps the contract, run natively: no WebAssembly, no host.
//!
//! Write a [`Log`], the calls that the host would make, and hand it to [`check`]. A check that fails
//! panics, as a test does, with the first entry at which the machine went astray.
//!
//! ```
//! # use conclave_sdk::testing::{Log, check};
//! # use conclave_sdk::{Call, Context, Failure, Machine, Reply};
//! # #[derive(Default)]
//! # struct Counter(u64);
//! # impl Machine for Counter {
//! #     const NAME: &'static str = "counter";
//! #     const VERSION: &'static str = "1.0.0";
//! #     const STATE_VERSION: u32 = 1;
//! #     fn apply(&mut self, _: &Context, _: &Call) -> Result<Reply, Failure> {
//! #         self.0 += 1;
//! #         Ok(Reply::new(self.0.to_be_bytes()))
//! #     }
//! #     fn query(&self, _: &Context, _: &Call) -> Result<Vec<u8>, Failure> {
//! #         Ok(self.0.to_be_bytes().into())
//! #     }
//! #     fn save(&self) -> Vec<u8> {
//! #         self.0.to_be_bytes().into()
//! #     }
//! #     fn load(_: u32, bytes: &[u8]) -> Result<Self, Failure> {
//! #         let bytes = bytes.try_into().map_err(|_| Failure::invalid_argument("8 bytes"))?;
//! #         Ok(Self(u64::from_be_bytes(bytes)))
//! #     }
//! # }
//! let mut log = Log::new();
//! log.apply(Call::new("Increment", []));
//! log.wait_ms(1_000).apply(Call::new("Increment", []));
//! log.ask(Call::new("Get", []));
//! check::<Counter>(&log);
//! ```
//!
//! What it cannot see: a panic (in a host it is rolled back; here it fails the test), and what would
//! differ only on another computer.

#![allow(clippy::panic, reason = "a check that fails must fail the test that made it")]

mod check;
mod log;
mod methods;
mod mistakes;

pub use check::{
    check, check_afterwards, check_derived, check_description, check_queries, check_replay,
    check_same_state, check_snapshots, run,
};
pub use log::{Entry, Log, Operation, Outcome};
pub(crate) use methods::check_messages;
pub use methods::check_methods;
pub use mistakes::{check_failures, check_wake_ups};
