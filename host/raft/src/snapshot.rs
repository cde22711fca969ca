//! Snapshots: saved from the state machine to a file, sent to a peer, received from a peer.
//!
//! [`policy`] decides when a snapshot is taken, and [`taking`] takes one on request. [`sending`] is
//! the leader's side of a transfer, [`receiving`] the follower's, within the limits of [`room`].
//! [`keeping`] purges the log as far as no follower needs it. [`backup`] takes a snapshot out of the
//! cluster, and makes a new cluster from it.

pub mod backup;
mod keeping;
mod policy;
mod receiving;
mod room;
mod sending;
mod taking;

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::Stream;
use openraft::{Snapshot, type_config::alias::SnapshotOf};
use prost::Message;
use tokio::{sync::mpsc, task::spawn_blocking, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

pub(super) use self::{
    keeping::{Admission, keep_log},
    policy::{Growth, watch_growth},
    receiving::{Offered, Receiving},
    sending::{Failure, Transfers, offer},
    taking::Snapshots,
};
use super::{components::Components, host_state::HostState, limits::LimitsInForce};
use crate::registry::Registry;
use conclave_machine::{EntrySourceError, Restored, SavedState, StateStream, Worker};
use conclave_proto::{
    convert::digest_from_wire,
    raft::{SnapshotHeader, SnapshotPart, SnapshotStart, snapshot_part::Part},
};
use conclave_storage::{
    Identity, LogStore, SnapshotFile, SnapshotStore,
    convert::{log_id_to_wire, snapshot_meta_from_wire, stored_membership_to_wire, vote_to_wire},
    raft_types::{LogId, TypeConfig, Vote},
};
use conclave_types::{DIGEST_VERSION, Digest, NodeId, limits::ClusterLimits};

/// The number of parts in memory at once, on either side of a transfer. Each is at most 1 MiB.
const PARTS_IN_FLIGHT: usize = 4;

/// A snapshot as openraft passes it between calls.
#[derive(Debug)]
pub struct SnapshotData {
    pub(super) file: SnapshotFile,
    /// The state in new instances, if the file was received from a peer.
    pub(super) accepted: Option<Box<Accepted>>,
}

/// A snapshot's state that the state machine has accepted, and the registry from the same file.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) state: Restored,
    pub(super) registry: Registry,
}

/// The time within which a peer must send the next bytes of a snapshot that was requested from it.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// openraft's type of a snapshot with its data.
pub(super) type OpenSnapshot = SnapshotOf<TypeConfig, SnapshotData>;

/// Restores a snapshot into new instances beside the running ones. This may take long, but delays
/// no other work. The file keeps its temporary name.
pub(super) async fn accept(
    file: &SnapshotFile,
    worker: &Worker,
    components: &Arc<Components>,
) -> io::Result<Accepted> {
    let (file, components) = (file.clone(), components.clone());
    let reading = spawn_blocking(move || saved_state(&file, &components));
    let (saved, registry) = reading.await.map_err(io::Error::other)??;
    let state = worker.prepare(saved).await.map_err(io::Error::other)?;
    Ok(Accepted { state, registry })
}

/// Decodes the header of a snapshot file.
pub(super) fn header(file: &SnapshotFile) -> io::Result<SnapshotHeader> {
    SnapshotHeader::decode(file.header().clone()).map_err(|error| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the header of a snapshot is malformed: {error}"),
        )
    })
}

/// Returns a snapshot file in the form that openraft uses.
pub(super) fn opened(file: SnapshotFile) -> io::Result<OpenSnapshot> {
    let meta = snapshot_meta_from_wire(&header(&file)?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Snapshot { meta, snapshot: SnapshotData { file, accepted: None } })
}

