//! Switches of `cargo xtask bench` that turn off parts of a node, to measure their cost:
//! WebAssembly, and the host's work per entry apart from the call of the state machine.
//!
//! Compiled in only with the feature `bench`, which no shipped binary has. Without it, every switch
//! is a constant `false`.

#[cfg(not(feature = "bench"))]
mod switches {
    pub(in super::super) const fn bare() -> bool {
        false
    }
}

#[cfg(feature = "bench")]
mod switches {
    use std::sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    };

    use bytes::Bytes;

    use super::super::entry_context::EntryContext;
    use conclave_types::{Call, Failure, Outcome};

    /// A state machine that is not a component. It takes no part in snapshots, restores and ticks.
    pub trait Native: Send {
        /// Applies a call, as a component's `apply` does.
        fn apply(&mut self, context: EntryContext, call: &Call) -> Outcome;

        /// Answers a query, as a component's `query` does.
        ///
        /// # Errors
        /// Returns the failure that the state machine answers with.
        fn query(&mut self, context: EntryContext, call: &Call) -> Result<Bytes, Failure>;
    }

    /// Creates a native state machine in its initial state.
    pub type MakeNative = fn() -> Box<dyn Native>;

    static NATIVE: OnceLock<MakeNative> = OnceLock::new();
    static BARE: AtomicBool = AtomicBool::new(false);

    /// Makes every instance created from now on pass its calls and queries to a native state machine.
    pub fn run_natively(make: MakeNative) {
        NATIVE.get_or_init(|| make);
    }

    /// Sets whether workers leave out digests, events, ticks and the entry context of WASI.
    pub fn leave_out_features(yes: bool) {
        BARE.store(yes, Ordering::Relaxed);
    }

    pub(in super::super) fn native() -> Option<Box<dyn Native>> {
        NATIVE.get().map(|make| make())
    }

    pub(in super::super) fn bare() -> bool {
        BARE.load(Ordering::Relaxed)
    }
}

pub(super) use switches::*;
#[cfg(feature = "bench")]
pub use switches::{MakeNative, Native, leave_out_features, run_natively};
