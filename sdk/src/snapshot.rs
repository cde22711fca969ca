//! Writing and restoring snapshots.
//!
//! Most state machines return the whole snapshot at once ([`Machine::save`], [`Machine::load`]) and
//! do not need this module. A state machine with a large state implements [`SnapshotReader`] and
//! [`RestoreWriter`], so that the whole snapshot is never in memory beside the state.

use crate::{Failure, Machine};

/// A reader of a snapshot. It shows the state at the time of the capture, regardless of later entries.
pub trait SnapshotReader: 'static {
    /// Returns the next bytes: at least one and at most `max_bytes`. An empty result means the end.
    /// The concatenation of all chunks must not depend on `max_bytes`, which may be as small as one.
    fn read(&mut self, max_bytes: usize) -> Vec<u8>;
}

/// A writer that restores a state. The host chooses where to split the snapshot into chunks.
pub trait RestoreWriter<M>: 'static {
    /// Accepts the next bytes.
    fn write(&mut self, chunk: &[u8]) -> Result<(), Failure>;

    /// Returns the restored state machine if the written bytes are a complete and valid snapshot.
    fn finish(self: Box<Self>) -> Result<M, Failure>;
}

/// A snapshot that is already serialized.
pub struct Bytes {
    bytes: Vec<u8>,
    position: usize,
}

impl Bytes {
    /// Creates a reader of `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, position: 0 }
    }
}

impl SnapshotReader for Bytes {
    fn read(&mut self, max_bytes: usize) -> Vec<u8> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let chunk = rest.get(..max_bytes).unwrap_or(rest).to_vec();
        self.position += chunk.len();
        chunk
    }
}

/// A restore that collects all chunks and loads them at the end.
pub struct Collect {
    state_version: u32,
    bytes: Vec<u8>,
}

impl Collect {
    /// Creates a collector for a snapshot in the format `state_version`.
    pub fn new(state_version: u32) -> Self {
        Self { state_version, bytes: Vec::new() }
    }
}

impl<M: Machine> RestoreWriter<M> for Collect {
    fn write(&mut self, chunk: &[u8]) -> Result<(), Failure> {
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<M, Failure> {
        M::load(self.state_version, &self.bytes)
    }
}

/// The size of the chunks of [`read_all`] and [`write_all`], and the largest chunk that a host requests.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

/// Reads all bytes of `reader`. Implements `save` for a state machine that streams its snapshots.
pub fn read_all(mut reader: Box<dyn SnapshotReader>) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let chunk = reader.read(CHUNK_BYTES_MAX);
        if chunk.is_empty() {
            return bytes;
        }
        bytes.extend_from_slice(&chunk);
    }
}

/// Writes `bytes` to `writer` and finishes it. Implements `load` for a state machine that streams
/// its snapshots.
pub fn write_all<M: Machine>(
    mut writer: Box<dyn RestoreWriter<M>>,
    bytes: &[u8],
) -> Result<M, Failure> {
    for chunk in bytes.chunks(CHUNK_BYTES_MAX) {
        writer.write(chunk)?;
    }
    writer.finish()
}
