//! Trying a component on real data before it is activated: a saved state is restored into it, and entries
//! of the log are applied after it.
//!
//! # Contract
//! 1. Nothing outside is touched: a rehearsal has an instance and a thread of its own.
//! 2. It ends: each call has the limits of any call, and `stop` ends it between two of them and within
//!    one.
//!
//! # Caveats
//! - It needs the memory of one more state.
//! - A component that is ready may still fail where the state is by now another one. An activation then
//!   has the outcome "not activated".

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
    error::{EntrySourceError, FatalError},
    instance::Instance,
    migration::too_large,
    restoring::Restoring,
    thread,
    trap::Broken,
};
use conclave_types::{Outcome, Trap};

/// What a component did that is ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rehearsal {
    /// The log index that it came to.
    pub index: u64,
    /// Entries applied.
    pub entries: u64,
    /// Of them: those that the component answered with a failure.
    pub failures: u64,
    /// How long restoring the state took.
    pub restore_time: Duration,
    /// How long the entries took.
    pub apply_time: Duration,
    /// Linear memory at the end.
    pub memory_bytes: u64,
    /// Fuel that the entries took.
    pub fuel: u64,
    /// The size of the snapshot that the component took at the end.
    pub snapshot_bytes: u64,
}

/// Why a component is not ready. Each message tells who pushed it what to change.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotReady {
    /// It does not restore the state's version.
    #[error("{0}")]
    StateVersion(String),
    /// It does not take the state, or breaks over it.
    #[error("the state at index {index} cannot be restored: {} ({})", .trap.message, .trap.kind.name())]
    Restore {
        /// The index of the state.
        index: u64,
        /// What happened.
        trap: Trap,
    },
    /// An entry traps.
    #[error("entry {index} traps: {} ({})", .trap.message, .trap.kind.name())]
    Entry {
        /// The entry's index.
        index: u64,
        /// What happened.
        trap: Trap,
    },
    /// It cannot be snapshotted afterwards.
    #[error("its own state at index {index} cannot be saved: {} ({})", .trap.message, .trap.kind.name())]
    Snapshot {
        /// The index of the state.
        index: u64,
        /// What happened.
        trap: Trap,
    },
    /// The entries reach past an activation, so the state is not of the component that wrote it.
    #[error("entry {0} activates a component: rehearse from a snapshot taken after it")]
    Activation(u64),
    /// The state or the entries cannot be read.
    #[error("{0}")]
    EntrySource(#[from] EntrySourceError),
    /// `stop` said so.
    #[error("the rehearsal was stopped")]
    Stopped,
    /// This node's fault, not the component's.
    #[error("the component could not be rehearsed: {0}")]
    Fatal(#[from] FatalError),
}

/// How often `stop` is asked.
const STOP_EVERY: Duration = Duration::from_millis(10);

/// Restores `saved` into the component, applies `entries`, which follow it, and takes a snapshot. Leave
/// out entries that are known to have trapped: one that traps is a reason not to be ready. `seed` is
/// the worker's. Blocks until it is done or `stop` says that it is enough.
///
/// # Errors
/// Why it is not ready.
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
        let thread = thread::spawn_scoped(scope, "conclave-rehearse", stack_bytes, body)?;
        while !thread.is_finished() {
            if stopped.load(Ordering::Relaxed) || stop() {
                stopped.store(true, Ordering::Relaxed);
                // A call that is under way asks now. One that began meanwhile asks the next time.
                component.engine().inner().increment_epoch();
            }
            std::thread::park_timeout(STOP_EVERY);
        }
        thread::joined("conclave-rehearse", thread)?
    })
}

/// What a rehearsal works with.
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
                return Err(
                    FatalError::new(format!("entry {index} came after {}", done.index)).into()
                );
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

    /// Takes a snapshot for nothing but to see it whole: without one a node could not restart.
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
        Broken::Fatal(fatal_error) => NotReady::Fatal(fatal_error),
        Broken::Interrupted => NotReady::Stopped,
    }
}
