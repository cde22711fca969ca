//! Wakes the state machine at the time that it requested.
//!
//! Time passes for a state machine only through the log. Every node knows the wake-up time, because
//! it follows from the log. When the leader's estimate of the log's time reaches it, the leader
//! proposes a tick. A tick that is proposed twice, by a leader and its successor, is harmless: a
//! state machine reads the time in the tick.

use std::{sync::Weak, time::Duration};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{Inner, Replica};
use conclave_types::{Command, CommandKind, Outcome};

/// The interval at which the log's time, which an operator may set, and the role of this node are
/// checked. So after a change of leader a tick may be late by this interval.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The pause between two ticks of a state machine that always requests to be woken at once.
const PAUSE: Duration = Duration::from_millis(10);
/// The pause after a tick that could not be proposed.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// The pause after a tick that trapped. Each further trap doubles it. Each trap costs every node an
/// instance, and the wake-up time stays due.
const TRAP_PAUSE_MIN: Duration = Duration::from_secs(1);
const TRAP_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Proposes ticks until the replica is gone.
pub(super) async fn run(replica: Weak<Inner>, mut wake_at: watch::Receiver<Option<u64>>) {
    let mut traps_in_a_row = 0;
    loop {
        let due_at_ms = *wake_at.borrow_and_update();
        let Some(now_ms) = replica.upgrade().map(|inner| inner.time.now_ms()) else { return };
        let left = due_at_ms.map(|at| Duration::from_millis(at.saturating_sub(now_ms)));
        match left {
            Some(Duration::ZERO) => {
                let Some(replica) = replica.upgrade().map(Replica) else { return };
                let ticked = replica.tick().await;
                traps_in_a_row = if ticked == Ticked::Trapped { traps_in_a_row + 1 } else { 0 };
                drop(replica);
                sleep(ticked.pause(traps_in_a_row)).await;
            }
            left => {
                let left = left.unwrap_or(POLL_INTERVAL).min(POLL_INTERVAL);
                // A new wake-up time ends the wait. So does the end of the worker.
                if let Ok(Err(_)) = timeout(left, wake_at.changed()).await {
                    return;
                }
            }
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

impl Replica {
    /// Proposes a tick if this node leads.
    async fn tick(&self) -> Ticked {
        // Ignore the wake-up time of a state machine that has diverged.
        if !self.0.is_leader() || self.0.divergence.is_stopped() {
            return Ticked::NotLeader;
        }
        let time_ms = self.stamp().await;
        let Ok(_proposal) = self.0.leadership.propose() else { return Ticked::Failed };
        let command = Command { time_ms, kind: CommandKind::Tick };
        let written = timeout(self.0.timing.request_timeout, self.0.raft.client_write(command));
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