/// Returns the contents of a snapshot: the state with its component, which is compiled if
/// necessary, and the registry. Blocking.
pub fn saved_state(
    file: &SnapshotFile,
    components: &Components,
) -> io::Result<(SavedState, Registry)> {
    let invalid = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
    let header = header(file)?;
    let mut chunks = file.read().map_err(io::Error::other)?;
    let registry = Registry::read(&header, &mut chunks);
    let registry = match registry.map_err(|error| invalid(error.to_string()))? {
        Some(registry) => registry,
        None => components.begin(),
    };
    let active = registry.active();
    if header.component_id != active.0.as_slice() {
        let found = hex::encode(&header.component_id);
        return Err(invalid(format!(
            "the snapshot's state belongs to component {found}, which is not the active one in its registry"
        )));
    }
    let bytes = registry.get(&active).map(|known| known.bytes.clone()).unwrap_or_default();
    let component = components.compile(active, &bytes).map_err(|error| {
        io::Error::other(format!(
            "component {active}, to which the snapshot's state belongs: {error}"
        ))
    })?;
    let saved = SavedState {
        component,
        index: header.last_log_id.as_ref().map_or(0, |log_id| log_id.index),
        time_ms: header.time_ms,
        limits: LimitsInForce::read(&header).map_err(|error| invalid(error.to_string()))?.limits,
        state_version: header.state_version,
        digest: digest(&header).map_err(invalid)?,
        chunks: Box::new(chunks.map(|chunk| chunk.map_err(unreadable))),
    };
    Ok((saved, registry))
}

/// Returns the voters at the time of a snapshot.
///
/// # Errors
/// Fails if the snapshot's header is malformed.
pub fn voters(file: &SnapshotFile) -> io::Result<BTreeSet<NodeId>> {
    let meta = opened(file.clone())?.meta;
    Ok(meta.last_membership.membership().voter_ids().collect())
}

pub(super) fn unreadable(error: impl std::fmt::Display) -> EntrySourceError {
    EntrySourceError::Unreadable(error.to_string())
}

/// Returns the last log id of the log, or of the newest snapshot if that is higher.
pub(super) fn last_log_id(log: &LogStore, snapshots: &SnapshotStore) -> io::Result<Option<LogId>> {
    let newest = snapshots.latest().map_err(io::Error::other)?;
    let newest = newest.map(|file| LogId::new_term_index(file.term(), file.index()));
    Ok(log.extent().last.max(newest))
}

/// Rejects a snapshot of another cluster.
pub(super) fn check_header(header: &SnapshotHeader, identity: &Identity) -> Result<(), String> {
    if header.cluster_id != identity.cluster_id {
        return Err(format!(
            "the snapshot belongs to cluster {}, this node to cluster {}",
            header.cluster_id, identity.cluster_id
        ));
    }
    Ok(())
}

/// Returns the digest in a header. `None`: it has none, or one of another version's algorithm.
pub(super) fn digest(header: &SnapshotHeader) -> Result<Option<Digest>, String> {
    if header.digest_version != DIGEST_VERSION {
        return Ok(None);
    }
    digest_from_wire(&header.digest).map_err(|error| error.to_string())
}

/// Sets the origin of the state in a peer's snapshot to the peer, if an older version
/// saved it without an origin.
pub(super) fn note_origin(header: &mut SnapshotHeader, from: NodeId) {
    if header.origin == 0 {
        header.origin = from;
    }
}

/// Returns the node that computed the state. `None`: the header has no origin.
pub(super) fn origin(header: &SnapshotHeader) -> Option<NodeId> {
    (header.origin != 0).then_some(header.origin)
}

/// Rejects a snapshot that openraft could not install, before it is received. The header must name
/// the last entry and the members, and its leader cannot have had entries of later leaders.
pub(super) fn check_coverage(header: &SnapshotHeader, leader: &Vote) -> Result<(), String> {
    let meta = snapshot_meta_from_wire(header).map_err(|error| error.to_string())?;
    let last = meta.last_log_id.ok_or("the snapshot's header has no last log id")?;
    if last.leader_id.term > leader.leader_id.term {
        return Err(format!(
            "the snapshot covers the log up to {last}, whose term is later than its leader's term {}",
            leader.leader_id.term
        ));
    }
    if meta.last_membership.log_id().is_none_or(|log_id| log_id > last) {
        return Err(format!(
            "the header of the snapshot at {last} does not name the members at that entry"
        ));
    }
    Ok(())
}

/// Rejects a snapshot that contradicts this node's committed entries. At each index at most one log
/// id is committed (State Machine Safety; Raft thesis, section 3.6.3). So a snapshot with a higher
/// log id must have a higher index. openraft asserts this.
pub(super) fn check_committed(last: LogId, committed: Option<LogId>) -> Result<(), String> {
    match committed {
        Some(committed) if last > committed && last.index <= committed.index => Err(format!(
            "the snapshot covers the log up to {last}, but on this node {committed} is committed"
        )),
        _ => Ok(()),
    }
}

