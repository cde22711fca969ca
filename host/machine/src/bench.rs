//! The parts of a node that `cargo xtask bench` measures separately: a native state machine in the
//! place of a component's code, and the host's work per entry apart from the call of the state machine.
//!
//! Compiled in only with the feature `bench`, which no shipped binary has.

use std::{
    ops::{Deref, DerefMut},
    sync::OnceLock,
};

use bytes::Bytes;

use super::{
    bindings::MachinePre, engine::Engine, entry_context::EntryContext, error::Broken,
    instance::WasmInstance, state::State,
};
use conclave_types::{Call, Failure, Outcome, limits::ClusterLimits};

pub use super::worker::HostWork;

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

/// Makes every instance created from here on pass its calls and queries to a native state machine.
pub fn run_natively(make: MakeNative) {
    NATIVE.get_or_init(|| make);
}

/// An instance whose calls and queries a native state machine answers, if there is one. The
/// component's instance does everything else.
pub(super) struct NativeInstance {
    component: WasmInstance,
    native: Option<Box<dyn Native>>,
}

impl NativeInstance {
    pub(super) fn new(
        engine: &Engine,
        pre: &MachinePre<State>,
        role: &'static str,
        cluster: ClusterLimits,
        interrupted: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<Self, Broken> {
        let component = WasmInstance::new(engine, pre, role, cluster, interrupted)?;
        Ok(Self { component, native: NATIVE.get().map(|make| make()) })
    }

    pub(super) fn run(
        &mut self,
        context: EntryContext,
        call: Option<&Call>,
    ) -> Result<Outcome, Broken> {
        match (&mut self.native, call) {
            (Some(native), Some(call)) => Ok(native.apply(context, call)),
            _ => self.component.run(context, call),
        }
    }

    pub(super) fn query(
        &mut self,
        context: EntryContext,
        call: &Call,
    ) -> Result<Result<Bytes, Failure>, Broken> {
        match &mut self.native {
            Some(native) => Ok(native.query(context, call)),
            None => self.component.query(context, call),
        }
    }
}

impl Deref for NativeInstance {
    type Target = WasmInstance;

    fn deref(&self) -> &WasmInstance {
        &self.component
    }
}

impl DerefMut for NativeInstance {
    fn deref_mut(&mut self) -> &mut WasmInstance {
        &mut self.component
    }
}
