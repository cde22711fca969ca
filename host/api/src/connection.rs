//! The connection of a request: its caller and its parts of the node's budgets.

use std::sync::Arc;

use http::request::Parts;
use tokio::sync::Semaphore;

use super::budget::Share;
use conclave_types::Caller;

/// The connection of a request.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) caller: Caller,
    /// Permits for further subscriptions.
    pub(super) subscriptions: Arc<Semaphore>,
    /// The connection's parts of the node's budgets.
    pub(super) load: Arc<Load>,
}

/// A connection's parts of the node's budgets.
#[derive(Debug, Default)]
pub(super) struct Load {
    pub(super) calls: Share,
    pub(super) operators: Share,
    pub(super) requests: Share,
    pub(super) answers: Share,
}

impl Connection {
    pub(super) fn new(caller: Caller, subscriptions_max: usize) -> Self {
        let subscriptions = Arc::new(Semaphore::new(subscriptions_max));
        Self { caller, subscriptions, load: Arc::default() }
    }
}

impl Default for Connection {
    /// A placeholder for requests without a connection. It permits no subscriptions.
    fn default() -> Self {
        Self::new(Caller::default(), 0)
    }
}

/// Returns the connection of a request. Every request of the port has one.
pub(super) fn connection(parts: &Parts) -> Connection {
    parts.extensions.get::<Connection>().cloned().unwrap_or_default()
}

/// Returns the caller, as recorded by the connection.
pub(super) fn caller(parts: &Parts) -> Caller {
    connection(parts).caller
}
