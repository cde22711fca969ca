//! Threads that machines run on. A guest may use its whole stack limit, so the thread below it is
//! made to hold that; a caller's own thread may not.

use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

use super::error::FatalError;

/// Starts a thread with room for a guest's stack.
pub(super) fn spawn<T: Send + 'static>(
    name: &str,
    stack_bytes: usize,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, FatalError> {
    Builder::new()
        .name(name.to_owned())
        .stack_size(stack_bytes)
        .spawn(body)
        .map_err(|error| FatalError::new(format!("cannot start the thread {name}: {error}")))
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
        .map_err(|error| FatalError::new(format!("cannot start the thread {name}: {error}")))
}

/// What a scoped thread gave.
pub(super) fn joined<T>(name: &str, thread: ScopedJoinHandle<'_, T>) -> Result<T, FatalError> {
    thread.join().map_err(|_| panicked(name))
}

/// Runs a body on such a thread and waits for it.
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
