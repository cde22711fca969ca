//! Wakes the machine when the time that it asked for has come.
//!
//! Time passes for a machine only through the log. Every node knows the wish, which follows from the
//! log; the leader's estimate of the log's time says that it is due, and the leader proposes a tick. One that is proposed
//! twice, by a leader and its successor, does no harm: a machine looks at the time that a tick brings.

use std::{sync::Weak, time::Duration};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{Inner, Replica};
use conclave_types::{Command, CommandKind, Outcome};

/// The log's time is looked at again at least this often, as it may be set; and whether this node leads,
/// so that after a change of leader a tick may be late by as much.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Between two ticks of a machine that always wants to be woken at once.
const PAUSE: Duration = Duration::from_millis(10);
/// Before a tick that could not be proposed is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// The pause after a tick that trapped. Each further one doubles it. Each costs every node an instance, and the
/// wake-up time stays due.
const TRAP_PAUSE_MIN: Duration = Duration::from_secs(1);
const TRAP_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Until the replica is gone.
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
                // A new wish is one more reason to look, and so is that nobody has wishes any more.
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
    /// How long to wait before the wake-up time is looked at again.
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
    /// Puts a tick into the log, if this node leads.
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
