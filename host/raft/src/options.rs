//! The parts of a replica, and the options of openraft with their reasons.

use std::{sync::Arc, time::Duration};

use openraft::StepDownPolicy;

use super::{Components, LocalEntrySource, Metrics};
use crate::{
    settings::{Limits, Member, SnapshotPolicy},
    timing::{RETRY_PAUSE_MAX, RETRY_PAUSE_MIN, Timing},
};
use conclave_machine::Worker;
use conclave_storage::{Identity, LogStore, SnapshotStore};
use conclave_types::error::Error;

/// The parts of a replica.
pub struct Options {
    /// The identity in the data directory.
    pub identity: Identity,
    /// The engine's fingerprint.
    pub engine: String,
    /// The components that the node has compiled.
    pub components: Arc<Components>,
    /// The worker that runs the state machine.
    pub worker: Worker,
    /// The log.
    pub log: LogStore,
    /// The snapshots.
    pub snapshots: SnapshotStore,
    /// The source from which the worker rebuilds its instances.
    pub entry_source: Arc<LocalEntrySource>,
    /// The members that a new cluster is initialized with.
    pub members: Vec<Member>,
    /// The timing of elections, heartbeats and peer calls.
    pub timing: Timing,
    /// The limits of requests and of the state machine.
    pub limits: Limits,
    /// The conditions under which snapshots are taken.
    pub snapshot: SnapshotPolicy,
    /// The interval between consistency checks; `None` disables them.
    pub consistency_check_interval: Option<Duration>,
    /// The metrics of this layer.
    pub metrics: Arc<Metrics>,
}

/// Returns openraft's configuration. openraft's defaults are for tests, so every option that
/// Conclave depends on is set explicitly.
pub(super) fn raft_config(
    cluster_id: &str,
    timing: Timing,
    snapshot: SnapshotPolicy,
) -> Result<Arc<openraft::Config>, Error> {
    let ms = |duration: Duration| duration.as_millis() as u64;
    let config = openraft::Config {
        cluster_name: cluster_id.to_owned(),
        // Also the deadline of a heartbeat. Heartbeats are sent more often: `network::heartbeats`.
        heartbeat_interval: ms(timing.call_deadline()),
        election_timeout_min: ms(timing.wait_min()),
        election_timeout_max: ms(timing.lease()),
        // For the transfer of a snapshot: the longest time without progress.
        install_snapshot_timeout: ms(snapshot.stall),
        // Bounds one request of an append stream. The log reader bounds it by bytes as well.
        max_payload_entries: 1024,
        // While the state machine is busy, for example with an activation, one command per step of
        // the commit index waits here. When the queue is full, openraft's core waits too, and
        // responds neither to heartbeats nor to votes. At 2,000 steps per second the queue lasts
        // for half a minute. A full queue takes about 15 MiB.
        state_machine_channel_size: Some(65_536),
        // One group commit.
        max_append_entries: Some(4096),
        // A follower whose next entry is still in the leader's log gets entries, not a snapshot.
        replication_lag_threshold: snapshot.entries * 2 + snapshot.keep_entries,
        snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(snapshot.entries),
        // `snapshot::keeping` purges the log instead. openraft's policy counts entries, not bytes,
        // and purges entries that a follower needs after the snapshot that it is receiving.
        max_in_snapshot_log_to_keep: u64::MAX,
        // Proposals that wait together become one append. A linger time would only add latency,
        // because the next append gathers while the previous one is synced.
        api_batch_capacity: 4096,
        api_batch_linger_ms: 0,
        // Followers sync at the same time as the leader, not after it (Raft thesis, section 10.2.1).
        broadcast_submitted_on_append: Some(true),
        // A leader that was removed from the membership continues to respond for a short time.
        removed_leader_step_down: StepDownPolicy::After(ms(timing.election_min)),
        // A leader without a quorum stops its heartbeats, so that nodes that still reach each other
        // elect another leader (Raft thesis, section 6.2).
        quorum_loss_probe_interval: Some(ms(timing.election_time())),
        // A node that returns from a partition does not disturb a working leader
        // (Raft thesis, section 9.6).
        enable_pre_vote: Some(true),
        backoff: format!(
            "{}ms 50ms 100ms 200ms ...{}ms",
            RETRY_PAUSE_MIN.as_millis(),
            RETRY_PAUSE_MAX.as_millis()
        ),
        // A leader sends entries before they are on its own disk. After a restart it may lack
        // entries that its followers have. If it continued to lead in the same term, it would
        // assign their log ids to other entries. So it must be elected again in a new term, which
        // requires a log as up-to-date as the voters' (Raft thesis, section 3.6.1).
        enable_leader_restore: Some(false),
        enable_tick: true,
        enable_heartbeat: true,
        // Elections start after the vote hold-off, see `vote_holdoff`.
        enable_elect: false,
        ..openraft::Config::default()
    };
    let config = config.validate();
    let invalid = |error| Error::invalid("Raft's configuration is invalid").with_source(error);
    Ok(Arc::new(config.map_err(invalid)?))
}
