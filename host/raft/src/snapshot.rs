//! Snapshots on their way: from the machine to a file, from a file to a peer, from a peer to a file.
//!
//! [`sending`] is the leader's side of a transfer, [`receiving`] the follower's. [`keeping`] purges the log, as
//! far as no follower needs it.

mod keeping;
mod receiving;
mod sending;

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures::Stream;
use openraft::{Snapshot, async_runtime::WatchReceiver, type_config::alias::SnapshotOf};
use prost::Message;
use tokio::{
    sync::mpsc,
    task::spawn_blocking,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

pub(super) use self::{
    keeping::{Admission, keep_log},
    receiving::{Offered, Receiving},
    sending::{Failure, Transfers, offer, replace_damaged},
};
use super::{
    Inner, LocalEntrySource, Replica,
    components::Components,
    limits::LimitsInForce,
    state_machine::{HostState, StateMachine},
};
use crate::{registry::Registry, settings::SnapshotPolicy};
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
use conclave_types::{DIGEST_VERSION, Digest, NodeId};

/// Parts in memory at once, on either side of a transfer: each is at most 1 MiB.
const PARTS_IN_FLIGHT: usize = 4;

/// A snapshot as openraft passes it from one call to another.
#[derive(Debug)]
pub struct SnapshotData {
    pub(super) file: SnapshotFile,
    /// The state in fresh instances, if the file was received.
    pub(super) accepted: Option<Box<Accepted>>,
}

/// A snapshot's state that the state machine has accepted, and the registry from the same file.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) state: Restored,
    pub(super) registry: Registry,
}

/// A peer that was asked for a snapshot sends the next bytes within this time.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// openraft's name for a snapshot with its data.
pub(super) type OpenSnapshot = SnapshotOf<TypeConfig, SnapshotData>;

/// Restores a snapshot into fresh instances beside the running ones. This may take long; it holds up
/// nothing. The file stays under its temporary name.
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
        io::Error::new(io::ErrorKind::InvalidData, format!("the header of a snapshot: {error}"))
    })
}

/// A snapshot file as openraft wants it.
pub(super) fn opened(file: SnapshotFile) -> io::Result<OpenSnapshot> {
    let meta = snapshot_meta_from_wire(&header(&file)?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Snapshot { meta, snapshot: SnapshotData { file, accepted: None } })
}

