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
use crate::types::{Command, CommandKind};

/// The log's time is looked at again at least this often, as it may be set; and whether this node leads,
/// so that after a change of leader a tick may be late by as much.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Between two ticks of a machine that always wants to be woken at once.
const PAUSE: Duration = Duration::from_millis(10);
/// Before a tick that could not be proposed is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Until the replica is gone.
pub(super) async fn run(replica: Weak<Inner>, mut wish: watch::Receiver<Option<u64>>) {
    loop {
        let due_at_ms = *wish.borrow_and_update();
        let Some(now_ms) = replica.upgrade().map(|inner| inner.time.now_ms()) else { return };
        let left = due_at_ms.map(|at| Duration::from_millis(at.saturating_sub(now_ms)));
        match left {
            Some(Duration::ZERO) => {
                let Some(replica) = replica.upgrade().map(Replica) else { return };
                let pause = replica.tick().await;
                drop(replica);
                sleep(pause).await;
            }
            left => {
                let left = left.unwrap_or(LOOK_INTERVAL).min(LOOK_INTERVAL);
                // A new wish is one more reason to look, and so is that nobody has wishes any more.
                if let Ok(Err(_)) = timeout(left, wish.changed()).await {
                    return;
                }
            }
        }
    }
}

impl Replica {
    /// Puts a tick into the log, if this node leads. How long until it is looked at again.
    async fn tick(&self) -> Duration {
        // What a machine wishes that has diverged counts for nothing.
        if !self.0.is_leader() || self.0.divergence.is_stopped() {
            return LOOK_INTERVAL;
        }
        let time_ms = self.stamp().await;
        let Ok(_proposal) = self.0.leadership.propose() else { return RETRY_INTERVAL };
        let command = Command { time_ms, kind: CommandKind::Tick };
        let written = timeout(self.0.timing.request_timeout, self.0.raft.client_write(command));
        match written.await {
            Ok(Ok(_)) => PAUSE,
            Ok(Err(error)) => {
                tracing::debug!(%error, "no tick");
                RETRY_INTERVAL
            }
            Err(_) => RETRY_INTERVAL,
        }
    }
}
