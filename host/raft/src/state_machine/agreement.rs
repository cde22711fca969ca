//! Consistency checks and state hash checks in the log, and the repair of a diverged replica.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use openraft::storage::EntryResponder;
use tokio::task::spawn_blocking;

use super::{PendingEntry, StateMachine};
use crate::{
    divergence::Quarantine,
    host_state::HostState,
    limits::LimitsInForce,
    snapshot::{self, Accepted},
};
use conclave_storage::{
    SnapshotFile,
    convert::snapshot_meta_from_wire,
    raft_types::{Payload, StoredMembership, TypeConfig},
};
use conclave_types as types;
use conclave_types::{ConsistencyCheck, DIGEST_VERSION};

/// The limits of the entries applied in one step of a repair: some milliseconds of work for the primary.
const REPLAY_BYTES_MAX: usize = 1024 * 1024;
const REPLAY_COUNT_MAX: u64 = 1024;
/// The age after which the result of a state hash check is no longer awaited. A node that replays
/// its log skips older ones.
const VERIFY_WITHIN: Duration = Duration::from_secs(5 * 60);

/// A healthy state that is advanced to the position that openraft assumes for the state machine.
pub(super) struct Repair {
    machine: Box<StateMachine>,
    /// The snapshot's index.
    from: u64,
    /// The next entry to apply.
    next: u64,
    quarantine: Quarantine,
}

impl StateMachine {
    /// Compares this node's digest with the majority's. The primary must first reach this entry.
    /// Consistency checks are seconds apart, so writes are not noticeably delayed.
    pub(super) async fn compare(
        &self,
        pending: PendingEntry,
        consistency_check: ConsistencyCheck,
    ) -> io::Result<()> {
        let PendingEntry { index, responder, .. } = pending;
        self.hand_over(vec![(index, None, None)]).await?;
        let ConsistencyCheck { version, begins, digest, .. } = consistency_check;
        if version != DIGEST_VERSION {
            // Another version of Conclave computed the digest with another algorithm.
        } else if begins {
            self.worker.begin_digest(index, digest).await.map_err(io::Error::other)?;
        } else if self.divergence.compares() {
            let own =
                self.worker.digest_at(consistency_check.index).await.map_err(io::Error::other)?;
            self.divergence.compare(index, consistency_check, own);
            if self.divergence.is_stopped() {
                // After new requests are rejected, so that no new subscription starts in between.
                self.worker.end_watchers();
            }
        }
        if let Some(responder) = responder {
            responder.send(types::Receipt { index, outcome: None });
        }
        Ok(())
    }

    /// Starts hashing the state as it is after this entry.
    pub(super) async fn verify(&self, pending: PendingEntry) -> io::Result<()> {
        let PendingEntry { index, time_ms, responder } = pending;
        self.hand_over(vec![(index, None, None)]).await?;
        if self.time.is_within(time_ms, VERIFY_WITHIN) {
            let hashing = self.state_hashes.clone().hash(&self.worker, index);
            self.building.supervisor.spawn("state hash", hashing);
        }
        if let Some(responder) = responder {
            responder.send(types::Receipt { index, outcome: None });
        }
        Ok(())
    }

    /// Skips an entry while the replica is in quarantine: records only the membership
    /// and the time. The repair applies everything else later. A proposer that waits for
    /// the outcome gets an error.
    pub(super) fn pass_over(&self, (entry, _responder): EntryResponder<TypeConfig>) {
        if let Payload::Normal(command) = &entry.payload {
            self.time.observe(command.time_ms);
        }
        let mut applied = self.applied();
        if let Payload::Membership(membership) = entry.payload {
            let stored = StoredMembership::new(Some(entry.log_id), membership);
            applied.meta.last_membership = stored;
        }
        applied.meta.last_log_id = Some(entry.log_id);
    }