/// What a snapshot holds: the machine's state, with its component, compiled if it was not, and the registry.
/// Blocking.
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
            "the snapshot is of component {found}, which it does not have"
        )));
    }
    let bytes = registry.get(&active).map(|known| known.bytes.clone()).unwrap_or_default();
    let component = components.compile(active, &bytes).map_err(|error| {
        io::Error::other(format!("component {active}, whose state the snapshot is: {error}"))
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

/// Who could vote when a snapshot was taken.
///
/// # Errors
/// The snapshot's header is malformed.
pub fn voters(file: &SnapshotFile) -> io::Result<BTreeSet<NodeId>> {
    let meta = opened(file.clone())?.meta;
    Ok(meta.last_membership.membership().voter_ids().collect())
}

pub(super) fn unreadable(error: impl std::fmt::Display) -> EntrySourceError {
    EntrySourceError::Unreadable(error.to_string())
}

/// The end of the log, or of the newest snapshot if that reaches further.
pub(super) fn last_log_id(log: &LogStore, snapshots: &SnapshotStore) -> io::Result<Option<LogId>> {
    let newest = snapshots.latest().map_err(io::Error::other)?;
    let newest = newest.map(|file| LogId::new_term_index(file.term(), file.index()));
    Ok(log.extent().last.max(newest))
}

/// Refuses a snapshot that is not of this cluster.
pub(super) fn check_header(header: &SnapshotHeader, identity: &Identity) -> Result<(), String> {
    if header.cluster_id != identity.cluster_id {
        return Err(format!(
            "the snapshot is of cluster {}, this node belongs to {}",
            header.cluster_id, identity.cluster_id
        ));
    }
    Ok(())
}

/// The digest in a header. `None`: there is none of this version's algorithm.
pub(super) fn digest(header: &SnapshotHeader) -> Result<Option<Digest>, String> {
    if header.digest_version != DIGEST_VERSION {
        return Ok(None);
    }
    digest_from_wire(&header.digest).map_err(|error| error.to_string())
}

/// Notes whose computation the state is that a peer sends, if it was saved by a version that did not: the peer's.
pub(super) fn note_origin(header: &mut SnapshotHeader, from: NodeId) {
    if header.origin == 0 {
        header.origin = from;
    }
}

/// The node whose computation the state is. `None`: the file does not say.
pub(super) fn origin(header: &SnapshotHeader) -> Option<NodeId> {
    (header.origin != 0).then_some(header.origin)
}

/// Refuses a snapshot that openraft could not install, before it is received: it must say what it
/// covers and who the members were, and its leader cannot have had entries of later leaders.
pub(super) fn check_coverage(header: &SnapshotHeader, leader: &Vote) -> Result<(), String> {
    let meta = snapshot_meta_from_wire(header).map_err(|error| error.to_string())?;
    let last = meta.last_log_id.ok_or("the snapshot does not say what it covers")?;
    if last.leader_id.term > leader.leader_id.term {
        return Err(format!(
            "the snapshot covers the log up to {last}, which is of a later term than its leader's, {}",
            leader.leader_id.term
        ));
    }
    if meta.last_membership.log_id().is_none_or(|log_id| log_id > last) {
        return Err(format!("the snapshot of {last} does not say who the members were then"));
    }
    Ok(())
}

/// Refuses a snapshot that contradicts what this node knows to be committed: what is committed at an index
/// has one log id (State Machine Safety, section 3.6.3 of the Raft thesis), so a snapshot with a higher log id has a
/// higher index. openraft asserts it.
pub(super) fn check_committed(last: LogId, committed: Option<LogId>) -> Result<(), String> {
    match committed {
        Some(committed) if last > committed && last.index <= committed.index => Err(format!(
            "the snapshot covers the log up to {last}, and this node knows that {committed} is committed"
        )),
        _ => Ok(()),
    }
}

/// Writes the components and the machine's state to a file, which is nobody's newest snapshot yet.
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
        // Most often an activation came in between.
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
            break; // The writer has failed and says why below.
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

/// The file is whole only if the end was seen: a sender that breaks off leaves nothing behind.
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
            None => return Err(io::Error::other("the snapshot broke off before its end")),
        }
    }
}

impl Replica {
    /// The parts of a snapshot for a peer that has asked for it. If the file turns out to be damaged the stream
    /// breaks off without an end, and the receiver drops what it has.
    pub(super) fn send_snapshot(
        &self,
        vote: Vote,
        file: SnapshotFile,
    ) -> impl Stream<Item = SnapshotPart> + Send + use<> {
        let (parts, stream) = mpsc::channel(PARTS_IN_FLIGHT);
        let transfers = self.0.transfers.clone();
        spawn_blocking(move || {
            let sent = start(vote, &file).and_then(|start| {
                parts.blocking_send(start).map_err(io::Error::other)?;
                sending::send_chunks(&file, None, &parts, &transfers)
            });
            if let Err(error) = sent {
                tracing::warn!(%error, "the snapshot at index {} was not sent", file.index());
            }
        });
        ReceiverStream::new(stream)
    }
}

/// The first part of a snapshot.
fn start(vote: Vote, file: &SnapshotFile) -> io::Result<SnapshotPart> {
    let start = SnapshotStart {
        vote: Some(vote_to_wire(&vote)),
        header: Some(header(file)?),
        file_id: file.id().to_vec().into(),
        bytes: file.bytes(),
    };
    Ok(SnapshotPart { part: Some(Part::Start(start)) })
}

