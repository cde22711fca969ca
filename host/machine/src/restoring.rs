//! A restore in progress: a state on its way into a new instance.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use wasmtime::component::ResourceAny;

use super::{
    component::Component, error::Broken, instance::Instance, limits::SNAPSHOT_CHUNK_BYTES_MAX,
};
use conclave_types::{Failure, Trap, TrapKind, limits::ClusterLimits};

/// A new instance that receives a state. The instance is handed out only when the state is complete.
///
/// If a state machine rejects a version that it declares to restore, it violates the contract. Its
/// failure therefore becomes a [`TrapKind::BadAnswer`] here.
pub(super) struct Restoring {
    instance: Instance,
    writer: ResourceAny,
}

impl Restoring {
    /// Begins a restore. The caller has checked that the component restores this version.
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

    /// Begins a restore whose calls also end when the caller's condition becomes true.
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

    /// Writes the next bytes, of any length.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        for piece in bytes.chunks(SNAPSHOT_CHUNK_BYTES_MAX) {
            let written = self.instance.restore_write(self.writer, piece)?;
            written.map_err(|failure| refused("restore-writer.write", &failure))?;
        }
        Ok(())
    }

    /// Finishes the restore after the last bytes, and returns the instance.
    pub(super) fn finish(mut self) -> Result<Instance, Broken> {
        let finished = self.instance.restore_finish(self.writer)?;
        finished.map_err(|failure| refused("restore-writer.finish", &failure))?;
        Ok(self.instance)
    }
}

fn refused(method: &str, failure: &Failure) -> Broken {
    Broken::Trap(Trap {
        kind: TrapKind::BadAnswer,
        message: format!("{method}: the state machine rejects the state: {}", failure.message),
    })
}
