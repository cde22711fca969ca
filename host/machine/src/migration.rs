//! From a component to the next: its state, piece by piece, into a fresh instance of the other.
//!
//! # Contract
//! 1. Whether it succeeds, and why not, is a function of the log, like an outcome: the bytes of a
//!    snapshot are a function of the state, and they are handed over in pieces that are cut at fixed
//!    places, however the old instance gave them.
//! 2. The old instance goes on as before if the new one does not take its state.
//! 3. What passes is never held whole: a few pieces at most. All of it together is bounded by the memory
//!    that a machine may use, so that a snapshot without end ends.
//!
//! # Two threads
//! Writes wait for a carry-over, and reading a state takes about as long as writing it. So the old
//! instance is read here while a thread of its own writes into the new one. The one may break while the
//! other still has pieces from before to refuse, and then the refusal is the reason: it comes first in
//! the order of the bytes, which is the same on every node, whatever the clocks say.

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
    component::Component, error::FatalError, instance::Instance, limits::SNAPSHOT_READ_BYTES,
    restoring::Restoring, thread, trap::Broken,
};
use conclave_types::{Trap, TrapKind};

/// Pieces of 256 KiB between the two threads: enough that neither waits for the other's every piece.
const PIECES_IN_FLIGHT: usize = 4;

/// Why a state was not carried over.
#[derive(Debug)]
pub(super) enum NotCarried {
    /// The machines do not agree.
    Refused {
        /// What happened, the same on every node.
        trap: Trap,
        /// Whether the old instance is unusable, or else as before. That may differ between nodes.
        old_broke: bool,
    },
    /// This node's own.
    Fatal(FatalError),
    /// The worker shuts down.
    Interrupted,
}

impl NotCarried {
    fn of(broken: Broken, old_broke: bool) -> Self {
        match broken {
            Broken::Trap(trap) => Self::Refused { trap, old_broke },
            Broken::Fatal(fatal_error) => Self::Fatal(fatal_error),
            Broken::Interrupted => Self::Interrupted,
        }
    }

    fn of_old(broken: Broken) -> Self {
        Self::of(broken, true)
    }

    fn of_new(broken: Broken) -> Self {
        Self::of(broken, false)
    }
}

/// What the one thread hands the other.
enum Piece {
    Bytes(Vec<u8>),
    /// That was all. Without it the old instance has broken, and there is nothing to finish.
    End,
}

/// A fresh instance of `component` with the state of `old`, which is of `state_version`: one that the
/// component restores.
pub(super) fn migration(
    old: &mut Instance,
    state_version: u32,
    component: &Component,
    role: &'static str,
    stop: &Arc<AtomicBool>,
) -> Result<Instance, NotCarried> {
    let snapshot = old.snapshot().map_err(NotCarried::of_old)?;
    let limits = old.cluster_limits();
    let restoring =
        Restoring::begin(component, state_version, role, limits, stop).map_err(NotCarried::of_new);
    let carried = restoring.and_then(|restoring| stream(old, snapshot, restoring, component, stop));
    match carried {
        Err(NotCarried::Refused { trap, old_broke: false }) => match old.snapshot_drop(snapshot) {
            Ok(()) => Err(NotCarried::Refused { trap, old_broke: false }),
            Err(Broken::Trap(_)) => Err(NotCarried::Refused { trap, old_broke: true }),
            Err(broken) => Err(NotCarried::of_old(broken)),
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
) -> Result<Instance, NotCarried> {
    let stack_bytes = component.engine().limits().thread_stack_bytes();
    let (pieces, received) = sync_channel(PIECES_IN_FLIGHT);
    scope(|scope| {
        let body = move || write(restoring, received);
        let writing = thread::spawn_scoped(scope, "conclave-carry", stack_bytes, body)
            .map_err(NotCarried::Fatal)?;
        let bytes_max = old.cluster_limits().memory_bytes_max;
        let read = read(old, snapshot, bytes_max, stop, pieces);
        let written = thread::joined("conclave-carry", writing).map_err(NotCarried::Fatal)?;
        match (read, written) {
            (Err(NotCarried::Fatal(fatal_error)), _) => Err(NotCarried::Fatal(fatal_error)),
            (Err(NotCarried::Interrupted), _) => Err(NotCarried::Interrupted),
            (read, Err(broken)) => {
                let old_broke = matches!(read, Err(NotCarried::Refused { old_broke: true, .. }));
                Err(NotCarried::of(broken, old_broke))
            }
            (Err(refused), Ok(_)) => Err(refused),
            (Ok(()), Ok(Some(instance))) => Ok(instance),
            (Ok(()), Ok(None)) => Err(NotCarried::Fatal(FatalError::new(
                "a state was read to its end and not written",
            ))),
        }
    })
}

/// Reads all of the snapshot. Ends early, and well, if the other thread has ended: it says why.
fn read(
    old: &mut Instance,
    snapshot: ResourceAny,
    bytes_max: usize,
    stop: &AtomicBool,
    pieces: SyncSender<Piece>,
) -> Result<(), NotCarried> {
    let mut rest = Vec::with_capacity(2 * SNAPSHOT_READ_BYTES);
    let mut bytes = 0;
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(NotCarried::Interrupted);
        }
        let chunk = old.snapshot_read(snapshot).map_err(NotCarried::of_old)?;
        if chunk.is_empty() {
            break;
        }
        bytes += chunk.len();
        if bytes > bytes_max {
            return Err(NotCarried::Refused { trap: too_large(bytes_max), old_broke: false });
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
    // Nobody listens any more if the new machine has refused a piece.
    let _ = last.and_then(|()| pieces.send(Piece::End));
    Ok(())
}

/// Writes what comes. Nothing comes of it without an end.
fn write(mut restoring: Restoring, pieces: Receiver<Piece>) -> Result<Option<Instance>, Broken> {
    for piece in pieces {
        match piece {
            Piece::Bytes(bytes) => restoring.write(&bytes)?,
            Piece::End => return restoring.finish().map(Some),
        }
    }
    Ok(None)
}

/// The trap of a snapshot that is larger than any state.
pub(super) fn too_large(bytes_max: usize) -> Trap {
    Trap {
        kind: TrapKind::BadAnswer,
        message: format!(
            "snapshot-standby.read: the snapshot has more than {bytes_max} bytes, the memory that a machine may use"
        ),
    }
}
