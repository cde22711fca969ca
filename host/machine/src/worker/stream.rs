//! A snapshot that is being read from the standby.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    requests::{Captured, Chunk, ReadRequest},
    shared::Shared,
};
use crate::{component::Component, entry_context::EntryContext, error::SnapshotError};

/// The state machine's state at one index. Its pieces are pulled from the standby one by one, and
/// entries and queries continue between two of them. Dropping the stream releases the state.
pub struct StateStream {
    shared: Arc<Shared>,
    component: Component,
    number: u64,
    index: u64,
    time_ms: u64,
    ended: bool,
}

impl StateStream {
    fn new(shared: Arc<Shared>, captured: Captured) -> Self {
        let Captured { stream: number, component, context } = captured;
        let EntryContext { index, time_ms, .. } = context;
        Self { shared, component, number, index, time_ms, ended: false }
    }

    /// Returns the component to which the state belongs.
    pub fn component(&self) -> &Component {
        &self.component
    }

    /// Returns the log index after which the state was captured.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Returns the state machine's time at that index, in milliseconds since the Unix epoch.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// Returns the version of the format of the bytes.
    pub fn state_version(&self) -> u32 {
        self.component.state_version()
    }

    /// Returns the next piece, of at most 1 MiB, or `None` at the end. After an error the snapshot
    /// is lost, and the stream ends.
    pub async fn next(&mut self) -> Option<Result<Bytes, SnapshotError>> {
        let answer = match self.request()? {
            Ok(receiver) => {
                receiver.await.unwrap_or_else(|_| Err(self.shared.status.snapshot_end()))
            }
            Err(error) => Err(error),
        };
        self.give(answer)
    }

    /// Does the same as [`StateStream::next`], but blocks the thread.
    pub fn next_blocking(&mut self) -> Option<Result<Bytes, SnapshotError>> {
        let answer = match self.request()? {
            Ok(receiver) => {
                receiver.blocking_recv().unwrap_or_else(|_| Err(self.shared.status.snapshot_end()))
            }
            Err(error) => Err(error),
        };
        self.give(answer)
    }

    /// Requests the next piece.
    fn request(&self) -> Option<Result<oneshot::Receiver<Chunk>, SnapshotError>> {
        if self.ended {
            return None;
        }
        let (reply, receiver) = oneshot::channel();
        let request = ReadRequest { stream: self.number, reply };
        let requested = self.shared.inbox.with(|queue| queue.request_read(request));
        Some(requested.map(|()| receiver).map_err(|_| self.shared.status.snapshot_end()))
    }

    fn give(&mut self, answer: Chunk) -> Option<Result<Bytes, SnapshotError>> {
        self.ended = !matches!(answer, Ok(Some(_)));
        answer.transpose()
    }
}

impl Drop for StateStream {
    fn drop(&mut self) {
        if !self.ended {
            self.shared.inbox.with(|queue| queue.close_stream(self.number));
        }
    }
}

/// A request for a snapshot, until its answer is received. If nothing receives the answer, the
/// state is released.
pub(super) struct Opening {
    shared: Arc<Shared>,
    captured: oneshot::Receiver<Result<Captured, SnapshotError>>,
}

impl Opening {
    pub(super) fn new(
        shared: Arc<Shared>,
        captured: oneshot::Receiver<Result<Captured, SnapshotError>>,
    ) -> Self {
        Self { shared, captured }
    }

    /// Waits until the standby has captured the state.
    pub(super) async fn stream(mut self) -> Result<StateStream, SnapshotError> {
        match (&mut self.captured).await {
            Ok(answer) => {
                answer.map(|captured| StateStream::new(Arc::clone(&self.shared), captured))
            }
            Err(_) => Err(self.shared.status.snapshot_end()),
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        // The standby may have answered already. After `close`, it can no longer.
        self.captured.close();
        if let Ok(Ok(captured)) = self.captured.try_recv() {
            drop(StateStream::new(Arc::clone(&self.shared), captured));
        }
    }
}
