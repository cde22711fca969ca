//! The health of this node, derived from the current state of Raft, the disk and the state machine.

use std::{
    mem::discriminant,
    sync::{Arc, Weak},
    time::Duration,
};

use openraft::{Instant as _, async_runtime::WatchReceiver};
use tokio::time::{Instant, sleep};

use super::Inner;
use conclave_types::status::{Health, NotServing};

/// The polling interval for facts that change without an event, such as the age of the last contact
/// with a majority. Raft's metrics and a quarantine wake the watcher directly.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The age beyond which the applied state is not ready. Linearizable reads take about as long.
const AGE_MAX: Duration = Duration::from_secs(3);
/// The number of unapplied entries that is too many whatever their age. A fast node takes
/// half a second for 10,000.
const BEHIND_MAX: u64 = 10_000;
/// The divisor of both limits for a node that is behind: it is ready again below a quarter of them.
const HYSTERESIS: u32 = 4;

/// Updates the replica's health until the replica is gone or shuts down.
pub(super) async fn watch(replica: Weak<Inner>) {
    let Some(inner) = replica.upgrade() else { return };
    let (mut metrics, mut refusing) = (inner.raft.server_metrics(), inner.divergence.watch());
    drop(inner);
    let mut lag = Lag::new(Instant::now());
    while let Some(inner) = replica.upgrade() {
        let (committed, applied) = inner.progress();
        lag.note(committed, applied, Instant::now());
        let health = match look(&inner) {
            Health::Serving => lag.health(),
            other => other,
        };
        let (mut stopping, mut is_news) = (false, false);
        inner.health.send_if_modified(|known| {
            // A shutdown may set this at any time. It is final.
            stopping = *known == Health::NotServing(NotServing::ShuttingDown);
            let changed = !stopping && *known != health;
            if changed {
                is_news = kind(known) != kind(&health);
                known.clone_from(&health);
            }
            changed
        });
        if is_news {
            match &health {
                Health::Serving => tracing::info!("serving"),
                Health::NotServing(why) => {
                    tracing::warn!(reason = why.name(), %why, "not serving");
                }
            }
        }
        if stopping {
            return;
        }
        drop(inner);
        tokio::select! {
            changed = metrics.changed() => if changed.is_err() {
                // Raft's core has ended, so `changed` returns at once from now on.
                sleep(POLL_INTERVAL).await;
            },
            _ = refusing.changed() => {}
            () = sleep(POLL_INTERVAL) => {}
        }
    }
}

/// Returns the kind of the health, without its numbers.
fn kind(health: &Health) -> Option<std::mem::Discriminant<NotServing>> {
    match health {
        Health::Serving => None,
        Health::NotServing(why) => Some(discriminant(why)),
    }
}

fn look(inner: &Arc<Inner>) -> Health {
    let metrics = inner.raft.metrics();
    let metrics = metrics.borrow_watched();
    let not_serving = Health::NotServing;
    if let Some(fatal_error) = inner.fatal_error() {
        return not_serving(NotServing::Fatal(fatal_error));
    }
    if let Err(fatal) = &metrics.running_state {
        return not_serving(NotServing::Fatal(format!("Raft has stopped: {fatal}")));
    }
    let Some(leader) = metrics.current_leader else {
        return not_serving(NotServing::NoLeader);
    };
    // With pre-vote, a node that is cut off continues to name the last known leader.
    if leader != inner.node_id() && inner.leader_silence() > inner.timing.election_time() {
        return not_serving(NotServing::LeaderSilent(leader));
    }
    if leader == inner.node_id() && !has_quorum(inner, &metrics) {
        return not_serving(NotServing::NoMajority);
    }
    Health::Serving
}

/// Returns whether a majority has responded to this leader within an election timeout. After that
/// time the others may have elected another leader.
fn has_quorum(inner: &Inner, metrics: &openraft::RaftMetrics<super::TypeConfig>) -> bool {
    if metrics.membership_config.voter_ids().count() == 1 {
        return true;
    }
    let contact = metrics.last_quorum_acked.map(|at| at.elapsed());
    contact.is_some_and(|age| age <= inner.timing.election_max)
}

