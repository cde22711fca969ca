//! The rehearsal of a component: a dry run of its activation on real data. A saved state is
//! restored into it, and later entries of the log are applied.
//!
//! # Contract
//! 1. Nothing outside is changed: a rehearsal has its own instance and thread.
//! 2. It ends: each call has the usual limits, and `stop` ends the rehearsal between two calls
//!    and within one.
//!
//! # Caveats
//! - It needs the memory of one more state.
//! - A component that is ready may still fail on a newer state. The activation then has the outcome
//!   "not activated".

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use thiserror::Error;

use super::{
    clock::Clock,
    component::Component,
    entry_source::{Entry, SavedState, Work},
    error::{Broken, Ended, EntrySourceError, FatalError},
    instance::Instance,
    migration::too_large,
    restoring::Restoring,
    thread,
};
use conclave_types::{Outcome, Trap};

/// The result of a rehearsal that succeeded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rehearsal {
    /// The log index that the rehearsal reached.
    pub index: u64,
    /// The number of entries applied.
    pub entries: u64,
    /// The number of those entries that the component answered with a failure.
    pub failures: u64,
    /// The time taken to restore the state.
    pub restore_time: Duration,
    /// The time taken to apply the entries.
    pub apply_time: Duration,
    /// The linear memory at the end, in bytes.
    pub memory_bytes: u64,
    /// The fuel used by the entries.
    pub fuel: u64,
    /// The size of the snapshot that the component took at the end, in bytes.
    pub snapshot_bytes: u64,
}

/// The reasons why a component is not ready. Each message tells its author what to change.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotReady {
    /// The component does not restore the state's version.
    #[error("{0}")]
    StateVersion(String),
    /// The component rejects the state, or traps while restoring it.
    #[error("the state at index {index} cannot be restored: {} ({})", .trap.message, .trap.kind.name())]
    Restore {
        /// The index of the state.
        index: u64,
        /// The trap.
        trap: Trap,
    },
    /// An entry traps.
    #[error("entry {index} traps: {} ({})", .trap.message, .trap.kind.name())]
    Entry {
        /// The entry's index.
        index: u64,
        /// The trap.
        trap: Trap,
    },
    /// The component cannot take a snapshot after the entries.
    #[error("its own state at index {index} cannot be saved: {} ({})", .trap.message, .trap.kind.name())]
    Snapshot {
        /// The index of the state.
        index: u64,
        /// The trap.
        trap: Trap,
    },
    /// One of the entries activates a component. The entries after it belong to that component.
    #[error("entry {0} activates a component: rehearse from a snapshot taken after it")]
    Activation(u64),
    /// The state or the entries cannot be read.
    #[error("{0}")]
    EntrySource(#[from] EntrySourceError),
    /// `stop` returned true.
    #[error("the rehearsal was stopped")]
    Stopped,
    /// This node failed, not the component.
    #[error("the component could not be rehearsed: {0}")]
    Fatal(#[from] FatalError),
}

/// The interval at which `stop` is called.
const STOP_EVERY: Duration = Duration::from_millis(10);

/// Restores `saved` into the component, applies `entries`, which follow it, and takes a snapshot. The
/// caller must leave out entries that are known to have trapped, because a trap means that the component
/// is not ready. `seed` is the worker's. Blocks until the rehearsal is done or `stop` returns true.
///
/// # Errors
/// Returns the reason why the component is not ready.
pub fn rehearse(
    component: &Component,
    seed: [u8; 32],
    saved: SavedState,
    entries: impl Iterator<Item = Result<Entry, EntrySourceError>> + Send,
    stop: impl Fn() -> bool,
) -> Result<Rehearsal, NotReady> {
    if let Some(why) = component.refuses(saved.state_version) {
        return Err(NotReady::StateVersion(why));
    }
    let stopped = Arc::new(AtomicBool::new(false));
    let stage = Stage { component, seed, stop: Arc::clone(&stopped) };
    std::thread::scope(|scope| {
        let stack_bytes = component.engine().limits().thread_stack_bytes();
        let body = move || stage.run(saved, entries);
        let thread = thread::spawn_scoped(scope, "rehearse", stack_bytes, body)?;
        while !thread.is_finished() {
            if stopped.load(Ordering::Relaxed) || stop() {
                stopped.store(true, Ordering::Relaxed);
                // Makes a running call check `stop` now. A call that began meanwhile checks it at
                // the next interval.
                component.engine().inner().increment_epoch();
            }
            std::thread::park_timeout(STOP_EVERY);
        }
        thread::joined("rehearse", thread)?
    })
}

/// The inputs of a rehearsal.
struct Stage<'a> {
    component: &'a Component,
    seed: [u8; 32],
    stop: Arc<AtomicBool>,
}

