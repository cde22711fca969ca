//! Tracks whether a worker has a standby. The primary needs this to answer queries meanwhile, the
//! trap limiter and operators need it too.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;

/// The time for which a method is remembered after one of its calls trapped.
const TRAPPED_TIME: Duration = Duration::from_secs(60);
/// The maximum number of remembered methods. Beyond it, all are forgotten.
const TRAPPED_MAX: usize = 256;
/// The pause before the second attempt to build a standby. Each further loss doubles it.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// The loss of a standby that lived this long does not count as repeated.
const STABLE_TIME: Duration = Duration::from_secs(60);

/// The absence of the standby. See the module documentation.
pub(super) struct Absence {
    /// Whether there is a standby.
    present: watch::Sender<bool>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    presence: Presence,
    /// The time that the last standby took to be built and to catch up.
    took: Duration,
    /// The number of consecutive losses caused by the host or the component.
    failures: u32,
    /// The last disagreement of the two instances. It is kept until both are replaced.
    disagreement: Option<String>,
    trapped: HashMap<Arc<str>, Instant>,
}

/// Whether there is a standby.
enum Presence {
    /// There is one. The first one has always been there.
    Present { returned: Option<Instant> },
    /// It was lost at this time.
    Absent {
        since: Instant,
        /// The time at which the lost one had returned, until its failure has been counted.
        returned: Option<Instant>,
        /// The reason why there is none, if it is not just being built.
        reason: Option<String>,
    },
}

impl Default for Presence {
    fn default() -> Self {
        Self::Present { returned: None }
    }
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

    /// Records that the standby is gone.
    pub(super) fn begin(&self) {
        let presence = &mut self.lock().presence;
        if let Presence::Present { returned } = *presence {
            *presence = Presence::Absent { since: Instant::now(), returned, reason: None };
        }
        self.present.send_if_modified(|present| std::mem::replace(present, false));
    }

    /// Records that there is a standby again.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        if let Presence::Absent { since, .. } = state.presence {
            state.took = since.elapsed();
            state.presence = Presence::Present { returned: Some(Instant::now()) };
        }
        drop(state);
        self.present.send_if_modified(|present| !std::mem::replace(present, true));
    }

    /// Records the reason why the standby, which is gone, cannot be built or was lost. Returns the
    /// pause before the next attempt.
    pub(super) fn failed(&self, why: String) -> Duration {
        let state = &mut *self.lock();
        let Presence::Absent { returned, reason, .. } = &mut state.presence else {
            unreachable!("a standby that has failed is gone");
        };
        *reason = Some(why);
        if returned.take().is_some_and(|returned| returned.elapsed() >= STABLE_TIME) {
            state.failures = 0;
        }
        let doublings = state.failures;
        state.failures += 1;
        match doublings.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => PAUSE_MIN.saturating_mul(1 << doublings.min(10)).min(PAUSE_MAX),
        }
    }

    /// Records that the two instances disagree.
    pub(super) fn disagreed(&self, reason: &str) {
        self.lock().disagreement = Some(reason.to_owned());
    }

    /// Records that both instances were replaced.
    pub(super) fn replaced(&self) {
        let mut state = self.lock();
        state.failures = 0;
        state.disagreement = None;
    }

    /// Returns the reason why there is no standby, or the last disagreement with the primary.
    pub(super) fn problem(&self) -> Option<String> {
        let state = self.lock();
        let reason = match &state.presence {
            Presence::Absent { reason, .. } => reason.clone(),
            Presence::Present { .. } => None,
        };
        reason.or_else(|| state.disagreement.clone())
    }

    /// Returns the time from the loss of the previous standby to the first query of the last one.
    /// If there is none yet, returns the time so far.
    pub(super) fn took(&self) -> Duration {
        let state = self.lock();
        match state.presence {
            Presence::Absent { since, .. } => since.elapsed().max(state.took),
            Presence::Present { .. } => state.took,
        }
    }

    /// Returns a channel that reports whether there is a standby.
    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.present.subscribe()
    }

    pub(super) fn is_over(&self) -> bool {
        *self.present.borrow()
    }

    /// Records that a call of this method trapped.
    pub(super) fn note_trapped(&self, method: &Arc<str>) {
        let trapped = &mut self.lock().trapped;
        if trapped.len() >= TRAPPED_MAX {
            trapped.clear();
        }
        trapped.insert(Arc::clone(method), Instant::now());
    }

    /// Returns whether a call of this method trapped recently.
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
        absence.begin();
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
