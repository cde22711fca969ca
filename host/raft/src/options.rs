//! What a replica is made of, and every option of openraft with its reason.

use std::{sync::Arc, time::Duration};

use openraft::StepDownPolicy;

use super::{Components, LocalEntrySource};
use crate::{
    settings::{Limits, Member, SnapshotPolicy},
    timing::Timing,
};
use conclave_machine::Worker;
use conclave_storage::{Identity, LogStore, SnapshotStore};
use conclave_types::error::Error;

/// What a replica is made of.
pub struct Options {
    /// From the data directory.
    pub identity: Identity,
    /// The engine's fingerprint.
    pub engine: String,
    /// The components that the node has compiled.
    pub components: Arc<Components>,
    /// The machine.
    pub worker: Worker,
    /// The log.
    pub log: LogStore,
    /// The snapshots.
    pub snapshots: SnapshotStore,
    /// What the worker rebuilds its instances from.
    pub entry_source: Arc<LocalEntrySource>,
    /// With whom a new cluster is initialized.
    pub members: Vec<Member>,
    /// Raft's clock.
    pub timing: Timing,
    /// What a call may use.
    pub limits: Limits,
    /// When snapshots are taken.
    pub snapshot: SnapshotPolicy,
    /// How often the replicas' digests are compared; absent: never.
    pub consistency_check_interval: Option<Duration>,
}

/// openraft's own configuration. Its defaults are for tests; what this product relies on is written
/// down.
pub(super) fn raft_config(
    cluster_id: &str,
    timing: Timing,
    snapshot: SnapshotPolicy,
) -> Result<Arc<openraft::Config>, Error> {
    let ms = |duration: Duration| duration.as_millis() as u64;
    let config = openraft::Config {
        cluster_name: cluster_id.to_owned(),
        // The deadline of heartbeats as well. They are sent more often: `network::heartbeats`.
        heartbeat_interval: ms(timing.call_deadline()),
        election_timeout_min: ms(timing.wait_min()),
        election_timeout_max: ms(timing.lease()),
        // For a transfer of a snapshot: the longest time without progress.
        install_snapshot_timeout: ms(snapshot.stall),
        // One request of the log's stream. The log reader bounds it by bytes as well.
        max_payload_entries: 1024,
        // One command for each step of the commit index waits here while the state machine works, for example
        // on an activation. When the queue is full openraft's core waits too and answers neither heartbeats
        // nor votes. At 2,000 steps per second it lasts for half a minute; full, it takes some 15 MiB.
        state_machine_channel_size: Some(65_536),
        // One group commit.
        max_append_entries: Some(4096),
        // Whoever still finds its next entry in the leader's log is sent entries.
        replication_lag_threshold: snapshot.entries * 2 + snapshot.keep_entries,
        snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(snapshot.entries),
        // `snapshot::keeping` purges: openraft's policy counts entries and not bytes, and purges what a follower
        // that is being sent a snapshot is going to need.
        max_in_snapshot_log_to_keep: u64::MAX,
        // Proposals that wait together become one append. Waiting for more would only add latency:
        // while one append is synced the next one gathers.
        api_batch_capacity: 4096,
        api_batch_linger_ms: 0,
        // Followers sync while the leader does, instead of after it.
        broadcast_submitted_on_append: Some(true),
        // A leader that was removed goes on answering for a moment.
        removed_leader_step_down: StepDownPolicy::After(ms(timing.election_min)),
        // A leader without a quorum falls silent, so that those who still reach each other elect.
        quorum_loss_probe_interval: Some(2 * ms(timing.election_max)),
        // A node that comes back from a partition does not disturb a leader that works.
        enable_pre_vote: Some(true),
        backoff: "20ms 50ms 100ms 200ms ...1000ms".to_owned(),
        // A leader sends entries before its own disk holds them. One that restarts may lack what its
        // followers have, and leading on in the same term it would give their log ids to other
        // entries. So it is elected again, in a new term, if its log is as long as theirs.
        enable_leader_restore: Some(false),
        enable_tick: true,
        enable_heartbeat: true,
        // See `vote_holdoff`.
        enable_elect: false,
        ..openraft::Config::default()
    };
    let config = config.validate();
    Ok(Arc::new(config.map_err(|error| Error::invalid(format!("Raft's configuration: {error}")))?))
}