/// Writes the components and the state to a file, which is not yet installed as the newest snapshot.
pub(super) async fn save(
    snapshots: &SnapshotStore,
    identity: &Identity,
    applied: &HostState,
    mut state: StateStream,
    digest: Option<Digest>,
    origin: NodeId,
) -> io::Result<SnapshotFile> {
    let HostState { meta, registry, limits } = applied;
    if state.component().id() != registry.active() {
        // Most often another component was activated in between.
        return Err(io::Error::other("another component has become active meanwhile"));
    }
    let mut header = SnapshotHeader {
        cluster_id: identity.cluster_id.clone(),
        last_log_id: meta.last_log_id.as_ref().map(log_id_to_wire),
        membership: Some(stored_membership_to_wire(&meta.last_membership)),
        state_version: state.state_version(),
        time_ms: state.time_ms(),
        digest: digest.map(|digest| digest.0.to_vec().into()).unwrap_or_default(),
        digest_version: DIGEST_VERSION,
        origin,
        ..SnapshotHeader::default()
    };
    registry.describe(&mut header);
    limits.write(&mut header);
    let (chunks, received) = mpsc::channel(PARTS_IN_FLIGHT);
    let writing = spawn_blocking({
        let snapshots = snapshots.clone();
        move || write(&snapshots, &header, received)
    });
    let mut components = registry.chunks().into_iter();
    loop {
        let chunk = match components.next() {
            Some(chunk) => chunk,
            None => match state.next().await {
                Some(chunk) => chunk.map_err(io::Error::other)?,
                None => break,
            },
        };
        if chunks.send(Incoming::Chunk(chunk)).await.is_err() {
            break; // The writer has failed and returns the reason below.
        }
    }
    let _ = chunks.send(Incoming::End).await;
    drop(chunks);
    writing.await.map_err(io::Error::other)?
}

enum Incoming {
    Chunk(Bytes),
    End,
}

/// Writes chunks to a file. The file is completed only after `End`: a sender that
/// breaks off leaves no file.
fn write(
    snapshots: &SnapshotStore,
    header: &SnapshotHeader,
    mut chunks: mpsc::Receiver<Incoming>,
) -> io::Result<SnapshotFile> {
    let (term, index) =
        header.last_log_id.as_ref().map_or((0, 0), |log_id| (log_id.term, log_id.index));
    let mut writer =
        snapshots.create(term, index, &header.encode_to_vec()).map_err(io::Error::other)?;
    loop {
        match chunks.blocking_recv() {
            Some(Incoming::Chunk(chunk)) => writer.write(&chunk).map_err(io::Error::other)?,
            Some(Incoming::End) => return writer.finish().map_err(io::Error::other),
            None => return Err(io::Error::other("the snapshot ended too early")),
        }
    }
}

/// Returns the parts of a snapshot for a peer that requested it. If the file turns out to be
/// damaged, the stream ends without an end part, and the receiver discards the parts.
pub(super) fn send(
    vote: Vote,
    file: SnapshotFile,
    transfers: Arc<Transfers>,
) -> impl Stream<Item = SnapshotPart> + Send + use<> {
    let (parts, stream) = mpsc::channel(PARTS_IN_FLIGHT);
    spawn_blocking(move || {
        let sent = start(vote, &file).and_then(|start| {
            parts.blocking_send(start).map_err(io::Error::other)?;
            sending::send_chunks(&file, None, &parts, &transfers)
        });
        if let Err(error) = sent {
            tracing::warn!(%error, "cannot send the snapshot at index {}", file.index());
        }
    });
    ReceiverStream::new(stream)
}

/// Returns the first part of a snapshot.
fn start(vote: Vote, file: &SnapshotFile) -> io::Result<SnapshotPart> {
    let start = SnapshotStart {
        vote: Some(vote_to_wire(&vote)),
        header: Some(header(file)?),
        file_id: file.id().to_vec().into(),
        bytes: file.bytes(),
    };
    Ok(SnapshotPart { part: Some(Part::Start(start)) })
}

