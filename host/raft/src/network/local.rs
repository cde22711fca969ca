//! This node's identity towards its peers, and its persistent records about them.
//!
//! Two facts about each peer are kept on disk:
//!
//! * its *incarnation*: a peer with another incarnation has a new data directory, and has
//!   lost its log and votes;
//! * its *acknowledgement* to this node as its leader: a vote, and the highest log id under it. If
//!   a peer's process started with less, its data directory is an old copy. Such a peer could elect
//!   a leader without entries that were committed with its help, so it is rejected and stops.
//!
//! See [`super::standing`] for the comparison.
//!
//! In memory the acknowledgements are exact. They are written and synced every 200 ms, with a batch
//! of the log if there is one. So if this node is killed or loses power, it forgets at most the
//! acknowledgements of the last 200 ms and of the time of two syncs.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prost::Message;
use tokio::{sync::watch, time::sleep};

use super::standing::{Acknowledged, Standing};
use crate::{disk::DiskWatch, timing::Timing};
use conclave_proto::raft as wire;
use conclave_storage::{
    BatchWindow, Identity, LogStore,
    raft_types::{LogId, Vote},
};
use conclave_types::{NodeId, duration};

/// The interval at which new acknowledgements are written.
const WRITE_INTERVAL: Duration = Duration::from_millis(200);
/// The metadata entry that marks this directory as an old copy. Its value is the reason.
const LOST: &str = "lost";

#[derive(Clone, Copy)]
struct Remembered {
    acknowledged: Acknowledged,
    written: bool,
}

/// This node's identity towards its peers, and its records about them.
pub struct Local {
    /// The identity in the data directory.
    pub identity: Identity,
    /// The engine's fingerprint.
    pub engine: String,
    /// The limits on the round trips to the peers.
    pub timing: Timing,
    /// The vote and the log with which this process started.
    pub standing: Standing,
    /// The log, whose metadata entries hold the records.
    log: LogStore,
    /// Detects that this node's disk hangs.
    pub(super) disk: DiskWatch,
    /// The incarnations of peers that were contacted before the cluster was initialized.
    met: Mutex<HashMap<NodeId, Vec<u8>>>,
    /// The peers' engines, as last reported.
    engines: Mutex<HashMap<NodeId, String>>,
    acknowledged: Mutex<HashMap<NodeId, Remembered>>,
    /// The reason why this node must no longer take part, if any.
    lost: watch::Sender<Option<String>>,
}

fn incarnation_record(node_id: NodeId) -> String {
    format!("peer/{node_id}/incarnation")
}

fn acknowledged_record(node_id: NodeId) -> String {
    format!("peer/{node_id}/acknowledged")
}

