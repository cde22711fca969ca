//! A single instance of a state machine, without a worker, an entry source or rollback.
//!
//! # Purpose
//! For tools that examine state machines (`conclave check`). They can make the calls of a node in
//! any order, and observe the cost of each.
//!
//! # Contract
//! 1. Calls are made on the caller's thread, which needs a stack that is large enough for the
//!    guest's. Run them inside [`Standalone::with_stack`].
//! 2. After a call that returned [`Broken`], the instance must be dropped, because nothing was rolled back.
//! 3. The state machine's log lines are discarded, except for the last error line, which
//!    [`Standalone::last_error`] returns.

use std::sync::Arc;

use bytes::Bytes;
use wasmtime::component::ResourceAny;

use super::{
    component::Component,
    entry_context::EntryContext,
    error::{Broken, FatalError},
    instance::{AnswerSize, Instance},
    limits::{Limits, SNAPSHOT_CHUNK_BYTES_MAX},
};
use conclave_types::{Call, Failure, Outcome};

/// A single instance. See the module documentation.
pub struct Standalone {
    instance: Instance,
}

/// A snapshot being read. It belongs to the instance that created it.
#[derive(Clone, Copy, Debug)]
pub struct OpenSnapshot(ResourceAny);

impl Standalone {
    /// Runs `body` on a thread whose stack is large enough for a guest, and waits for it.
    ///
    /// # Errors
    /// Fails if the thread cannot be started, or if `body` panicked.
    pub fn with_stack<T: Send>(
        limits: &Limits,
        body: impl FnOnce() -> T + Send,
    ) -> Result<T, FatalError> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("standalone".to_owned())
                .stack_size(limits.thread_stack_bytes())
                .spawn_scoped(scope, body)
                .map_err(|error| FatalError::caused_by("cannot start a thread", error))?;
            thread.join().map_err(|_| FatalError::new("the thread panicked; its message is above"))
        })
    }

    /// Creates an instance in the initial state.
    ///
    /// # Errors
    /// Fails if the state machine traps while it is started.
    pub fn start(component: &Component) -> Result<Self, Broken> {
        let mut instance = component.instance(
            "standalone",
            component.engine().limits().cluster,
            &Arc::default(),
        )?;
        instance.mute(true);
        instance.keep_errors();
        Ok(Self { instance })
    }

    /// Applies one entry: a call, or a tick if `call` is `None`. Never returns [`Outcome::Trap`]; a
    /// trap is [`Broken::Trap`] here.
    ///
    /// # Errors
    /// Fails if the state machine traps.
    pub fn apply(&mut self, context: EntryContext, call: Option<&Call>) -> Result<Outcome, Broken> {
        self.instance.run(context, call)
    }

    /// Answers one query.
    ///
    /// # Errors
    /// Fails if the state machine traps.
    pub fn query(
        &mut self,
        context: EntryContext,
        call: &Call,
    ) -> Result<Result<Bytes, Failure>, Broken> {
        self.instance.query(context, call)
    }

    /// Captures the state.
    ///
    /// # Errors
    /// Fails if the state machine traps.
    pub fn snapshot(&mut self) -> Result<OpenSnapshot, Broken> {
        Ok(OpenSnapshot(self.instance.snapshot()?))
    }

    /// Reads the next piece, of at most `bytes_max`. An empty piece means the end. Never requests
    /// more than 1 MiB, the limit of the contract.
    ///
    /// # Errors
    /// Fails if the state machine traps, or returns more than was requested.
    pub fn read(&mut self, snapshot: OpenSnapshot, bytes_max: usize) -> Result<Bytes, Broken> {
        let bytes_max = bytes_max.clamp(1, SNAPSHOT_CHUNK_BYTES_MAX);
        self.instance.snapshot_read_at_most(snapshot.0, bytes_max)
    }

    /// Releases a snapshot.
    ///
    /// # Errors
    /// Fails if the state machine traps.
    pub fn close(&mut self, snapshot: OpenSnapshot) -> Result<(), Broken> {
        self.instance.snapshot_drop(snapshot.0)
    }

    /// Replaces the state with a saved one, written in pieces of at most `bytes_max`. The inner
    /// failure means that the state machine rejects the state.
    ///
    /// # Errors
    /// Fails if the state machine traps.
    pub fn restore(
        &mut self,
        state_version: u32,
        state: &[u8],
        bytes_max: usize,
    ) -> Result<Result<(), Failure>, Broken> {
        let writer = match self.instance.restore(state_version)? {
            Ok(writer) => writer,
            Err(failure) => return Ok(Err(failure)),
        };
        for piece in state.chunks(bytes_max.clamp(1, SNAPSHOT_CHUNK_BYTES_MAX)) {
            if let Err(failure) = self.instance.restore_write(writer, piece)? {
                return Ok(Err(failure));
            }
        }
        self.instance.restore_finish(writer)
    }

    /// Returns the fuel that the last call used.
    pub fn fuel_used(&self) -> u64 {
        self.instance.fuel_used()
    }

    /// Returns the fuel that all calls used since the instance was started.
    pub fn fuel_used_in_all(&self) -> u64 {
        self.instance.fuel_used_in_all()
    }

    /// Returns the size of the last answer, even if it was rejected because it was too large.
    pub fn answer_size(&self) -> AnswerSize {
        self.instance.answer_size()
    }

    /// Returns the linear memory that the instance holds, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.instance.memory_bytes()
    }

    /// Takes the last error line that the state machine logged since the previous call. For many
    /// state machines it is the panic message.
    pub fn last_error(&mut self) -> Option<String> {
        self.instance.take_error()
    }
}
