//! Restoring of backups: into an instance, to verify them, and into the directories of a new cluster.
//!
//! # Contract
//! - A restored directory has the backup's state as its newest snapshot, and no log. The snapshot
//!   stands at the backup's index in term 0, before the first term of the new cluster. So the index,
//!   the digest and the time continue, and the terms begin at 1.
//! - Replaced: the cluster id, the members and the last log id. Kept: components, limits, time,
//!   digest, origin, and the seed of the state machine's randomness. Metadata entries of the old
//!   nodes (votes, acknowledgements, traps) are not in a backup, and concern entries that the
//!   snapshot covers.
//! - The *restore id* is a hash over the backup, the new cluster id and the members. Nodes compare it
//!   in their handshake, so nodes of different backups form no cluster.

use std::{
    collections::BTreeMap,
    io::Read,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use prost::Message;

use crate::{
    limits::LimitsInForce,
    registry::Registry,
    settings::Member as InitialMember,
    snapshot::{digest, unreadable},
};
use conclave_machine::{Component, Engine, EntrySourceError, Rehearsal, SavedState, rehearse};
use conclave_proto::{backup::Contents, raft::SnapshotHeader};
use conclave_storage::{
    Backup, BackupError, RestoreTarget, Restored, Restoring, SnapshotWriter,
    convert::{log_id_to_wire, stored_membership_to_wire},
    raft_types::{LogId, Member, Membership, StoredMembership},
};
use conclave_types::ComponentId;

/// The reason why a backup cannot be verified or restored.
#[derive(Debug, thiserror::Error)]
pub enum NotRestored {
    /// The backup cannot be read.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// A directory cannot be made.
    #[error(transparent)]
    Storage(#[from] conclave_storage::Error),
    /// The backup is intact, but its state cannot be used.
    #[error("the state in the backup cannot be restored: {0}")]
    State(String),
}

/// The result of verifying a backup.
#[derive(Clone, Debug)]
pub struct VerifiedBackup {
    /// The time and the memory that restoring the state took.
    pub rehearsal: Rehearsal,
    /// The number of components in the backup.
    pub components: usize,
}

/// The result of restoring a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoredCluster {
    /// The index of the state, after which the new cluster's log begins.
    pub index: u64,
    /// The active component.
    pub component: ComponentId,
    /// Identifies the backup, the new cluster and its members.
    pub restore_id: [u8; 32],
}

/// A backup's contents before its chunks.
struct Start {
    header: SnapshotHeader,
    seed: [u8; 32],
}

fn start<R: Read>(backup: &Backup<R>) -> Result<Start, BackupError> {
    let contents = Contents::decode(backup.contents().clone());
    let contents = contents.map_err(|error| backup.damaged(error.to_string()))?;
    let header = SnapshotHeader::decode(contents.snapshot);
    let header = header.map_err(|error| backup.damaged(error.to_string()))?;
    let index = header.last_log_id.as_ref().map_or(0, |log_id| log_id.index);
    if index != backup.info().index || header.component_id != backup.info().component_id.0[..] {
        return Err(backup.damaged("its header contradicts its contents"));
    }
    let seed = contents.seed.as_ref().try_into();
    let seed = seed.map_err(|_| backup.damaged("its seed has the wrong length"))?;
    Ok(Start { header, seed })
}

/// Reads the components at the beginning of the chunks.
fn registry<R: Read>(
    header: &SnapshotHeader,
    backup: &mut Backup<R>,
) -> Result<Registry, NotRestored> {
    // The registry's error has no room for the cause, which names the file.
    let mut failed = None;
    let chunks = std::iter::from_fn(|| match backup.next()? {
        Ok(chunk) => Some(Ok(chunk)),
        Err(error) => {
            failed = Some(error);
            Some(Err("the backup cannot be read"))
        }
    });
    let read = Registry::read(header, chunks);
    match (read, failed) {
        (_, Some(error)) => Err(error.into()),
        (Ok(Some(registry)), None) => Ok(registry),
        (Ok(None), None) => Err(backup.damaged("it contains no components").into()),
        (Err(error), None) => Err(backup.damaged(error.to_string()).into()),
    }
}

/// Authenticates a whole backup, and restores its state into a new instance of its component.
/// Blocking: compiles the component.
///
/// # Errors
/// The backup is damaged, or its component does not run here or rejects the state.
pub fn verify_backup<R: Read + Send + 'static>(
    mut backup: Backup<R>,
    engine: &Engine,
) -> Result<VerifiedBackup, NotRestored> {
    let Start { header, seed } = start(&backup)?;
    let registry = registry(&header, &mut backup)?;
    let state = |error: &dyn std::fmt::Display| NotRestored::State(error.to_string());
    let active = registry.active();
    let bytes = registry.get(&active).map(|known| known.bytes.clone()).unwrap_or_default();
    let component = Component::load(engine, bytes)
        .map_err(|error| NotRestored::State(format!("component {active}: {error}")))?;
    let whole = Arc::new(Mutex::new(Reading { backup, failed: None }));
    let saved = SavedState {
        component: component.clone(),
        index: header.last_log_id.as_ref().map_or(0, |log_id| log_id.index),
        time_ms: header.time_ms,
        limits: LimitsInForce::read(&header).map_err(|error| state(&error))?.limits,
        state_version: header.state_version,
        digest: digest(&header).map_err(NotRestored::State)?,
        chunks: Box::new(Chunks(Arc::clone(&whole))),
    };
    let rehearsed = rehearse(&component, seed, saved, std::iter::empty(), || false);
    let mut reading = whole.lock().unwrap_or_else(PoisonError::into_inner);
    // An error in the file is also an error of the rehearsal, which does not name the file.
    if let Some(error) = reading.failed.take() {
        return Err(error.into());
    }
    let rehearsal = rehearsed.map_err(|error| state(&error))?;
    if let Some(chunk) = reading.backup.next() {
        chunk?;
        return Err(NotRestored::State("the component did not read all of it".to_owned()));
    }
    Ok(VerifiedBackup { rehearsal, components: registry.components().count() })
}

