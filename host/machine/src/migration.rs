//! State migration: moves the state of a component into a new instance of its successor, piece by piece.
//!
//! # Contract
//! 1. Success or failure, with its reason, is a function of the log, like an outcome. The bytes of
//!    a snapshot are a function of the state. They are written in pieces of a fixed size,
//!    independent of the pieces in which the old instance returned them.
//! 2. The old instance continues as before if the new one does not accept its state.
//! 3. The state is never held in memory as a whole: a few pieces at most. Its total size is bounded
//!    by the state machine's memory limit, so that an endless snapshot ends.
//!
//! # Two threads
//! Writes wait for a migration, and reading a state takes about as long as writing it. Therefore
//! the calling thread reads the old instance while a second thread writes into the new one.
//!
//! The old instance may trap while the new one still has earlier pieces to reject. Then the
//! rejection is the reason. It comes first in the order of the bytes, which is the same on every
//! node and independent of timing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::scope,
};

use wasmtime::component::ResourceAny;

use super::{
    component::Component,
    error::{Broken, Ended, FatalError},
    instance::Instance,
    limits::SNAPSHOT_READ_BYTES,
    restoring::Restoring,
    thread,
};
use conclave_types::{Trap, TrapKind};

/// The number of pieces of 256 KiB between the two threads, so that neither waits for each
/// piece of the other.
const PIECES_IN_FLIGHT: usize = 4;

/// The reasons why a state was not migrated.
#[derive(Debug)]
pub(super) enum NotMigrated {
    /// The new component does not accept the state, or the old one does not provide it.
    Refused {
        /// The reason, the same on every node.
        trap: Trap,
        /// Whether the old instance is unusable; otherwise it is unchanged. May differ between nodes.
        old_broke: bool,
    },
    /// The worker shuts down, or this node failed.
    Ended(Ended),
}

impl NotMigrated {
    fn of(broken: Broken, old_broke: bool) -> Self {
        match broken {
            Broken::Trap(trap) => Self::Refused { trap, old_broke },
            Broken::Ended(ended) => Self::Ended(ended),
        }
    }

    fn of_old(broken: Broken) -> Self {
        Self::of(broken, true)
    }

    fn of_new(broken: Broken) -> Self {
        Self::of(broken, false)
    }
}

impl From<FatalError> for NotMigrated {
    fn from(fatal_error: FatalError) -> Self {
        Self::Ended(fatal_error.into())
    }
}

/// A message from the reading thread to the writing thread.
enum Piece {
    Bytes(Vec<u8>),
    /// The end of the state. If it is missing, the old instance has trapped, and the restore must
    /// not be finished.
    End,
}

/// Creates an instance of `component` with the state of `old`. The component must restore
/// `state_version`, the version of that state.
pub(super) fn migration(
    old: &mut Instance,
    state_version: u32,
    component: &Component,
    role: &'static str,
    stop: &Arc<AtomicBool>,
) -> Result<Instance, NotMigrated> {
    let snapshot = old.snapshot().map_err(NotMigrated::of_old)?;
    let limits = old.cluster_limits();
    let restoring =
        Restoring::begin(component, state_version, role, limits, stop).map_err(NotMigrated::of_new);
    let carried = restoring.and_then(|restoring| stream(old, snapshot, restoring, component, stop));
    match carried {
        Err(NotMigrated::Refused { trap, old_broke: false }) => match old.snapshot_drop(snapshot) {
            Ok(()) => Err(NotMigrated::Refused { trap, old_broke: false }),
            Err(Broken::Trap(_)) => Err(NotMigrated::Refused { trap, old_broke: true }),
            Err(broken) => Err(NotMigrated::of_old(broken)),
        },
        carried => carried,
    }
}

fn stream(
    old: &mut Instance,
    snapshot: ResourceAny,
    restoring: Restoring,
    component: &Component,
    stop: &AtomicBool,
) -> Result<Instance, NotMigrated> {
    let stack_bytes = component.engine().limits().thread_stack_bytes();
    let (pieces, received) = sync_channel(PIECES_IN_FLIGHT);
    scope(|scope| {
        let body = move || write(restoring, received);
        let writing = thread::spawn_scoped(scope, "migrate", stack_bytes, body)?;
        let bytes_max = old.cluster_limits().memory_bytes_max;
        let read = read(old, snapshot, bytes_max, stop, pieces);
        let written = thread::joined("migrate", writing)?;
        match (read, written) {
            (Err(NotMigrated::Ended(ended)), _) => Err(NotMigrated::Ended(ended)),
            (read, Err(broken)) => {
                let old_broke = matches!(read, Err(NotMigrated::Refused { old_broke: true, .. }));
                Err(NotMigrated::of(broken, old_broke))
            }
            (Err(refused), Ok(_)) => Err(refused),
            (Ok(()), Ok(Some(instance))) => Ok(instance),
            (Ok(()), Ok(None)) => {
                Err(FatalError::new("the state was read to its end, but not written completely")
                    .into())
            }
        }
    })
}

/// Reads the whole snapshot. If the writing thread has ended, reading ends early with `Ok`, because
/// that thread reports the reason.
fn read(
    old: &mut Instance,
    snapshot: ResourceAny,
    bytes_max: usize,
    stop: &AtomicBool,
    pieces: SyncSender<Piece>,
) -> Result<(), NotMigrated> {
    let mut rest = Vec::with_capacity(2 * SNAPSHOT_READ_BYTES);
    let mut bytes = 0;
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(NotMigrated::Ended(Ended::Stopped));
        }
        let chunk = old.snapshot_read(snapshot).map_err(NotMigrated::of_old)?;
        if chunk.is_empty() {
            break;
        }
        bytes += chunk.len();
        if bytes > bytes_max {
            return Err(NotMigrated::Refused { trap: too_large(bytes_max), old_broke: false });
        }
        rest.extend_from_slice(&chunk);
        if rest.len() >= SNAPSHOT_READ_BYTES {
            let piece = rest.drain(..SNAPSHOT_READ_BYTES).collect();
            if pieces.send(Piece::Bytes(piece)).is_err() {
                return Ok(());
            }
        }
    }
    let last = if rest.is_empty() { Ok(()) } else { pieces.send(Piece::Bytes(rest)) };
    // The writing thread has ended if the new component rejected a piece.
    let _ = last.and_then(|()| pieces.send(Piece::End));
    Ok(())
}

/// Writes the pieces that it receives. Returns `None` if the end of the state is missing.
fn write(mut restoring: Restoring, pieces: Receiver<Piece>) -> Result<Option<Instance>, Broken> {
    for piece in pieces {
        match piece {
            Piece::Bytes(bytes) => restoring.write(&bytes)?,
            Piece::End => return restoring.finish().map(Some),
        }
    }
    Ok(None)
}

/// Creates the trap of a snapshot that is larger than any permitted state.
pub(super) fn too_large(bytes_max: usize) -> Trap {
    Trap {
        kind: TrapKind::BadAnswer,
        message: format!(
            "snapshot-reader.read: the snapshot has more than {bytes_max} bytes, the memory limit of the state machine"
        ),
    }
}
