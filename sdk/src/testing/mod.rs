//! Conformance tests for state machines. They run natively, without WebAssembly or a host.
//!
//! Write a [`Log`] with the calls that a host would make, and pass it to [`check`]. A check that
//! fails panics like a test, and names the first entry whose results differ.
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
//! The conformance tests cannot detect differences that appear only on other hardware. They do not
//! roll back a panic as a host does: a panic fails the test.

#![allow(clippy::panic, reason = "a failed check must fail the calling test")]

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
