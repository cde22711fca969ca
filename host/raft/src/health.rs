//! The health of this node, derived from the current state of Raft, the disk and the state machine.

use std::{
    mem::discriminant,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use openraft::async_runtime::WatchReceiver;
use tokio::time::{Instant, sleep};

use super::node::Node;
use conclave_types::status::{Health, NotServing};

/// The interval at which the health is derived. Polled, because most of its facts change without an
/// event: a hung disk, the age of the last contact with a majority, and the age of the applied
/// state. Raft's metrics and a quarantine wake the monitor directly.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The age beyond which the applied state is not ready. Linearizable reads take about as long.
const AGE_MAX: Duration = Duration::from_secs(3);
/// The number of unapplied entries that is too many whatever their age. A fast node takes
/// half a second for 10,000.
const BEHIND_MAX: u64 = 10_000;
/// The divisor of both limits for a node that is behind: it is ready again below a quarter of them.
const HYSTERESIS: u32 = 4;

/// Derives and publishes this node's health.
pub(super) struct HealthMonitor {
    node: Arc<Node>,
    leader_heard: Mutex<Instant>,
}

impl HealthMonitor {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self { node, leader_heard: Mutex::new(Instant::now()) }
    }

    /// Records a message of the leader.
    pub(super) fn hear_leader(&self) {
        *self.leader_heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn leader_silence(&self) -> Duration {
        self.leader_heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Returns the commit index that this node knows, and the applied index.
    pub(super) fn progress(&self) -> (u64, u64) {
        let metrics = self.node.raft.metrics();
        let metrics = metrics.borrow_watched();
        let committed = metrics.cluster_committed.max(metrics.local_committed);
        (committed.map_or(0, |log_id| log_id.index), self.node.worker.applied())
    }

    /// Updates the node's health until the node shuts down.
    pub(super) async fn run(self: Arc<Self>) {
        let (node, mut lag) = (&self.node, Lag::new(Instant::now()));
        let (mut metrics, mut refusing) = (node.raft.server_metrics(), node.divergence.watch());
        loop {
            let (committed, applied) = self.progress();
            lag.note(committed, applied, Instant::now());
            let health = match self.look() {
                Health::Serving => lag.health(),
                other => other,
            };
            if !publish(node, &health) {
                return;
            }
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

    fn look(&self) -> Health {
        let node = &self.node;
        let metrics = node.raft.metrics();
        let metrics = metrics.borrow_watched();
        let not_serving = Health::NotServing;
        if let Some(fatal_error) = node.fatal_error() {
            return not_serving(NotServing::Fatal(fatal_error));
        }
        if let Err(fatal) = &metrics.running_state {
            return not_serving(NotServing::Fatal(format!("Raft has stopped: {fatal}")));
        }
        let Some(leader) = metrics.current_leader else {
            return not_serving(NotServing::NoLeader);
        };
        // With pre-vote, a node that is cut off continues to name the last known leader.
        if leader != node.id() && self.leader_silence() > node.timing.election_time() {
            return not_serving(NotServing::LeaderSilent(leader));
        }
        if leader == node.id() && !node.has_quorum(&metrics) {
            return not_serving(NotServing::NoMajority);
        }
        Health::Serving
    }
}

/// Publishes the health. Returns `false` once the node shuts down.
fn publish(node: &Node, health: &Health) -> bool {
    let (mut stopping, mut is_news) = (false, false);
    node.health.send_if_modified(|known| {
        // A shutdown may set this at any time. It is final.
        stopping = *known == Health::NotServing(NotServing::ShuttingDown);
        let changed = !stopping && known != health;
        if changed {
            is_news = kind(known) != kind(health);
            known.clone_from(health);
        }
        changed
    });
    if is_news {
        match health {
            Health::Serving => tracing::info!("serving"),
            Health::NotServing(why) => {
                tracing::warn!(reason = why.name(), %why, "not serving");
            }
        }
    }
    !stopping
}

/// Returns the kind of the health, without its numbers.
fn kind(health: &Health) -> Option<std::mem::Discriminant<NotServing>> {
    match health {
        Health::Serving => None,
        Health::NotServing(why) => Some(discriminant(why)),
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
