//! Snapshots leaving a machine and states coming back.
//!
//! Most machines give all their bytes at once ([`Machine::save`], [`Machine::load`]) and never meet
//! this module. A machine whose state is large implements [`SnapshotReader`] and [`RestoreWriter`],
//! so that neither side ever holds the whole snapshot beside the state.

use crate::{Failure, Machine};

/// A snapshot being read. It shows the state at the moment it was taken, whatever is applied later.
pub trait SnapshotReader: 'static {
    /// The next bytes: at least one and at most `max_bytes`; empty means the end. What is read, put
    /// together, must not depend on `max_bytes`, which may be as small as one.
    fn read(&mut self, max_bytes: usize) -> Vec<u8>;
}

/// A state being restored, cut into chunks at places of the host's choice.
pub trait RestoreWriter<M>: 'static {
    /// Takes the next bytes.
    fn write(&mut self, chunk: &[u8]) -> Result<(), Failure>;

    /// The restored machine, if what was written is a whole and valid snapshot.
    fn finish(self: Box<Self>) -> Result<M, Failure>;
}

/// A snapshot whose bytes exist already.
pub struct Bytes {
    bytes: Vec<u8>,
    position: usize,
}

impl Bytes {
    /// A reader of `bytes`.
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

/// A restore that collects every chunk and loads them at once.
pub struct Collect {
    state_version: u32,
    bytes: Vec<u8>,
}

impl Collect {
    /// Collects a snapshot that was written with `state_version`.
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

/// The chunk that [`read_all`] and [`write_all`] move at once, and the largest that a host asks for.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

/// Everything that `reader` has. The `save` of a machine that streams.
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

/// Writes `bytes` to `writer` and finishes it. The `load` of a machine that streams.
pub fn write_all<M: Machine>(
    mut writer: Box<dyn RestoreWriter<M>>,
    bytes: &[u8],
) -> Result<M, Failure> {
    for chunk in bytes.chunks(CHUNK_BYTES_MAX) {
        writer.write(chunk)?;
    }
    writer.finish()
}
