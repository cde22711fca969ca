//! Wakes the state machine at the time that it requested.
//!
//! Time passes for a state machine only through the log. Every node knows the wake-up time, because
//! it follows from the log. When the leader's estimate of the log's time reaches it, the leader
//! proposes a tick. A tick that is proposed twice, by a leader and its successor, is harmless: a
//! state machine reads the time in the tick.

use std::{sync::Arc, time::Duration};

use openraft::async_runtime::WatchReceiver;
use tokio::time::{sleep, timeout};

use super::{
    fitness::Fitness,
    node::Node,
    time::{Clock, Time},
};
use conclave_types::{Command, CommandKind, Outcome};

/// The interval at which the log's time is compared with the wake-up time. Polled, because the
/// estimate of the log's time may jump or be slewed while this task sleeps.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The pause between two ticks of a state machine that always requests to be woken at once.
const PAUSE: Duration = Duration::from_millis(10);
/// The pause after a tick that could not be proposed.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// The pause after a tick that trapped. Each further trap doubles it. Each trap costs every node an
/// instance, and the wake-up time stays due.
const TRAP_PAUSE_MIN: Duration = Duration::from_secs(1);
const TRAP_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Proposes the ticks that the state machine requests.
pub(super) struct Ticks {
    node: Arc<Node>,
    fitness: Arc<Fitness>,
    clock: Arc<Clock>,
    time: Arc<Time>,
}

impl Ticks {
    pub(super) fn new(
        node: Arc<Node>,
        fitness: Arc<Fitness>,
        clock: Arc<Clock>,
        time: Arc<Time>,
    ) -> Self {
        Self { node, fitness, clock, time }
    }

    /// Proposes ticks until the worker has ended.
    pub(super) async fn run(self) {
        let mut wake_at = self.node.worker.wake_at();
        let mut server = self.node.raft.server_metrics();
        let mut traps_in_a_row = 0;
        loop {
            let due_at_ms = *wake_at.borrow_and_update();
            drop(server.borrow_and_update());
            let now_ms = self.time.now_ms();
            let left = due_at_ms.map(|at| Duration::from_millis(at.saturating_sub(now_ms)));
            if left == Some(Duration::ZERO) {
                let ticked = self.tick().await;
                traps_in_a_row = if ticked == Ticked::Trapped { traps_in_a_row + 1 } else { 0 };
                let pause = sleep(ticked.pause(traps_in_a_row));
                if ticked == Ticked::NotLeader {
                    // This node may become the leader.
                    tokio::select! {
                        () = pause => {}
                        changed = server.changed() => if changed.is_err() { return },
                    }
                } else {
                    pause.await;
                }
                continue;
            }
            let left = left.unwrap_or(POLL_INTERVAL).min(POLL_INTERVAL);
            // A new wake-up time ends the wait. So does the end of the worker.
            if let Ok(Err(_)) = timeout(left, wake_at.changed()).await {
                return;
            }
        }
    }

    /// Proposes a tick if this node leads.
    async fn tick(&self) -> Ticked {
        // Ignore the wake-up time of a state machine that has diverged.
        if !self.node.is_leader() || self.node.divergence.is_stopped() {
            return Ticked::NotLeader;
        }
        let time_ms = self.clock.stamp().await;
        let Ok(_proposal) = self.fitness.propose() else { return Ticked::Failed };
        let command = Command { time_ms, kind: CommandKind::Tick };
        let written =
            timeout(self.node.timing.request_timeout, self.node.raft.client_write(command));
        match written.await {
            Ok(Ok(written)) => match written.data.outcome {
                Some(Outcome::Trap(_)) => Ticked::Trapped,
                _ => Ticked::Applied,
            },
            Ok(Err(error)) => {
                tracing::debug!(%error, "no tick");
                Ticked::Failed
            }
            Err(_) => Ticked::Failed,
        }
    }
}

/// The result of an attempt to put a tick into the log.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ticked {
    Applied,
    Trapped,
    Failed,
    NotLeader,
}

impl Ticked {
    /// Returns the pause before the wake-up time is checked again.
    fn pause(self, traps_in_a_row: u32) -> Duration {
        match self {
            Self::Applied => PAUSE,
            Self::Trapped => {
                let doublings = traps_in_a_row.saturating_sub(1).min(10);
                TRAP_PAUSE_MIN.saturating_mul(1 << doublings).min(TRAP_PAUSE_MAX)
            }
            Self::Failed => RETRY_INTERVAL,
            Self::NotLeader => POLL_INTERVAL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_while_ticks_trap() {
        let pauses: Vec<u64> = (1..9).map(|traps| Ticked::Trapped.pause(traps).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(Ticked::Applied.pause(0), PAUSE);
    }
}
