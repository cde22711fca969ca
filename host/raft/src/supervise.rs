//! Supervision of a node's background tasks: a panic in one is a fatal error of the node.
//!
//! A task that panics would otherwise end unnoticed, and the node would continue without its health
//! checks, its read rounds or its Raft core. [`Supervisor::failed`] completes when the first task
//! has panicked. The node then stops, and `conclave serve` exits with a message.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use futures::FutureExt;
use tokio::{
    runtime::Handle,
    sync::watch,
    task::{AbortHandle, JoinHandle},
};

use conclave_types::panic_message;

/// Runs named tasks and publishes the first panic. A clone is another handle.
#[derive(Clone, Default)]
pub struct Supervisor(Arc<watch::Sender<Option<String>>>);

impl Supervisor {
    /// Runs a task until it returns. A panic in the task is reported.
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

    /// Returns the work as a future that completes with its result. Once polled, the work always
    /// runs to completion: if the future is dropped, a task continues the work. For work in a call
    /// that its client's deadline may cancel.
    pub fn finish<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Finish<T> {
        Finish { name, work: Some(Box::pin(work)), begun: false, supervisor: self.clone() }
    }

    /// Reports a fatal error. Only the first one is published.
    pub fn report(&self, message: String) {
        let is_first = self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                *first = Some(message.clone());
            }
            is_first
        });
        if is_first {
            tracing::error!(reason = message, "this node stops because of a bug: please report it");
        }
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

/// Work that runs to completion. See [`Supervisor::finish`].
pub struct Finish<T: Send + 'static> {
    name: &'static str,
    /// `None` once it has completed.
    work: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    begun: bool,
    supervisor: Supervisor,
}

impl<T: Send + 'static> Future for Finish<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        self.begun = true;
        let Some(work) = self.work.as_mut() else { return Poll::Pending };
        let result = ready!(work.as_mut().poll(context));
        self.work = None;
        Poll::Ready(result)
    }
}

impl<T: Send + 'static> Drop for Finish<T> {
    fn drop(&mut self) {
        // Without a runtime, the process is ending.
        if let Some(work) = self.work.take().filter(|_| self.begun)
            && Handle::try_current().is_ok()
        {
            self.supervisor.spawn(self.name, async move { drop(work.await) });
        }
    }
}

/// The background tasks of one replica. Each ends at its next pause once the set is stopped or dropped.
pub(crate) struct Tasks {
    supervisor: Supervisor,
    running: Mutex<Vec<AbortHandle>>,
}

impl Tasks {
    /// Creates an empty set. The tasks run under the supervisor.
    pub(crate) fn new(supervisor: Supervisor) -> Self {
        Self { supervisor, running: Mutex::default() }
    }

    /// Runs a task until it returns or the set is stopped. A panic in the task is reported.
    pub(crate) fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let task = self.supervisor.spawn(name, task).abort_handle();
        self.running.lock().unwrap_or_else(PoisonError::into_inner).push(task);
    }

    /// Ends all tasks.
    pub(crate) fn stop(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.drain(..).for_each(|task| task.abort());
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests {
    use std::time::Duration;

    use tokio::{
        sync::{mpsc, oneshot},
        time::timeout,
    };

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

    #[tokio::test]
    async fn background_tasks_end_with_their_set() {
        let (supervisor, held) = (Supervisor::default(), Arc::new(()));
        let tasks = Tasks::new(supervisor.clone());
        for _ in 0..2 {
            let held = held.clone();
            tasks.spawn("endless", async move {
                std::future::pending::<()>().await;
                drop(held);
            });
        }
        assert_eq!(Arc::strong_count(&held), 3);
        drop(tasks);
        let ended = async {
            while Arc::strong_count(&held) > 1 {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), ended).await.expect("the tasks drop what they hold");
        let failed = timeout(Duration::from_millis(10), supervisor.failed()).await;
        assert!(failed.is_err(), "a task that was stopped is no failure");
    }

    #[tokio::test]
    async fn work_that_has_begun_runs_to_its_end_when_its_caller_is_cancelled() {
        let supervisor = Supervisor::default();
        let (done, mut finished) = mpsc::unbounded_channel();
        let work = |number: u32| {
            let (release, released) = oneshot::channel::<()>();
            let done = done.clone();
            let work = supervisor.finish("work", async move {
                released.await.unwrap();
                done.send(number).unwrap();
                number
            });
            (release, work)
        };
        let (release, waited_for) = work(1);
        release.send(()).unwrap();
        assert_eq!(waited_for.await, 1);
        assert_eq!(finished.recv().await, Some(1));

        let (release, cancelled) = work(2);
        assert!(timeout(Duration::ZERO, cancelled).await.is_err());
        release.send(()).unwrap();
        assert_eq!(finished.recv().await, Some(2), "it was polled once and dropped");

        let (release, never_polled) = work(3);
        drop(never_polled);
        assert!(release.send(()).is_err(), "work that has not begun is dropped");
    }
}
