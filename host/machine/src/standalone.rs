//! One instance of a machine by itself: no worker, no history, no rollback.
//!
//! # Purpose
//! For what examines machines (`conclave check`): it makes the calls that a node would, in any order,
//! and sees what each took.
//!
//! # Contract
//! 1. Calls are made on the caller's thread, which needs a stack that holds a guest's: run them inside
//!    [`Standalone::with_stack`].
//! 2. After a call that ended in [`Broke`] the instance is to be dropped: nothing was rolled back.
//! 3. The machine's lines go nowhere, but for the last error, which [`Standalone::last_words`] gives.

use std::sync::Arc;

use bytes::Bytes;
use wasmtime::component::ResourceAny;

use super::{
    component::Component,
    error::FatalError,
    instance::{AnswerSize, EntryContext, Instance},
    limits::{Limits, SNAPSHOT_CHUNK_BYTES_MAX},
    trap::Broken,
};
use conclave_types::{Call, Failure, Outcome, Trap};

/// How a call ended that gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broke {
    /// What a node would record as an outcome.
    Trap(Trap),
    /// The host's own: says nothing of the machine.
    Fatal(FatalError),
}

impl From<Broken> for Broke {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Trap(trap) => Self::Trap(trap),
            other => Self::Fatal(other.into_fatal("a call of the machine")),
        }
    }
}

/// See the page of this file.
pub struct Standalone {
    instance: Instance,
}

/// A snapshot being read. It belongs to the instance that gave it.
#[derive(Clone, Copy, Debug)]
pub struct OpenSnapshot(ResourceAny);

impl Standalone {
    /// Runs `body` on a thread with room for a guest's stack, and waits for it.
    ///
    /// # Errors
    /// There is no such thread to be had, or the body panicked.
    pub fn with_stack<T: Send>(
        limits: &Limits,
        body: impl FnOnce() -> T + Send,
    ) -> Result<T, FatalError> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("conclave-standalone".to_owned())
                .stack_size(limits.thread_stack_bytes())
                .spawn_scoped(scope, body)
                .map_err(|error| FatalError::new(format!("cannot start a thread: {error}")))?;
            thread.join().map_err(|_| FatalError::new("the thread panicked; its message is above"))
        })
    }

    /// An instance in the machine's initial state.
    ///
    /// # Errors
    /// The machine broke while it was started.
    pub fn start(component: &Component) -> Result<Self, Broke> {
        let mut instance = component.instance(
            "standalone",
            component.engine().limits().cluster,
            &Arc::default(),
        )?;
        instance.mute(true);
        instance.keep_errors();
        Ok(Self { instance })
    }

    /// Applies one entry: a call, or without one a tick. Never gives [`Outcome::Trap`]: that is [`Broke::Trap`] here.
    ///
    /// # Errors
    /// The machine broke.
    pub fn apply(&mut self, context: EntryContext, call: Option<&Call>) -> Result<Outcome, Broke> {
        Ok(self.instance.run(context, call)?)
    }

    /// Asks one query.
    ///
    /// # Errors
    /// The machine broke.
    pub fn query(
        &mut self,
        context: EntryContext,
        call: &Call,
    ) -> Result<Result<Bytes, Failure>, Broke> {
        Ok(self.instance.query(context, call)?)
    }

    /// Captures the state.
    ///
    /// # Errors
    /// The machine broke.
    pub fn snapshot(&mut self) -> Result<OpenSnapshot, Broke> {
        Ok(OpenSnapshot(self.instance.snapshot()?))
    }

    /// The next piece, of at most `bytes_max`; an empty one is the end. More than the contract's bound
    /// of 1 MiB is never asked for.
    ///
    /// # Errors
    /// The machine broke, or gave more than it was asked for.
    pub fn read(&mut self, snapshot: OpenSnapshot, bytes_max: usize) -> Result<Bytes, Broke> {
        let bytes_max = bytes_max.clamp(1, SNAPSHOT_CHUNK_BYTES_MAX);
        Ok(self.instance.snapshot_read_at_most(snapshot.0, bytes_max)?)
    }

    /// Lets go of a snapshot.
    ///
    /// # Errors
    /// The machine broke.
    pub fn close(&mut self, snapshot: OpenSnapshot) -> Result<(), Broke> {
        Ok(self.instance.snapshot_drop(snapshot.0)?)
    }

    /// Replaces the state with a saved one, handed over in pieces of at most `bytes_max`. The inner
    /// failure is the machine's, which refuses the state.
    ///
    /// # Errors
    /// The machine broke.
    pub fn restore(
        &mut self,
        state_version: u32,
        state: &[u8],
        bytes_max: usize,
    ) -> Result<Result<(), Failure>, Broke> {
        let writer = match self.instance.restore(state_version)? {
            Ok(writer) => writer,
            Err(failure) => return Ok(Err(failure)),
        };
        for piece in state.chunks(bytes_max.clamp(1, SNAPSHOT_CHUNK_BYTES_MAX)) {
            if let Err(failure) = self.instance.restore_write(writer, piece)? {
                return Ok(Err(failure));
            }
        }
        Ok(self.instance.restore_finish(writer)?)
    }

    /// The fuel that the last call took.
    pub fn fuel_used(&self) -> u64 {
        self.instance.fuel_used()
    }

    /// The fuel that all calls took since the instance was started.
    pub fn fuel_used_in_all(&self) -> u64 {
        self.instance.fuel_used_in_all()
    }

    /// The size of the last answer, also of one that was refused because it is too large.
    pub fn answer_size(&self) -> AnswerSize {
        self.instance.answer_size()
    }

    /// The linear memory that the instance holds, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.instance.memory_bytes()
    }

    /// The last error that the machine wrote to its log since this was last asked: what it panicked
    /// with, for a machine that says so.
    pub fn last_words(&mut self) -> Option<String> {
        self.instance.take_error()
    }
}
