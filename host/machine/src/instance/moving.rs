//! Calls that move a state out of an instance or into one.

use bytes::Bytes;
use wasmtime::{Store, component::ResourceAny};

use super::{About, Broken, Guest, SNAPSHOT_READ_BYTES, State, WasmInstance, failure};
use conclave_types::{Failure, TrapKind};

impl WasmInstance {
    /// Captures the state.
    pub(crate) fn snapshot(&mut self) -> Result<ResourceAny, Broken> {
        let about = ("snapshot", self.limits.cluster.fuel_per_state_call);
        self.move_state(about, |guest, store| guest.call_snapshot(store))
    }

    /// Reads the next piece of a captured state. An empty piece means the end.
    pub(crate) fn snapshot_read(&mut self, snapshot: ResourceAny) -> Result<Bytes, Broken> {
        self.snapshot_read_at_most(snapshot, SNAPSHOT_READ_BYTES)
    }

    /// Reads the next piece, of at most `bytes_max`, which must not exceed 1 MiB.
    pub(crate) fn snapshot_read_at_most(
        &mut self,
        snapshot: ResourceAny,
        bytes_max: usize,
    ) -> Result<Bytes, Broken> {
        let about = ("snapshot-reader.read", self.limits.fuel_per_piece());
        let chunk = self.move_state(about, |guest, store| {
            guest.snapshot_reader().call_read(store, snapshot, bytes_max as u32)
        })?;
        if chunk.len() > bytes_max {
            let about = About { method: about.0, fuel: about.1, limits: &self.limits };
            return Err(Broken::Trap(
                about.trap(TrapKind::BadAnswer, "the piece is larger than requested"),
            ));
        }
        Ok(Bytes::from(chunk))
    }

    /// Releases a captured state.
    pub(crate) fn snapshot_drop(&mut self, snapshot: ResourceAny) -> Result<(), Broken> {
        let about = ("snapshot-reader.drop", self.limits.cluster.fuel_per_state_call);
        self.call(about, |_, store| snapshot.resource_drop(store))
    }

    /// Begins to replace the state.
    pub(crate) fn restore(
        &mut self,
        state_version: u32,
    ) -> Result<Result<ResourceAny, Failure>, Broken> {
        let about = ("restore", self.limits.cluster.fuel_per_state_call);
        let answer =
            self.move_state(about, |guest, store| guest.call_restore(store, state_version))?;
        Ok(answer.map_err(failure))
    }

    /// Writes the next piece of a state, at most 1 MiB long. See `restoring.rs`.
    pub(crate) fn restore_write(
        &mut self,
        writer: ResourceAny,
        chunk: &[u8],
    ) -> Result<Result<(), Failure>, Broken> {
        let about = ("restore-writer.write", self.limits.fuel_per_piece());
        let answer = self.move_state(about, |guest, store| {
            guest.restore_writer().call_write(store, writer, chunk)
        })?;
        Ok(answer.map_err(failure))
    }

    /// Replaces the state machine's state by the state that was written.
    pub(crate) fn restore_finish(
        &mut self,
        writer: ResourceAny,
    ) -> Result<Result<(), Failure>, Broken> {
        let about = ("restore-writer.finish", self.limits.cluster.fuel_per_state_call);
        let answer = self
            .move_state(about, |guest, store| guest.restore_writer().call_finish(store, writer))?;
        self.move_state(("restore-writer.drop", about.1), |_, store| writer.resource_drop(store))?;
        Ok(answer.map_err(failure))
    }

    /// Runs a call that moves the state, as [`Self::call`] does. Such calls may take more memory than
    /// calls that change the state, so that a state that has grown to its limit can be saved and restored.
    fn move_state<R>(
        &mut self,
        about: (&str, u64),
        body: impl FnOnce(&Guest, &mut Store<State>) -> wasmtime::Result<R>,
    ) -> Result<R, Broken> {
        let limits = self.limits.cluster;
        self.set_memory_bytes_max(limits.state_call_memory_bytes_max());
        let answer = self.call(about, body);
        self.set_memory_bytes_max(limits.memory_bytes_max);
        answer
    }
}