impl Local {
    /// Opens the records about the peers.
    ///
    /// # Errors
    /// Fails if the metadata is malformed, or if a peer has detected that this directory is an old copy.
    pub fn open(
        identity: Identity,
        engine: String,
        timing: Timing,
        standing: Standing,
        log: LogStore,
        disk: DiskWatch,
    ) -> io::Result<Self> {
        if let Some(reason) = log.get_record(LOST)? {
            return Err(io::Error::other(String::from_utf8_lossy(&reason).into_owned()));
        }
        let mut acknowledged = HashMap::new();
        for (name, value) in log.list_records("peer/")? {
            let Some(node_id) = name
                .strip_prefix("peer/")
                .and_then(|rest| rest.strip_suffix("/acknowledged"))
                .and_then(|node_id| node_id.parse().ok())
            else {
                continue;
            };
            let known = wire::Acknowledged::decode(&value[..]).ok();
            let known = known.as_ref().and_then(Acknowledged::from_wire).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("metadata entry {name} is malformed"),
                )
            })?;
            acknowledged.insert(node_id, Remembered { acknowledged: known, written: true });
        }
        Ok(Self {
            identity,
            engine,
            timing,
            standing,
            log,
            disk,
            met: Mutex::default(),
            engines: Mutex::default(),
            acknowledged: Mutex::new(acknowledged),
            lost: watch::Sender::new(None),
        })
    }

    /// See [`LogStore::voted_term`].
    pub(super) fn voted_term(&self) -> u64 {
        self.log.voted_term()
    }

    pub(super) fn pace(&self) -> BatchWindow {
        self.log.pace()
    }

    /// Checks a peer's incarnation, and records it permanently once the cluster is
    /// initialized. After that, the same node id with another incarnation is a node that lost
    /// its log, and with it the votes that it granted. Before, there are no votes to lose, and
    /// a directory may be created again.
    fn recognise(&self, node_id: NodeId, incarnation: &[u8]) -> Result<(), String> {
        let record = incarnation_record(node_id);
        // Two peers that present the same id at the same time are checked one after the other.
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.log.get_record(&record).map_err(|error| error.to_string())?;
        if known.is_none() && !self.is_initialized() {
            met.insert(node_id, incarnation.to_vec());
            return Ok(());
        }
        match known.as_ref().or_else(|| met.get(&node_id)) {
            Some(known) if known != incarnation => {
                return Err(format!(
                    "node {node_id} came back with another data directory than the one it joined \
                     with, so it has lost its log and its votes: put its newest data directory back. The cluster \
                     works without it while a majority of the members runs"
                ));
            }
            _ => {}
        }
        if known.is_none() {
            let written = self.log.put_record(&record, Some(incarnation.to_vec()));
            written.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Records the peers that were contacted before the cluster was initialized, once it is.
    fn write_met(&self) -> io::Result<()> {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        if met.is_empty() || !self.is_initialized() {
            return Ok(());
        }
        for (node_id, incarnation) in met.drain() {
            let record = incarnation_record(node_id);
            if self.log.get_record(&record)?.is_none() {
                self.log.put_record(&record, Some(incarnation))?;
            }
        }
        Ok(())
    }

    /// Logs a warning once for each different engine of a peer.
    pub(super) fn compare_engine(&self, node_id: NodeId, theirs: &str) {
        let mut known = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.entry(node_id).or_insert_with(|| self.engine.clone());
        if known == theirs {
            return;
        }
        theirs.clone_into(known);
        if theirs != self.engine {
            tracing::warn!(
                node = node_id,
                theirs,
                ours = self.engine,
                "engines differ in processor, version or limits: calls that reach a limit may have \
                 other outcomes on that node"
            );
        }
    }

    /// Checks the data that a peer presents, on either side of a handshake.
    pub fn check(
        &self,
        node_id: NodeId,
        incarnation: &[u8],
        component_id: &[u8],
        lease_ms: u64,
        restore_id: &[u8],
    ) -> Result<(), String> {
        if restore_id != self.restore_id() {
            return Err(format!(
                "node {node_id} and node {} were not restored from the same backup, or not for the same members: make \
                 the data directories of all nodes with `conclave restore`, from the same file and with the same \
                 --cluster-id and --member",
                self.identity.node_id
            ));
        }
        // A leader's lease reads depend on the time for which its followers grant no vote.
        let lease = self.lease_ms();
        let election_max =
            |lease_ms: u64| duration::text(Duration::from_millis(lease_ms.saturating_mul(2)));
        if lease_ms != 0 && lease_ms != lease {
            return Err(format!(
                "node {node_id} has an election_max of {}, but node {} has {}: set the same value on every node",
                election_max(lease_ms),
                self.identity.node_id,
                election_max(lease)
            ));
        }
        if component_id != self.identity.component_id.0 {
            return Err(format!(
                "node {node_id} started with component {}, this node with {}: start every node of a cluster \
                 with the same component (--component), and use `conclave component push` for later ones",
                hex::encode(component_id),
                self.identity.component_id
            ));
        }
        self.recognise(node_id, incarnation)
    }

    /// Returns the id of the restore that made this node's directory; empty if none did.
    pub(super) fn restore_id(&self) -> &[u8] {
        self.identity.restored.as_ref().map_or(&[], |restored| &restored.restore_id)
    }

    /// Returns whether this node has, or had, an entry of the cluster's log.
    fn is_initialized(&self) -> bool {
        self.log.extent().last.is_some()
    }

    pub(super) fn lease_ms(&self) -> u64 {
        self.timing.lease().as_millis() as u64
    }

    fn remembered(&self) -> MutexGuard<'_, HashMap<NodeId, Remembered>> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rejects a peer whose process started with less than it had acknowledged to this node.
    pub(super) fn check_standing(
        &self,
        node_id: NodeId,
        standing: &wire::Standing,
    ) -> Result<(), String> {
        let Some(known) = self.remembered().get(&node_id).map(|known| known.acknowledged) else {
            return Ok(());
        };
        let standing = Standing::from_wire(standing);
        if !known.is_lost_by(&standing) {
            return Ok(());
        }
        let text = |last: Option<LogId>| match last {
            Some(last) => format!("entry {} of term {}", last.index, last.leader_id.term),
            None => "an empty log".to_owned(),
        };
        let term = |vote: Option<Vote>| vote.map_or(0, |vote| vote.leader_id.term);
        Err(format!(
            "node {node_id} has an old copy of its data directory: it acknowledged {} to node {} in term {}, but \
             started with {} and a vote of term {}. It must not take part, because it could elect a leader \
             without acknowledged writes. Stop it and put its newest data directory back. The cluster works \
             without it while a majority of the members runs",
            text(known.last),
            self.identity.node_id,
            term(Some(known.vote)),
            text(standing.last),
            term(standing.vote),
        ))
    }

    /// Records a peer's acknowledgement, to this node as the leader with `vote`, that
    /// entries are on stable storage.
    pub(super) fn note_acknowledged(
        &self,
        node_id: NodeId,
        vote: Vote,
        last: Option<LogId>,
        process: u64,
    ) {
        let later = Acknowledged { vote, last, process };
        let mut remembered = self.remembered();
        match remembered.get_mut(&node_id) {
            Some(known) => {
                if known.acknowledged.advance(later) {
                    known.written = false;
                }
            }
            None => {
                remembered.insert(node_id, Remembered { acknowledged: later, written: false });
            }
        }
    }

    /// Returns whether a peer has acknowledged this index to this node as the leader with `vote`.
    pub(super) fn has_acknowledged(&self, node_id: NodeId, vote: &Vote, index: u64) -> bool {
        self.remembered().get(&node_id).is_some_and(|known| {
            known.acknowledged.vote == *vote
                && known.acknowledged.last.is_some_and(|last| last.index >= index)
        })
    }

    /// Writes and syncs new records about the peers.
    pub(crate) fn write_acknowledged(&self) -> io::Result<()> {
        self.write_met()?;
        let mut is_new = false;
        for (node_id, known) in self.remembered().iter_mut().filter(|(_, known)| !known.written) {
            let value = known.acknowledged.to_wire().encode_to_vec();
            self.log.put_record(&acknowledged_record(*node_id), Some(value))?;
            known.written = true;
            is_new = true;
        }
        if is_new { self.log.sync_records() } else { Ok(()) }
    }

    /// Returns the reason why this node must no longer take part: a peer has detected that its data
    /// directory is an old copy.
    pub(crate) fn lost(&self) -> Option<String> {
        self.lost.borrow().clone()
    }

    /// Returns that reason and its changes.
    pub(crate) fn watch_lost(&self) -> watch::Receiver<Option<String>> {
        self.lost.subscribe()
    }

    /// Records that a peer remembers more of this node than its data directory contains. From now
    /// on this process neither sends nor responds, and no process starts from this directory again.
    pub(super) fn condemn(&self, by: NodeId, reason: &str) {
        let first = self.lost.send_if_modified(|lost| {
            let first = lost.is_none();
            if first {
                *lost = Some(format!("refused by node {by}: {reason}"));
            }
            first
        });
        if !first {
            return;
        }
        let reason = self.lost().unwrap_or_default();
        tracing::error!(reason, "this node no longer takes part in the cluster");
        if let Err(error) = self.log.put_record(LOST, Some(reason.into_bytes())) {
            tracing::error!(%error, "cannot record that this data directory is an old copy");
        }
    }
}

/// Writes new acknowledgements every 200 ms, until the store fails.
pub(crate) async fn write_acknowledged(local: Arc<Local>) {
    loop {
        sleep(WRITE_INTERVAL).await;
        // A store that has failed reports that itself.
        if local.write_acknowledged().is_err() {
            return;
        }
    }
}
