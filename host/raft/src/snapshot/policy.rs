//! The triggers of snapshots: one is due, or its file is complete.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use openraft::async_runtime::WatchReceiver;
use tokio::time::{Instant, sleep, timeout};

use crate::{Inner, LocalEntrySource, settings::SnapshotPolicy};
use conclave_storage::raft_types::LogId;

/// The interval at which the size of the log is checked.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Triggers openraft for each snapshot whose file is complete.
pub(crate) async fn hand_over(replica: Weak<Inner>) {
    loop {
        let Some(inner) = replica.upgrade() else { return };
        let building = inner.building.clone();
        let ready = building.ready.notified();
        if building.is_whole() && inner.raft.trigger().snapshot().await.is_err() {
            return;
        }
        drop(inner);
        // With a timeout, so that a missed notification only causes a delay.
        let _ = timeout(POLL_INTERVAL, ready).await;
    }
}

/// Takes a snapshot when the log has grown by enough bytes, or when the last one is old enough and
/// there are enough new entries.
///
/// openraft takes snapshots by the number of entries, except for entries that arrive while a
/// snapshot is being taken. It triggers once per so many entries, and the trigger fails while a
/// snapshot is running. If the cluster then becomes idle, its log would stay long. So the number of
/// entries is checked here too.
pub(crate) async fn watch_growth(
    replica: Weak<Inner>,
    policy: SnapshotPolicy,
    entry_source: Arc<LocalEntrySource>,
) {
    let (mut at_last, mut last_index, mut asked_at) = (0, 0, 0);
    // A restart counts as a snapshot here, because the age of the file is unknown and a node that
    // has just replayed its log is busy.
    let mut last_time = Instant::now();
    loop {
        sleep(POLL_INTERVAL).await;
        let Some(inner) = replica.upgrade() else { return };
        inner.receiving.expire();
        let appended = inner.log.appended_bytes();
        let (index, applied) = {
            let metrics = inner.raft.metrics();
            let metrics = metrics.borrow_watched();
            let index = |log_id: &Option<LogId>| log_id.as_ref().map_or(0, |log_id| log_id.index);
            (index(&metrics.snapshot), index(&metrics.last_applied))
        };
        if index != last_index {
            (at_last, last_index, last_time) = (appended, index, Instant::now());
            entry_source.snapshot_taken(index);
            inner.components.snapshot_taken(index, &inner.applied().registry);
        }
        let new_entries = applied.saturating_sub(index);
        let is_due = policy.interval.is_some_and(|interval| last_time.elapsed() >= interval)
            && new_entries >= policy.interval_entries;
        let grown = new_entries >= policy.entries || appended - at_last >= policy.bytes || is_due;
        // Not while a snapshot is running, and only once for the same entries: a state machine that
        // traps while it is saved would otherwise cost an idle node one standby after another.
        if grown && applied > asked_at && inner.building.wants(applied) {
            (at_last, asked_at, last_time) = (appended, applied, Instant::now());
            if inner.raft.trigger().snapshot().await.is_err() {
                return;
            }
        }
    }
}
