//! Heartbeats at the configured interval.
//!
//! openraft sends its own heartbeats at its heartbeat interval, which is also the deadline of each
//! heartbeat; see [`crate::timing::Timing`].

use std::sync::Arc;

use tokio::time::{MissedTickBehavior, interval};

use crate::node::Node;

/// Triggers openraft's heartbeats while this node leads, until Raft has stopped.
pub(crate) async fn run(node: Arc<Node>) {
    let mut ticks = interval(node.timing.heartbeat);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // A leader whose disk hangs sends no heartbeats.
        if node.is_leader() && node.raft.trigger().heartbeat().await.is_err() {
            return;
        }
    }
}