struct Reading<R> {
    backup: Backup<R>,
    failed: Option<BackupError>,
}

/// The rest of a backup's chunks, shared so that the backup can be examined afterwards.
struct Chunks<R>(Arc<Mutex<Reading<R>>>);

impl<R: Read> Iterator for Chunks<R> {
    type Item = Result<Bytes, EntrySourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut reading = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Some(match reading.backup.next()? {
            Ok(chunk) => Ok(chunk),
            Err(error) => {
                let text = unreadable(&error);
                reading.failed = Some(error);
                Err(text)
            }
        })
    }
}

/// Makes the data directories of nodes of a new cluster. All of them belong to the same members.
/// Blocking.
///
/// # Errors
/// The backup is damaged, or a directory is not empty or cannot be written. No directory is then
/// made, unless the disk failed after the first of several directories was finished.
pub fn restore_backup<R: Read>(
    mut backup: Backup<R>,
    cluster_id: &str,
    members: &[InitialMember],
    targets: Vec<RestoreTarget>,
) -> Result<RestoredCluster, NotRestored> {
    let Start { mut header, seed } = start(&backup)?;
    let index = backup.info().index;
    let registry = registry(&header, &mut backup)?;
    let active = registry.active();
    let component = registry.get(&active).map(|known| known.bytes.clone()).unwrap_or_default();
    let membership = membership(members, index)?;
    header.cluster_id = cluster_id.to_owned();
    header.last_log_id = Some(log_id_to_wire(&first_log_id(index)));
    header.membership = Some(stored_membership_to_wire(&membership));
    let restore_id = restore_id(backup.preamble_hash(), &header);
    let header = header.encode_to_vec();
    let mut writing = Vec::new();
    for target in targets {
        let restored = Restored { restore_id, seed };
        let restoring = Restoring::begin(target, cluster_id, &component, restored)?;
        let writer = restoring.snapshots().create(0, index, &header)?;
        writing.push((writer, restoring));
    }
    let mut write_all = |chunk: &Bytes| {
        let mut writers = writing.iter_mut();
        writers.try_for_each(|(writer, _): &mut (SnapshotWriter, Restoring)| writer.write(chunk))
    };
    for chunk in registry.chunks() {
        write_all(&chunk)?;
    }
    for chunk in backup.by_ref() {
        write_all(&chunk?)?;
    }
    // The iterator ends without an error only after the authenticated end.
    assert!(backup.is_whole(), "the end of the backup was not read");
    let mut made = Vec::new();
    for (writer, restoring) in writing {
        writer.commit()?;
        made.push(restoring);
    }
    made.into_iter().try_for_each(Restoring::finish)?;
    Ok(RestoredCluster { index, component: active, restore_id })
}

/// The log id of the restored state, before the first term of the new cluster.
fn first_log_id(index: u64) -> LogId {
    LogId::new_term_index(0, index)
}

fn membership(members: &[InitialMember], index: u64) -> Result<StoredMembership, NotRestored> {
    let nodes: BTreeMap<_, _> = members
        .iter()
        .map(|member| {
            let InitialMember { node_id, peer_address, client_address } = member.clone();
            (node_id, Member { peer_address, client_address })
        })
        .collect();
    let voters = nodes.keys().copied().collect();
    let membership = Membership::new(vec![voters], nodes);
    let membership = membership.map_err(|error| NotRestored::State(error.to_string()))?;
    Ok(StoredMembership::new(Some(first_log_id(index)), membership))
}

/// Returns the hash over the backup, the new cluster's id and its members.
fn restore_id(preamble_hash: [u8; 32], header: &SnapshotHeader) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("conclave 2026 restore id");
    hasher.update(&preamble_hash);
    let members = header.membership.as_ref().map(Message::encode_to_vec).unwrap_or_default();
    for field in [header.cluster_id.as_bytes(), &members] {
        hasher.update(&(field.len() as u64).to_be_bytes()).update(field);
    }
    *hasher.finalize().as_bytes()
}
