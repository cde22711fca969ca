//! Write a Conclave state machine in Rust.

#[doc(hidden)]
pub mod bindings;
mod guest;
pub mod log;
mod machine;
mod protobuf;
mod router;
pub mod snapshot;
mod types;

pub use machine::Machine;
pub use prost;
pub use router::{Respond, Router};
pub use types::{Call, Code, Context, Description, Event, Failure, Reply, Subscription};

// The code that `export!` expands to names things by this crate's name, and so does the generated
// code inside this crate.
extern crate self as conclave_sdk;

#[doc(hidden)]
pub mod __private {
    pub use crate::{
        bindings,
        guest::{Component, Slot, start},
    };
    pub use wit_bindgen;
}
