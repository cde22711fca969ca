//! What the log says about agreement, and how a machine that does not agree is replaced.

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

/// Entries applied in one turn of a repair: some milliseconds of work for the head.
const REPLAY_BYTES_MAX: usize = 1024 * 1024;
const REPLAY_COUNT_MAX: u64 = 1024;
/// Nobody waits any more for a verification that is older: a node that replays its log passes it over.
const VERIFY_WITHIN: Duration = Duration::from_secs(5 * 60);

/// A healthy state on its way to where openraft takes the machine to stand.
pub(super) struct Repair {
    machine: Box<StateMachine>,
    /// The snapshot's index.
    from: u64,
    /// The next entry to apply.
    next: u64,
    quarantine: Quarantine,
}

impl StateMachine {
    /// Compares the machine's digest with the majority's. The head has to come this far first, which no write
    /// notices: there is a consistency check in seconds.
    pub(super) async fn compare(
        &self,
        pending: PendingEntry,
        consistency_check: ConsistencyCheck,
    ) -> io::Result<()> {
        let PendingEntry { index, responder, .. } = pending;
        self.hand_over(vec![(index, None, None)]).await?;
        let ConsistencyCheck { version, begins, digest, .. } = consistency_check;
        if version != DIGEST_VERSION {
            // Of another version of Conclave: its digest says nothing of this one's.
        } else if begins {
            self.worker.begin_digest(index, digest).await.map_err(io::Error::other)?;
        } else if self.divergence.compares() {
            let own =
                self.worker.digest_at(consistency_check.index).await.map_err(io::Error::other)?;
            self.divergence.compare(index, consistency_check, own);
            if self.divergence.is_stopped() {
                // After calls are refused, so that no subscription slips through.
                self.worker.end_watchers();
            }
        }
        if let Some(responder) = responder {
            responder.send(types::Receipt { index, outcome: None });
        }
        Ok(())
    }

    /// Has the state hashed as it is after this entry.
    pub(super) async fn verify(&self, pending: PendingEntry) -> io::Result<()> {
        let PendingEntry { index, time_ms, responder } = pending;
        self.hand_over(vec![(index, None, None)]).await?;
        if self.time.is_within(time_ms, VERIFY_WITHIN) {
            let hashing = Arc::clone(&self.divergence).hash_state(&self.worker, index);
            self.building.supervisor.spawn("state hash", hashing);
        }
        if let Some(responder) = responder {
            responder.send(types::Receipt { index, outcome: None });
        }
        Ok(())
    }

    /// In quarantine nothing is applied. openraft has to know the members all the same; everything else
    /// comes again when the machine is repaired. Who waits for an outcome learns that it is lost.
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

    /// Puts an accepted snapshot of a peer in the place of the diverged state. Entries are passed over as
    /// before; [`StateMachine::repair`] applies what the log has after the snapshot. Called by openraft in turn
    /// with its own calls.
    ///
    /// The snapshot's file becomes the newest on disk. For a restart that is as good as one that a leader has
    /// sent: openraft installs the newest there is and continues from there in the log, which has all that
    /// the snapshot covers.
    pub(crate) async fn begin_healing(
        &mut self,
        file: SnapshotFile,
        accepted: Accepted,
    ) -> io::Result<()> {
        let Some(quarantine) = self.divergence.quarantine() else {
            return Ok(()); // A leader's snapshot was faster.
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
        let machine = self.replaying(super::HostState { meta, registry, limits });
        self.repair =
            Some(Repair { machine: Box::new(machine), from: index, next: index + 1, quarantine });
        Ok(())
    }

    /// Applies some of the entries after the snapshot that a repair began with. With the last of them the
    /// machine is again as far as openraft takes it to be, and the quarantine ends. `None`: that is so. Else
    /// the index up to which the entries were handed over: the caller waits until the head has applied
    /// them, so that no turn waits for the head.
    pub(crate) async fn repair(&mut self) -> io::Result<Option<u64>> {
        let seen = self.applied().meta.last_log_id.map_or(0, |log_id| log_id.index);
        let Some(mut repair) = self.repair.take() else {
            return Ok(None); // A leader's snapshot has replaced the state, and its index is beyond.
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
        self.components.changed.notify_waiters();
        self.divergence.repaired(repair.from);
        Ok(None)
    }

    /// The same machine with an account of its own of what has been applied, which applies also in quarantine.
    fn replaying(&self, applied: super::HostState) -> Self {
        Self {
            worker: self.worker.clone(),
            log: self.log.clone(),
            snapshots: self.snapshots.clone(),
            identity: self.identity.clone(),
            components: self.components.clone(),
            applied: Arc::new(Mutex::new(applied)),
            building: self.building.clone(),
            divergence: self.divergence.clone(),
            time: self.time.clone(),
            configured: self.configured,
            transfers: self.transfers.clone(),
            replays: true,
            repair: None,
        }
    }

    /// Applies entries of the log from `from` on, up to `to` or as many as one turn may have. Returns the index
    /// after the last one.
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