impl Inner {
    /// Returns the reason why this node rejects requests, if any: the state machine stopped,
    /// storage failed, or the replica has diverged.
    pub(super) fn fatal_error(&self) -> Option<String> {
        let stored = || self.log.poisoned().map(|why| format!("the store failed: {why}"));
        let fatal_error =
            self.worker.fatal_error().or_else(stored).or_else(|| self.disk.fatal_error());
        fatal_error.or_else(|| self.local.lost()).or_else(|| self.divergence.why())
    }

    /// Returns whether this node leads and other nodes can rely on it: its disk and a majority respond.
    pub(super) fn leads(&self) -> bool {
        if self.disk.is_hung() {
            return false;
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.state.is_leader() && has_quorum(self, &metrics)
    }

    /// Returns the commit index that this node knows, and the applied index.
    pub(super) fn progress(&self) -> (u64, u64) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let committed = metrics.cluster_committed.max(metrics.local_committed);
        (committed.map_or(0, |log_id| log_id.index), self.worker.applied())
    }
}

/// The distance of a node's state from the commit index, in entries and in time.
struct Lag {
    entries: u64,
    /// The time at which all entries committed until then are known to be applied.
    caught_up_at: Instant,
    now: Instant,
    /// A commit index, and the time at which it became known. Once it is applied, the state is at
    /// least as recent as that time.
    goal: Option<(u64, Instant)>,
    is_behind: bool,
}

impl Lag {
    fn new(now: Instant) -> Self {
        Self { entries: 0, caught_up_at: now, now, goal: None, is_behind: false }
    }

    fn note(&mut self, committed: u64, applied: u64, now: Instant) {
        self.now = now;
        self.entries = committed.saturating_sub(applied);
        if let Some((index, at)) = self.goal
            && applied >= index
        {
            self.caught_up_at = at;
            self.goal = None;
        }
        if self.entries == 0 {
            self.caught_up_at = now;
            self.goal = None;
        } else if self.goal.is_none() {
            self.goal = Some((committed, now));
        }
        let part = if self.is_behind { HYSTERESIS } else { 1 };
        self.is_behind = self.age() > AGE_MAX / part || self.entries > BEHIND_MAX / u64::from(part);
    }

    fn age(&self) -> Duration {
        self.now.duration_since(self.caught_up_at)
    }

    fn health(&self) -> Health {
        if self.is_behind {
            let age_ms = self.age().as_millis() as u64;
            Health::NotServing(NotServing::Behind { entries: self.entries, age_ms })
        } else {
            Health::Serving
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes one pair after another, one second apart, and returns whether each was ready.
    fn ready(steps: &[(u64, u64)]) -> Vec<bool> {
        let began = Instant::now();
        let mut lag = Lag::new(began);
        let steps = steps.iter().zip(1..).map(|((committed, applied), second)| {
            lag.note(*committed, *applied, began + Duration::from_secs(second));
            lag.health() == Health::Serving
        });
        steps.collect()
    }

    #[test]
    fn a_short_lag_is_ready() {
        assert_eq!(ready(&[(9000, 100), (18_000, 9000), (27_000, 18_000)]), [true; 3]);
    }

    #[test]
    fn a_state_that_is_too_old_is_not_ready_until_it_has_caught_up() {
        // Three entries, unapplied for more than three seconds.
        let stuck = [(8, 5), (8, 5), (8, 5), (8, 5), (8, 8)];
        assert_eq!(ready(&stuck), [true, true, true, false, true]);
        // Always four seconds behind, although entries are applied.
        let behind: Vec<(u64, u64)> =
            (1..12).map(|second| (second * 10, (second * 10_u64).saturating_sub(40))).collect();
        assert!(ready(&behind).ends_with(&[false; 4]), "{:?}", ready(&behind));
    }

    #[test]
    fn too_many_entries_are_not_ready_until_few_are_left() {
        // 3,000 entries are few for a node that was ready, and many for a node that was not.
        let steps = [(20_000, 0), (21_000, 15_000), (21_000, 18_000), (21_000, 21_000)];
        assert_eq!(ready(&steps), [false, false, false, true]);
    }
}
