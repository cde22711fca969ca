//! The triggers of snapshots by the growth and the age of the log.

use std::{sync::Arc, time::Duration};

use openraft::async_runtime::WatchReceiver;
use tokio::time::{Instant, sleep};

use super::Receiving;
use crate::{
    components::Components, entry_source::LocalEntrySource, node::Node, settings::SnapshotPolicy,
    state_machine::Building,
};
use conclave_storage::raft_types::LogId;

/// The interval at which the size of the log is checked. Polled, because the log grows with each
/// entry, and the age of the last snapshot counts as well.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The parts of a node that [`watch_growth`] uses.
pub(crate) struct Growth {
    pub(crate) node: Arc<Node>,
    pub(crate) building: Arc<Building>,
    pub(crate) components: Arc<Components>,
    pub(crate) receiving: Arc<Receiving>,
    pub(crate) entry_source: Arc<LocalEntrySource>,
    pub(crate) policy: SnapshotPolicy,
}

/// Takes a snapshot when the log has grown by enough bytes, or when the last one is old enough and
/// there are enough new entries.
///
/// openraft takes snapshots by the number of entries, except for entries that arrive while a
/// snapshot is being taken. It triggers once per so many entries, and the trigger fails while a
/// snapshot is running. If the cluster then becomes idle, its log would stay long. So the number of
/// entries is checked here too.
pub(crate) async fn watch_growth(growth: Growth) {
    let Growth { node, building, components, receiving, entry_source, policy } = growth;
    let (mut at_last, mut last_index, mut triggered_at) = (0, 0, 0);
    // A restart counts as a snapshot here, because the age of the file is unknown and a node that
    // has just replayed its log is busy.
    let mut last_time = Instant::now();
    loop {
        sleep(POLL_INTERVAL).await;
        receiving.expire();
        let appended = node.log.appended_bytes();
        let (index, applied) = {
            let metrics = node.raft.metrics();
            let metrics = metrics.borrow_watched();
            let index = |log_id: &Option<LogId>| log_id.as_ref().map_or(0, |log_id| log_id.index);
            (index(&metrics.snapshot), index(&metrics.last_applied))
        };
        if index != last_index {
            (at_last, last_index, last_time) = (appended, index, Instant::now());
            entry_source.snapshot_taken(index);
            components.snapshot_taken(index, &node.applied().registry);
        }
        let new_entries = applied.saturating_sub(index);
        let is_due = policy.interval.is_some_and(|interval| last_time.elapsed() >= interval)
            && new_entries >= policy.interval_entries;
        let grown = new_entries >= policy.entries || appended - at_last >= policy.bytes || is_due;
        // Not while a snapshot is running, and only once for the same entries: a state machine that
        // traps while it is saved would otherwise cost an idle node one standby after another.
        if grown && applied > triggered_at && building.wants(applied) {
            (at_last, triggered_at, last_time) = (appended, applied, Instant::now());
            if node.raft.trigger().snapshot().await.is_err() {
                return;
            }
        }
    }
}
