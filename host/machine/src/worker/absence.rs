//! Whether a worker has a standby: for the primary, which answers queries while there is none, for the limiter of
//! traps, and for operators.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;

/// A method whose call trapped is remembered for so long.
const TRAPPED_TIME: Duration = Duration::from_secs(60);
/// The number of methods that are remembered; past it all are forgotten.
const TRAPPED_MAX: usize = 256;
/// The pause before the second attempt to build a standby. Each further loss doubles it.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A standby that lived for so long is no repeated loss.
const STABLE_TIME: Duration = Duration::from_secs(60);

/// See the page of this file.
pub(super) struct Absence {
    /// Whether there is a standby.
    present: watch::Sender<bool>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When the standby was lost.
    since: Option<Instant>,
    /// When there was one again.
    returned: Option<Instant>,
    /// The time that the last one took to build and to catch up.
    took: Duration,
    /// Losses in a row that the host or the component caused.
    failures: u32,
    /// Why there is none, beyond that one is being built.
    reason: Option<String>,
    /// The last disagreement of the two instances. It stays until both are replaced.
    disagreement: Option<String>,
    trapped: HashMap<Arc<str>, Instant>,
}

impl Default for Absence {
    fn default() -> Self {
        Self { present: watch::Sender::new(true), state: Mutex::default() }
    }
}

impl Absence {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the standby is gone.
    pub(super) fn begin(&self) {
        self.lock().since.get_or_insert_with(Instant::now);
        self.present.send_if_modified(|present| std::mem::replace(present, false));
    }

    /// Notes that there is one again.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        if let Some(since) = state.since.take() {
            state.took = since.elapsed();
            state.returned = Some(Instant::now());
        }
        state.reason = None;
        drop(state);
        self.present.send_if_modified(|present| !std::mem::replace(present, true));
    }

    /// Notes why the standby cannot be built, or was lost, and returns how long to wait before the next attempt.
    pub(super) fn failed(&self, reason: String) -> Duration {
        let mut state = self.lock();
        if state.returned.is_some_and(|returned| returned.elapsed() >= STABLE_TIME) {
            state.failures = 0;
        }
        state.returned = None;
        state.reason = Some(reason);
        let doublings = state.failures;
        state.failures += 1;
        match doublings.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => PAUSE_MIN.saturating_mul(1 << doublings.min(10)).min(PAUSE_MAX),
        }
    }

    /// Notes that the two instances disagree.
    pub(super) fn disagreed(&self, reason: &str) {
        self.lock().disagreement = Some(reason.to_owned());
    }

    /// Notes that both instances were replaced.
    pub(super) fn replaced(&self) {
        let mut state = self.lock();
        state.failures = 0;
        state.disagreement = None;
    }

    /// Why there is no standby, or that the last one disagreed with the primary.
    pub(super) fn problem(&self) -> Option<String> {
        let state = self.lock();
        state.reason.clone().or_else(|| state.disagreement.clone())
    }

    /// The time that the last standby took from the loss of the one before to its first query; so far, if there is
    /// none yet.
    pub(super) fn took(&self) -> Duration {
        let state = self.lock();
        state.since.map_or(state.took, |since| since.elapsed().max(state.took))
    }

    /// Whether there is a standby, with every change.
    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.present.subscribe()
    }

    pub(super) fn is_over(&self) -> bool {
        *self.present.borrow()
    }

    /// Notes that a call of this method trapped.
    pub(super) fn note_trapped(&self, method: &Arc<str>) {
        let trapped = &mut self.lock().trapped;
        if trapped.len() >= TRAPPED_MAX {
            trapped.clear();
        }
        trapped.insert(Arc::clone(method), Instant::now());
    }

    /// Whether a call of this method trapped lately.
    pub(super) fn has_trapped(&self, method: &str) -> bool {
        let trapped = &self.lock().trapped;
        trapped.get(method).is_some_and(|at| at.elapsed() < TRAPPED_TIME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_loss_is_repaired_at_once_and_repeated_losses_after_growing_pauses() {
        let absence = Absence::default();
        let pauses: Vec<u64> = (0..9).map(|_| absence.failed("why".into()).as_secs()).collect();
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        absence.replaced();
        assert_eq!(absence.failed("why".into()), Duration::ZERO);
    }

    #[test]
    fn a_problem_ends_with_the_absence_and_a_disagreement_when_both_are_replaced() {
        let absence = Absence::default();
        assert!(absence.is_over());
        absence.begin();
        absence.failed("no memory".into());
        assert!(!absence.is_over());
        assert_eq!(absence.problem().as_deref(), Some("no memory"));
        absence.end();
        assert!(absence.is_over());
        assert_eq!(absence.problem(), None);
        absence.disagreed("at entry 7");
        absence.begin();
        absence.end();
        assert_eq!(absence.problem().as_deref(), Some("at entry 7"));
        absence.replaced();
        assert_eq!(absence.problem(), None);
    }
}
