//! Snapshots that are read from the standby, piece by piece.

use bytes::Bytes;

use super::{OpenStream, Standby};
use crate::{
    error::{Broken, Ended, SnapshotError},
    instance::Instance,
    migration::too_large,
    worker::{
        queue::Requests,
        requests::{Captured, Chunk, ReadRequest, SnapshotRequest},
    },
};

/// The maximum number of snapshots that are read at once. The snapshot policy takes one; the others
/// are for operators.
const STREAMS_MAX: usize = 4;

impl Standby {
    /// Captures the state, which is read while entries continue.
    fn begin_snapshot(&mut self, request: SnapshotRequest) -> Result<(), Ended> {
        let now = self.clock.now();
        let answer = if request.index < now.index {
            Err(SnapshotError::Passed { index: request.index, applied: now.index })
        } else if self.streams.len() >= STREAMS_MAX {
            Err(SnapshotError::Busy)
        } else {
            self.shared.metrics.snapshots.inc();
            self.on_instance("taking a snapshot", |instance| instance.snapshot())?.map(|snapshot| {
                let stream = self.next_stream;
                self.next_stream += 1;
                self.streams.insert(stream, OpenStream { snapshot, bytes: 0 });
                Captured { stream, component: self.component.clone(), context: now }
            })
        };
        // A caller that has given up does not close the stream.
        match request.reply.send(answer) {
            Err(Ok(captured)) => self.close(captured.stream),
            Ok(()) | Err(Err(_)) => Ok(()),
        }
    }

    /// Releases snapshots and begins others. Returns the request for a piece, which comes last in a turn.
    pub(super) fn begin_requests(
        &mut self,
        requests: Requests,
    ) -> Result<Option<ReadRequest>, Ended> {
        for stream in requests.closed {
            self.close(stream)?;
        }
        for request in requests.snapshots {
            self.begin_snapshot(request)?;
        }
        Ok(requests.read)
    }

    /// Returns the next piece of a snapshot.
    pub(super) fn read(&mut self, request: Option<ReadRequest>) -> Result<(), Ended> {
        let Some(request) = request else { return Ok(()) };
        let chunk: Chunk = match self.streams.get(&request.stream).copied() {
            None => Err(SnapshotError::Lost),
            Some(OpenStream { snapshot, .. }) => {
                let chunk = self.on_instance("reading a snapshot", |instance| {
                    instance.snapshot_read(snapshot)
                })?;
                chunk.and_then(|bytes: Bytes| {
                    self.count(request.stream, bytes.len())?;
                    Ok((!bytes.is_empty()).then_some(bytes))
                })
            }
        };
        if !matches!(chunk, Ok(Some(_))) {
            self.close(request.stream)?;
        }
        let _ = request.reply.send(chunk);
        Ok(())
    }

    /// Rejects a snapshot that is larger than any permitted state. An endless one would fill the disk.
    fn count(&mut self, stream: u64, bytes: usize) -> Result<(), SnapshotError> {
        let Some(instance) = &self.instance else { return Ok(()) };
        let bytes_max = instance.cluster_limits().memory_bytes_max;
        let Some(open) = self.streams.get_mut(&stream) else { return Ok(()) };
        open.bytes += bytes;
        if open.bytes > bytes_max { Err(SnapshotError::Trap(too_large(bytes_max))) } else { Ok(()) }
    }

    /// Releases all snapshots.
    pub(super) fn close_all(&mut self) -> Result<(), Ended> {
        for stream in self.streams.keys().copied().collect::<Vec<_>>() {
            self.close(stream)?;
        }
        Ok(())
    }

    /// Releases a snapshot.
    fn close(&mut self, stream: u64) -> Result<(), Ended> {
        if let Some(OpenStream { snapshot, .. }) = self.streams.remove(&stream) {
            let dropped = self.on_instance("releasing an open snapshot", |instance| {
                instance.snapshot_drop(snapshot)
            })?;
            if let Err(error) = dropped {
                tracing::warn!(%error, "a snapshot could not be released; a new standby is built");
            }
        }
        Ok(())
    }

    /// Runs a call that concerns snapshots. A trap costs the instance and all of its snapshots.
    fn on_instance<R>(
        &mut self,
        what: &str,
        call: impl FnOnce(&mut Instance) -> Result<R, Broken>,
    ) -> Result<Result<R, SnapshotError>, Ended> {
        let Some(instance) = &mut self.instance else { return Ok(Err(SnapshotError::Lost)) };
        match call(instance) {
            Ok(result) => Ok(Ok(result)),
            Err(Broken::Trap(trap)) => {
                self.lose_instance();
                Ok(Err(SnapshotError::Trap(trap)))
            }
            Err(broken) => Err(broken.ended(what)),
        }
    }
}
