//! Clients that count without a pause, and the outcomes of their calls.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use conclave_client::{CallOptions, Client, Code};
use tokio::task::JoinSet;

use super::machines::apply;

/// A set of running clients.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<Mutex<Vec<Instant>>>,
    clients: JoinSet<Counts>,
}

/// The outcomes of the calls.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Acknowledged calls, which must have been counted.
    pub(super) acknowledged: i64,
    /// Calls of unknown outcome, which may have been counted.
    pub(super) unknown: i64,
}

impl Load {
    /// Starts this many clients, each with connections of its own.
    pub(super) fn start(count: usize, client: impl Fn() -> Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::<Mutex<Vec<Instant>>>::default();
        let mut clients = JoinSet::new();
        for _ in 0..count {
            clients.spawn(work(client(), stop.clone(), done.clone()));
        }
        Self { stop, done, clients }
    }

    /// Waits until this many more calls have been acknowledged.
    pub(super) async fn runs(&self, calls: usize) {
        let target = self.done.lock().unwrap().len() + calls;
        let begun = Instant::now();
        while self.done.lock().unwrap().len() < target {
            assert!(begun.elapsed() < Duration::from_secs(60), "the clients have come to a halt");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Returns the longest time between two acknowledgements since `begun`.
    pub(super) fn longest_pause(&self, begun: Instant) -> Duration {
        let done = self.done.lock().unwrap();
        let since = done.iter().filter(|at| **at >= begun);
        let (mut longest, mut last) = (Duration::ZERO, begun);
        for at in since {
            longest = longest.max(at.saturating_duration_since(last));
            last = *at;
        }
        longest.max(last.elapsed())
    }

    /// Ends the clients and returns their sums.
    pub(super) async fn stop(mut self) -> Counts {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = Counts::default();
        while let Some(counts) = self.clients.join_next().await {
            let counts = counts.unwrap();
            total.acknowledged += counts.acknowledged;
            total.unknown += counts.unknown;
        }
        total
    }
}

/// Counts until stopped. The client retries safe calls itself; any other failure fails the test.
async fn work(client: Client, stop: Arc<AtomicBool>, done: Arc<Mutex<Vec<Instant>>>) -> Counts {
    let mut counts = Counts::default();
    while !stop.load(Ordering::Relaxed) {
        match apply(&client, CallOptions::write()).await {
            Ok(_) => {
                counts.acknowledged += 1;
                done.lock().unwrap().push(Instant::now());
            }
            Err(error) if error.outcome_unknown() => counts.unknown += 1,
            Err(error) => {
                let passing = [Code::Unavailable, Code::DeadlineExceeded];
                assert!(passing.contains(&error.code()), "a call failed for good: {error}");
            }
        }
    }
    counts
}
