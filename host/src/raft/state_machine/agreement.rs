//! What the log says about agreement, and how a machine that does not agree is replaced.

use std::{io, sync::Arc};

use openraft::storage::EntryResponder;

use super::{PendingEntry, StateMachine};
use crate::{
    raft::{command::now_ms, snapshot},
    storage::SnapshotFile,
    types::{
        self, Checkpoint,
        convert::snapshot_meta_from_wire,
        raft::{Payload, StoredMembership, TypeConfig},
    },
};

/// Entries read at once to be applied after a healing.
const REPLAY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Nobody waits any more for a verification that is older: a node that replays its log passes it over.
const VERIFY_WITHIN_MS: u64 = 5 * 60 * 1000;

impl StateMachine {
    /// Compares the machine's digest with the majority's. The head has to come this far first, which no write
    /// notices: there is a checkpoint in seconds.
    pub(super) async fn compare(
        &self,
        pending: PendingEntry,
        checkpoint: Checkpoint,
    ) -> io::Result<()> {
        let PendingEntry { index, responder, .. } = pending;
        self.hand_over(vec![(index, None, None)]).await?;
        if self.divergence.compares() {
            let own = self.worker.digest_at(checkpoint.index).await.map_err(io::Error::other)?;
            self.divergence.compare(index, checkpoint, own);
        }
        if let Some(responder) = responder {
            responder.send(types::Applied { index, outcome: None });
        }
        Ok(())
    }

    /// Has the state hashed as it is after this entry.
    pub(super) async fn verify(&self, pending: PendingEntry) -> io::Result<()> {
        let PendingEntry { index, time_ms, responder } = pending;
        self.hand_over(vec![(index, None, None)]).await?;
        if time_ms.abs_diff(now_ms()) < VERIFY_WITHIN_MS {
            Arc::clone(&self.divergence).hash_state(&self.worker, index);
        }
        if let Some(responder) = responder {
            responder.send(types::Applied { index, outcome: None });
        }
        Ok(())
    }

    /// In quarantine nothing is applied. openraft has to know the members all the same; everything else
    /// comes again when the machine is healed. Who waits for an outcome learns that it is lost.
    pub(super) fn pass_over(&self, (entry, _responder): EntryResponder<TypeConfig>) {
        let mut applied = self.applied();
        if let Payload::Membership(membership) = entry.payload {
            let stored = StoredMembership::new(Some(entry.log_id), membership);
            applied.meta.last_membership = stored;
        }
        applied.meta.last_log_id = Some(entry.log_id);
    }

    /// Replaces the machine's state by that of a peer, and applies what the log has after it: from then on the
    /// machine is again as far as openraft takes it to be. Called by openraft in turn with its own calls.
    ///
    /// The snapshot's file becomes the newest on disk. For a restart that is as good as one that a leader has
    /// sent: openraft installs the newest there is and goes on from there in the log, which has all that the
    /// snapshot covers.
    pub(in crate::raft) async fn heal(&mut self, file: SnapshotFile) -> io::Result<()> {
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
        self.log.synced(index).await?;
        let (saved, registry) = self.restored_state(file).await?;
        self.worker.restore(saved).await.map_err(io::Error::other)?;
        *self.applied() = super::Applied { meta, registry };
        self.divergence.resume();
        if let Err(error) = self.replay(index + 1, seen).await {
            self.divergence.stop_again();
            return Err(error);
        }
        self.modules.changed.notify_waiters();
        self.divergence.healed(index);
        Ok(())
    }

    async fn replay(&self, from: u64, to: u64) -> io::Result<()> {
        let mut next = from;
        while next <= to {
            let entries = self.log.entries(next..to + 1, REPLAY_BYTES_MAX)?;
            match entries.first() {
                Some(first) if first.log_id.index == next => {}
                _ => return Err(io::Error::other(format!("entry {next} is not in the log"))),
            }
            next += entries.len() as u64;
            self.run(entries.into_iter().map(|entry| Ok((entry, None)))).await?;
        }
        Ok(())
    }
}
