//! Whether this node serves: never a guess, always from what Raft and the machine say now.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use openraft::{Instant, async_runtime::WatchReceiver};
use tokio::time::sleep;

use super::Inner;
use crate::types::status::Health;

/// Raft's metrics and a quarantine wake the watcher; what changes without an event, such as the age of the
/// last contact with a majority, is looked at this often.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Keeps the replica's health true, until the replica is gone or shuts down.
pub(super) async fn watch(replica: Weak<Inner>) {
    let Some(inner) = replica.upgrade() else { return };
    let (mut metrics, mut refusing) = (inner.raft.server_metrics(), inner.divergence.watch());
    drop(inner);
    while let Some(inner) = replica.upgrade() {
        let health = look(&inner);
        let stopping =
            matches!(&*inner.health.borrow(), Health::NotServing(why) if why == "shutting down");
        if stopping {
            return;
        }
        inner.health.send_if_modified(|known| {
            let changed = *known != health;
            if changed {
                match &health {
                    Health::Serving => tracing::info!("serving"),
                    Health::NotServing(reason) => tracing::warn!(reason, "not serving"),
                }
                *known = health;
            }
            changed
        });
        drop(inner);
        tokio::select! {
            _ = metrics.changed() => {}
            _ = refusing.changed() => {}
            () = sleep(LOOK_INTERVAL) => {}
        }
    }
}

fn look(inner: &Arc<Inner>) -> Health {
    let metrics = inner.raft.metrics();
    let metrics = metrics.borrow_watched();
    if let Some(fault) = inner.fault() {
        return Health::NotServing(fault);
    }
    if let Err(fatal) = &metrics.running_state {
        return Health::NotServing(format!("Raft has stopped: {fatal}"));
    }
    let Some(leader) = metrics.current_leader else {
        return Health::NotServing("no leader is known".to_owned());
    };
    // With pre-vote a node that is cut off goes on naming the leader that it had.
    let silence = inner.leader_silence();
    if leader != inner.node_id() && silence > inner.timing.election_max * 2 {
        return Health::NotServing(format!("leader {leader} has not been heard of for a while"));
    }
    let alone = metrics.membership_config.voter_ids().count() == 1;
    if leader == inner.node_id() && !alone {
        let lease = inner.timing.election_max;
        let contact = metrics.last_quorum_acked.map(|at| at.elapsed());
        if contact.is_none_or(|age| age > lease) {
            return Health::NotServing("a majority does not answer".to_owned());
        }
    }
    Health::Serving
}

impl Inner {
    /// Why this node answers nobody, if it does not: it does not apply or store any more, or has diverged.
    pub(super) fn fault(&self) -> Option<String> {
        let stored = || self.log.poisoned().map(|why| format!("the store failed: {why}"));
        self.worker.fault().or_else(stored).or_else(|| self.divergence.why())
    }
}
