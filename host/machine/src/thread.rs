//! Threads that run state machines. A guest may use its whole stack limit, so these threads get a
//! stack that holds it. A caller's own thread may be too small.

use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

use super::error::FatalError;

/// Starts a thread whose stack is large enough for a guest.
pub(super) fn spawn<T: Send + 'static>(
    name: &str,
    stack_bytes: usize,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, FatalError> {
    Builder::new()
        .name(name.to_owned())
        .stack_size(stack_bytes)
        .spawn(body)
        .map_err(|error| FatalError::caused_by(format!("cannot start the thread {name}"), error))
}

/// Starts such a thread within a scope.
pub(super) fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    stack_bytes: usize,
    body: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, FatalError> {
    Builder::new()
        .name(name.to_owned())
        .stack_size(stack_bytes)
        .spawn_scoped(scope, body)
        .map_err(|error| FatalError::caused_by(format!("cannot start the thread {name}"), error))
}

/// Waits for a scoped thread and returns its result.
pub(super) fn joined<T>(name: &str, thread: ScopedJoinHandle<'_, T>) -> Result<T, FatalError> {
    thread.join().map_err(|_| panicked(name))
}

/// Runs a closure on such a thread and waits for it.
pub(super) fn run<T: Send + 'static>(
    name: &str,
    stack_bytes: usize,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<T, FatalError> {
    spawn(name, stack_bytes, body)?.join().map_err(|_| panicked(name))
}

fn panicked(name: &str) -> FatalError {
    FatalError::new(format!("the thread {name} panicked; its message is in the node's log"))
}