/// Writes what a peer sends on request to a file of this node's own, sealed with its own keys. It becomes the
/// newest snapshot only when the machine has restored it: see [`StateMachine`].
pub(super) async fn receive(
    header: SnapshotHeader,
    mut parts: Streaming<SnapshotPart>,
    snapshots: SnapshotStore,
) -> Result<SnapshotFile, Status> {
    let (chunks, received) = mpsc::channel(PARTS_IN_FLIGHT);
    let writing = spawn_blocking(move || write(&snapshots, &header, received));
    let (mut bytes, mut hash) = (0_u64, blake3::Hasher::new());
    loop {
        let part = timeout(STALL_TIMEOUT, parts.message()).await;
        let part = part.map_err(|_| Status::deadline_exceeded("the snapshot makes no progress"))?;
        let Some(part) = part? else { break };
        let incoming = match part.part {
            Some(Part::Chunk(chunk)) => {
                bytes += chunk.len() as u64;
                hash.update(&chunk);
                Incoming::Chunk(chunk)
            }
            Some(Part::End(end)) => {
                if end.bytes != bytes || end.blake3 != hash.finalize().as_bytes().as_slice() {
                    return Err(Status::data_loss("the snapshot was damaged on its way"));
                }
                Incoming::End
            }
            Some(Part::Start(_) | Part::Offset(_)) | None => {
                return Err(Status::invalid_argument("a snapshot has one header"));
            }
        };
        if chunks.send(incoming).await.is_err() {
            break; // The writer is done, or has failed and says why below.
        }
    }
    drop(chunks);
    let written = writing.await.map_err(|error| Status::internal(error.to_string()))?;
    written.map_err(|error| Status::internal(error.to_string()))
}

/// The type of openraft's handle.
pub(super) type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// Makes openraft take each snapshot whose file has become whole.
pub(super) async fn hand_over(replica: Weak<Inner>) {
    loop {
        let Some(inner) = replica.upgrade() else { return };
        let building = inner.building.clone();
        let ready = building.ready.notified();
        if building.is_whole() && inner.raft.trigger().snapshot().await.is_err() {
            return;
        }
        drop(inner);
        // Looked at again now and then, so that no notification can be missed for good.
        let _ = timeout(POLL_INTERVAL, ready).await;
    }
}

/// How often the size of the log is looked at.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Takes a snapshot when the log has grown by enough bytes, or when the last one is old enough and there are enough
/// new entries. By entries openraft does it itself, but for
/// those that came while the last one was being taken: it asks once every so many entries, is told that
/// one is under way, and the log of a cluster that falls idle then stayed as long as it was.
pub(super) async fn watch_growth(
    replica: Weak<Inner>,
    policy: SnapshotPolicy,
    entry_source: Arc<LocalEntrySource>,
) {
    let (mut at_last, mut last_index, mut asked_at) = (0, 0, 0);
    // A restart counts as a snapshot here: the age of the file is not known, and a node that has just replayed its log
    // has other work.
    let mut last_time = Instant::now();
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
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
        // Not in vain while one is under way; and once for what there is, because a machine that traps
        // over its snapshot would cost an idle node its reader again and again.
        if grown && applied > asked_at && inner.building.wants(applied) {
            (at_last, asked_at, last_time) = (appended, applied, Instant::now());
            if inner.raft.trigger().snapshot().await.is_err() {
                return;
            }
        }
    }
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
        assert!(!refused(at(3, 9), Some(at(3, 9))), "it is not needed, and says nothing new");
        assert!(!refused(at(2, 9), Some(at(3, 20))), "a late one, of an earlier leader");
        assert!(refused(at(3, 9), Some(at(2, 9))) && refused(at(3, 9), Some(at(2, 10))));
    }

    /// What openraft would only find wrong after the file had replaced a good one.
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
        assert!(refused(&good, 2), "a leader of the past");
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
