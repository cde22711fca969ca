//! What `cargo xtask bench` leaves out of a node, to measure what it costs there: WebAssembly, and what the
//! host does for an entry beside calling the machine.
//!
//! Compiled in by the feature `bench` alone, which no binary that ships has. Without it every question here is
//! answered "no" by a constant.

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

    use super::super::instance::EntryContext;
    use conclave_types::{Call, Failure, Outcome};

    /// A machine that is not a component. Snapshots, restores and ticks pass it by.
    pub trait Native: Send {
        /// As a component's `apply`.
        fn apply(&mut self, context: EntryContext, call: &Call) -> Outcome;

        /// As a component's `query`.
        ///
        /// # Errors
        /// The machine's refusal.
        fn query(&mut self, context: EntryContext, call: &Call) -> Result<Bytes, Failure>;
    }

    /// Makes one in its initial state.
    pub type MakeNative = fn() -> Box<dyn Native>;

    static NATIVE: OnceLock<MakeNative> = OnceLock::new();
    static BARE: AtomicBool = AtomicBool::new(false);

    /// From now on every instance hands its calls and queries to one of these.
    pub fn run_natively(make: MakeNative) {
        NATIVE.get_or_init(|| make);
    }

    /// Whether workers leave out digests, events, ticks and WASI's moment.
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