/// Writes a snapshot of `announced` bytes, which this node requested from a peer, to a file, sealed
/// with this node's keys. It becomes the newest snapshot only once the state machine has restored
/// it: see [`crate::state_machine`].
pub(super) async fn receive(
    header: SnapshotHeader,
    announced: u64,
    mut parts: Streaming<SnapshotPart>,
    snapshots: SnapshotStore,
    in_force: &ClusterLimits,
) -> Result<SnapshotFile, Status> {
    room::check_size(&header, announced, in_force)?;
    let (chunks, received) = mpsc::channel(PARTS_IN_FLIGHT);
    let writing = spawn_blocking(move || {
        room::check_space(&snapshots, announced)?;
        let written = write(&snapshots, &header, received);
        written.map_err(|error| Status::internal(error.to_string()))
    });
    let (mut bytes, mut hash) = (0_u64, blake3::Hasher::new());
    loop {
        let part = timeout(STALL_TIMEOUT, parts.message()).await;
        let part = part.map_err(|_| Status::deadline_exceeded("the snapshot makes no progress"))?;
        let Some(part) = part? else { break };
        let incoming = match part.part {
            Some(Part::Chunk(chunk)) => {
                bytes += chunk.len() as u64;
                if bytes > announced {
                    return Err(room::exceeds(announced));
                }
                hash.update(&chunk);
                Incoming::Chunk(chunk)
            }
            Some(Part::End(end)) => {
                if end.bytes != bytes || end.blake3 != hash.finalize().as_bytes().as_slice() {
                    return Err(Status::data_loss("the snapshot was damaged in transit"));
                }
                Incoming::End
            }
            Some(Part::Start(_) | Part::Offset(_)) | None => {
                return Err(Status::invalid_argument("the parts of the snapshot are out of order"));
            }
        };
        if chunks.send(incoming).await.is_err() {
            break; // The writer is done, or has failed and returns the reason below.
        }
    }
    drop(chunks);
    writing.await.map_err(|error| Status::internal(error.to_string()))?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::BTreeMap;

    use super::*;
    use conclave_storage::raft_types::{Member, Membership, StoredMembership};

    #[test]
    fn snapshot_that_contradicts_a_committed_entry_is_refused() {
        let at = LogId::new_term_index;
        let refused = |last, committed| check_committed(last, committed).is_err();
        assert!(!refused(at(3, 9), None) && !refused(at(3, 9), Some(at(2, 8))));
        assert!(!refused(at(3, 9), Some(at(3, 9))), "it adds nothing");
        assert!(!refused(at(2, 9), Some(at(3, 20))), "a late snapshot of an earlier leader");
        assert!(refused(at(3, 9), Some(at(2, 9))) && refused(at(3, 9), Some(at(2, 10))));
    }

    /// openraft would detect these errors only after the file had replaced a good one.
    #[test]
    fn a_snapshot_that_cannot_be_installed_is_refused() {
        let members = BTreeMap::from([(1, Member::default())]);
        let membership = Membership::new(vec![[1].into()], members).unwrap();
        let members_of =
            |log_id| stored_membership_to_wire(&StoredMembership::new(log_id, membership.clone()));
        let at = LogId::new_term_index;
        let good = SnapshotHeader {
            last_log_id: Some(log_id_to_wire(&at(3, 9))),
            membership: Some(members_of(Some(at(1, 1)))),
            ..SnapshotHeader::default()
        };
        let refused = |header: &SnapshotHeader, term| {
            check_coverage(header, &Vote::new_committed(term, 2)).is_err()
        };
        assert!(!refused(&good, 3) && !refused(&good, 4));
        assert!(refused(&good, 2), "an earlier leader");
        let with = |change: fn(&mut SnapshotHeader)| {
            let mut header = good.clone();
            change(&mut header);
            header
        };
        assert!(refused(&with(|header| header.last_log_id = None), 3));
        assert!(refused(&with(|header| header.membership = None), 3));
        assert!(refused(&with(|header| header.membership = Some(Default::default())), 3));
        let later = Some(members_of(Some(at(3, 10))));
        assert!(refused(&SnapshotHeader { membership: later, ..good.clone() }, 3));
    }
}