impl Stage<'_> {
    fn run(
        &self,
        saved: SavedState,
        entries: impl Iterator<Item = Result<Entry, EntrySourceError>>,
    ) -> Result<Rehearsal, NotReady> {
        let mut done = Rehearsal { index: saved.index, ..Rehearsal::default() };
        let mut clock = Clock::new(self.seed, saved.index, saved.time_ms);
        let started = Instant::now();
        let mut instance = self.restore(saved)?;
        done.restore_time = started.elapsed();
        let started = Instant::now();
        for entry in entries {
            self.check()?;
            let Entry { index, time_ms, work } = entry?;
            if index <= done.index {
                return Err(FatalError::new(format!(
                    "the entries are not in order: entry {index} follows {}",
                    done.index
                ))
                .into());
            }
            let call = match work {
                Work::Call(call) => Some(call),
                Work::Tick => None,
                Work::SetLimits(limits) => {
                    clock.advance(index, time_ms);
                    instance.set_cluster_limits(limits);
                    done.index = index;
                    continue;
                }
                Work::Activate(_) => return Err(NotReady::Activation(index)),
            };
            let outcome = instance.run(clock.advance(index, time_ms), call.as_ref());
            let outcome = outcome
                .map_err(|broken| not_ready(broken, |trap| NotReady::Entry { index, trap }))?;
            done.fuel += instance.fuel_used();
            done.entries += 1;
            done.failures += u64::from(matches!(outcome, Outcome::Failure(_)));
            done.index = index;
        }
        done.apply_time = started.elapsed();
        done.snapshot_bytes = self.save(&mut instance, done.index)?;
        done.memory_bytes = instance.memory_bytes() as u64;
        Ok(done)
    }

    fn restore(&self, saved: SavedState) -> Result<Instance, NotReady> {
        let index = saved.index;
        let broken = |broken| not_ready(broken, |trap| NotReady::Restore { index, trap });
        let mut restoring = Restoring::begin(
            self.component,
            saved.state_version,
            "rehearsal",
            saved.limits,
            &self.stop,
        )
        .map_err(broken)?;
        for chunk in saved.chunks {
            self.check()?;
            restoring.write(&chunk?).map_err(broken)?;
        }
        restoring.finish().map_err(broken)
    }

    /// Takes a snapshot and reads it completely, only to check that this works. Without a snapshot
    /// a node could not restart.
    fn save(&self, instance: &mut Instance, index: u64) -> Result<u64, NotReady> {
        let broken = |broken| not_ready(broken, |trap| NotReady::Snapshot { index, trap });
        let bytes_max = instance.cluster_limits().memory_bytes_max;
        let snapshot = instance.snapshot().map_err(broken)?;
        let mut bytes = 0;
        loop {
            self.check()?;
            let chunk = instance.snapshot_read(snapshot).map_err(broken)?;
            if chunk.is_empty() {
                return Ok(bytes as u64);
            }
            bytes += chunk.len();
            if bytes > bytes_max {
                return Err(NotReady::Snapshot { index, trap: too_large(bytes_max) });
            }
        }
    }

    fn check(&self) -> Result<(), NotReady> {
        if self.stop.load(Ordering::Relaxed) { Err(NotReady::Stopped) } else { Ok(()) }
    }
}

fn not_ready(broken: Broken, trapped: impl FnOnce(Trap) -> NotReady) -> NotReady {
    match broken {
        Broken::Trap(trap) => trapped(trap),
        Broken::Ended(Ended::Fatal(fatal_error)) => NotReady::Fatal(fatal_error),
        Broken::Ended(Ended::Stopped) => NotReady::Stopped,
    }
}
