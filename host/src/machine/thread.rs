//! Threads that machines run on. A guest may use its whole stack limit, so the thread below it is
//! made to hold that; a caller's own thread may not.

use std::thread::{Builder, JoinHandle};

use super::error::Fault;

/// Starts a thread with room for a guest's stack.
pub(super) fn spawn<T: Send + 'static>(
    name: &str,
    stack_bytes: usize,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, Fault> {
    Builder::new()
        .name(name.to_owned())
        .stack_size(stack_bytes)
        .spawn(body)
        .map_err(|error| Fault::new(format!("cannot start the thread {name}: {error}")))
}

/// Runs a body on such a thread and waits for it.
pub(super) fn run<T: Send + 'static>(
    name: &str,
    stack_bytes: usize,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Fault> {
    spawn(name, stack_bytes, body)?.join().map_err(|_| {
        Fault::new(format!("the thread {name} panicked; its message is in the node's log"))
    })
}