    /// Replaces the diverged state with a peer's accepted snapshot. Entries are still skipped;
    /// [`StateMachine::repair`] applies the entries after the snapshot from the log. Runs on
    /// openraft's state machine task, in turn with openraft's own calls.
    ///
    /// The snapshot's file becomes the newest on disk. For a restart that is as good as a snapshot
    /// sent by a leader: openraft installs the newest snapshot and continues in the log, which
    /// holds all entries that the snapshot covers.
    pub(crate) async fn begin_repair(
        &mut self,
        file: SnapshotFile,
        accepted: Accepted,
    ) -> io::Result<()> {
        let Some(quarantine) = self.divergence.quarantine() else {
            return Ok(()); // A leader's snapshot was installed first.
        };
        let header = snapshot::header(&file)?;
        snapshot::check_header(&header, &self.identity).map_err(io::Error::other)?;
        let meta = snapshot_meta_from_wire(&header).map_err(io::Error::other)?;
        let index = file.index();
        let seen = self.applied().meta.last_log_id.map_or(0, |log_id| log_id.index);
        if index < quarantine.at || index > seen {
            return Err(io::Error::other(format!(
                "the snapshot reaches {index}, which is not between {} and {seen}",
                quarantine.at
            )));
        }
        let limits = LimitsInForce::read(&header).map_err(io::Error::other)?;
        let Accepted { state, registry } = accepted;
        self.adopt(file, state).await?;
        self.divergence.restored(snapshot::origin(&header), index);
        self.time.observe(header.time_ms);
        let machine = self.replaying(HostState { meta, registry, limits });
        self.repair =
            Some(Repair { machine: Box::new(machine), from: index, next: index + 1, quarantine });
        Ok(())
    }

    /// Applies some of the entries after the snapshot that started the repair. The last of them
    /// brings the state machine to the position that openraft assumes, and ends the quarantine.
    ///
    /// Returns `None` then. Otherwise returns the index of the last entry that was fed to the
    /// worker. The caller waits until the primary has applied it, so that openraft's task
    /// never waits for the primary.
    pub(crate) async fn repair(&mut self) -> io::Result<Option<u64>> {
        let seen = self.applied().meta.last_log_id.map_or(0, |log_id| log_id.index);
        let Some(mut repair) = self.repair.take() else {
            return Ok(None); // A leader's snapshot with a higher index has replaced the state.
        };
        if repair.next <= seen {
            repair.next = repair.machine.replay(repair.next, seen).await?;
            if self.divergence.quarantine() != Some(repair.quarantine) {
                return Err(io::Error::other("the peer's state has diverged as well"));
            }
        }
        if repair.next <= seen {
            let reached = repair.next - 1;
            self.repair = Some(repair);
            return Ok(Some(reached));
        }
        let applied = repair.machine.applied().clone();
        *self.applied() = applied;
        self.divergence.resume();
        self.components.note_change();
        self.divergence.repaired(repair.from);
        Ok(None)
    }

    /// Returns a copy of this state machine with its own host state, which also
    /// applies entries in quarantine.
    fn replaying(&self, applied: HostState) -> Self {
        Self {
            worker: self.worker.clone(),
            log: self.log.clone(),
            snapshots: self.snapshots.clone(),
            identity: self.identity.clone(),
            components: self.components.clone(),
            applied: Arc::new(Mutex::new(applied)),
            building: self.building.clone(),
            divergence: self.divergence.clone(),
            state_hashes: self.state_hashes.clone(),
            time: self.time.clone(),
            configured: self.configured,
            transfers: self.transfers.clone(),
            replays: true,
            repair: None,
        }
    }

    /// Applies log entries from `from` to `to`, at most as many as fit into one step. Returns the
    /// index after the last one.
    async fn replay(&self, from: u64, to: u64) -> io::Result<u64> {
        let log = self.log.clone();
        let end = (to + 1).min(from.saturating_add(REPLAY_COUNT_MAX));
        let reading = spawn_blocking(move || log.entries(from..end, REPLAY_BYTES_MAX));
        let entries = reading.await.map_err(io::Error::other)??;
        match entries.first() {
            Some(first) if first.log_id.index == from => {}
            _ => return Err(io::Error::other(format!("entry {from} is not in the log"))),
        }
        let next = from + entries.len() as u64;
        self.run(entries.into_iter().map(|entry| Ok((entry, None)))).await?;
        Ok(next)
    }
}
