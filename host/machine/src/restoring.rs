//! A state on its way into a fresh instance.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use wasmtime::component::ResourceAny;

use super::{
    component::Component, instance::Instance, limits::SNAPSHOT_CHUNK_BYTES_MAX, trap::Broken,
};
use conclave_types::{Failure, Trap, TrapKind, limits::ClusterLimits};

/// An instance that is being given a state. It is handed out once it has all of it.
///
/// A machine that does not take a state of a version that it says it restores breaks its word, so its
/// failure is a [`TrapKind::BadAnswer`] here.
pub(super) struct Restoring {
    instance: Instance,
    writer: ResourceAny,
}

impl Restoring {
    /// Begins. The caller has made sure that the component restores this version.
    pub(super) fn begin(
        component: &Component,
        state_version: u32,
        role: &'static str,
        limits: ClusterLimits,
        stop: &Arc<AtomicBool>,
    ) -> Result<Self, Broken> {
        let stop = Arc::clone(stop);
        let interrupted = move || stop.load(Ordering::Relaxed);
        Self::interruptible(component, state_version, role, limits, interrupted)
    }

    /// The same with a condition of the caller's that ends a call which is running.
    pub(super) fn interruptible(
        component: &Component,
        state_version: u32,
        role: &'static str,
        limits: ClusterLimits,
        interrupted: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<Self, Broken> {
        let mut instance = component.interruptible(role, limits, interrupted)?;
        let writer = instance.restore(state_version)?;
        let writer = writer.map_err(|failure| refused("restore", &failure))?;
        Ok(Self { instance, writer })
    }

    /// The next bytes, as many as there are.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        for piece in bytes.chunks(SNAPSHOT_CHUNK_BYTES_MAX) {
            let written = self.instance.restore_write(self.writer, piece)?;
            written.map_err(|failure| refused("restore-writer.write", &failure))?;
        }
        Ok(())
    }

    /// That was all of them.
    pub(super) fn finish(mut self) -> Result<Instance, Broken> {
        let finished = self.instance.restore_finish(self.writer)?;
        finished.map_err(|failure| refused("restore-writer.finish", &failure))?;
        Ok(self.instance)
    }
}

fn refused(method: &str, failure: &Failure) -> Broken {
    Broken::Trap(Trap {
        kind: TrapKind::BadAnswer,
        message: format!("{method}: the machine refuses the state: {}", failure.message),
    })
}
