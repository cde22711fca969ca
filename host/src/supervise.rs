//! Supervision of a node's background tasks: a panic in one is a fatal error of the node.
//!
//! A task that panics would otherwise end unnoticed, and the node would continue without its health
//! checks, its read rounds or its Raft core. [`Supervisor::failed`] ends when the first task has
//! panicked; the node then stops, and `conclave serve` exits with a message.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt;
use tokio::{sync::watch, task::JoinHandle};

use crate::types::panic_message;

/// Runs named tasks and publishes the first panic. Cloning gives another handle.
#[derive(Clone, Default)]
pub struct Supervisor(Arc<watch::Sender<Option<String>>>);

impl Supervisor {
    /// Runs a task until it returns. A panic in it is reported.
    pub fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let supervisor = self.clone();
        tokio::spawn(async move {
            if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
                supervisor.report(format!("the task {name} panicked: {}", panic_message(&*panic)));
            }
        })
    }

    /// Reports a fatal error. The first one counts.
    pub fn report(&self, message: String) {
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                tracing::error!(reason = message, "this node stops: report this");
                *first = Some(message);
            }
            is_first
        });
    }

    /// Waits for the first fatal error.
    pub async fn failed(&self) -> String {
        let mut failed = self.0.subscribe();
        let failed = failed.wait_for(Option::is_some).await.map(|failed| failed.clone());
        match failed {
            Ok(Some(message)) => message,
            // The sender lives as long as `self`.
            _ => std::future::pending().await,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn the_first_panic_is_published_and_names_its_task() {
        let supervisor = Supervisor::default();
        supervisor.spawn("calm", async {}).await.unwrap();
        let early = timeout(Duration::from_millis(10), supervisor.failed()).await;
        assert!(early.is_err(), "a task that returns is no failure");
        supervisor.spawn("first", async { panic!("broken {}", 1) }).await.unwrap();
        supervisor.spawn("second", async { panic!("broken too") }).await.unwrap();
        assert_eq!(supervisor.failed().await, "the task first panicked: broken 1");
    }
}
