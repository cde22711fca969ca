//! Heartbeats at the configured interval.
//!
//! openraft sends its own heartbeats at its heartbeat interval, which is also the deadline of each
//! heartbeat; see [`crate::timing::Timing`].

use std::sync::Weak;

use tokio::time::{MissedTickBehavior, interval};

use crate::Inner;

/// Triggers openraft's heartbeats while this node leads, until the replica is gone.
pub(crate) async fn run(replica: Weak<Inner>) {
    let Some(every) = replica.upgrade().map(|inner| inner.timing.heartbeat) else { return };
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(inner) = replica.upgrade() else { return };
        // A leader whose disk hangs sends no heartbeats.
        let sends = inner.is_leader() && !inner.disk.is_hung();
        if sends && inner.raft.trigger().heartbeat().await.is_err() {
            return;
        }
    }
}
