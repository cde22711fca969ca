//! The leader's side of a snapshot transfer.
//!
//! # Contract
//! - A transfer ends when the follower reports no progress for the stall timeout. openraft then
//!   retries.
//! - An interrupted transfer continues at the follower's position, with the same file, even if
//!   there is a newer one by now: [`Transfers::resumable`] gives openraft that file again.
//! - A file that turns out to be damaged is logged once, and replaced by a new snapshot of this
//!   node's own state. Until then it is offered to no follower.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::{PARTS_IN_FLIGHT, start};
use crate::network::peer::{ConnectionClass, Peer, PeerError};
use conclave_proto::raft::{
    SnapshotEnd, SnapshotOffer, SnapshotPart, snapshot_part::Part, snapshot_progress::Progress,
};
use conclave_storage::{SnapshotFile, convert::vote_from_wire, raft_types::Vote};
use conclave_types::NodeId;

/// The number of stall timeouts that one call of a restore may take. A state machine may do all its
/// work in the last call of a restore, which reports no progress.
const RESTORE_STALLS: u32 = 10;
/// The time for which an interrupted transfer can continue with its file, and the log after it is kept.
const RESUME_WITHIN: Duration = Duration::from_secs(60);
/// The time within which openraft learns the follower's position after a snapshot was installed.
const FOLLOW_WITHIN: Duration = Duration::from_secs(5);

/// The snapshots that this node is sending.
#[derive(Default)]
pub(crate) struct Transfers {
    by_target: Mutex<BTreeMap<NodeId, Transfer>>,
    /// The file that is damaged, until another has replaced it.
    damaged: watch::Sender<Option<Damaged>>,
}

/// A damaged snapshot file.
#[derive(Clone)]
pub(super) struct Damaged {
    pub(super) id: [u8; 16],
    pub(super) path: PathBuf,
}

struct Transfer {
    file: SnapshotFile,
    /// The time at which the follower last made progress.
    moved: Instant,
    /// Set once the follower has installed the snapshot.
    done: bool,
}

impl Transfer {
    fn is_over(&self) -> bool {
        self.moved.elapsed() > if self.done { FOLLOW_WITHIN } else { RESUME_WITHIN }
    }
}

impl Transfers {
    fn by_target(&self) -> MutexGuard<'_, BTreeMap<NodeId, Transfer>> {
        self.by_target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the file of a transfer that is running or may be continued. The newest,
    /// if there are several.
    pub(crate) fn resumable(&self) -> Option<SnapshotFile> {
        let mut transfers = self.by_target();
        transfers.retain(|_, transfer| !transfer.is_over());
        let open = transfers.values().filter(|transfer| !transfer.done);
        let files = open.map(|transfer| &transfer.file);
        files.max_by_key(|file| file.index()).cloned()
    }

    /// Returns the lowest index of a snapshot that is being sent or was just installed. The log
    /// after it will be needed.
    pub(crate) fn lowest(&self) -> Option<u64> {
        let mut transfers = self.by_target();
        transfers.retain(|_, transfer| !transfer.is_over());
        transfers.values().map(|transfer| transfer.file.index()).min()
    }

    fn begin(&self, target: NodeId, file: &SnapshotFile) {
        let transfer = Transfer { file: file.clone(), moved: Instant::now(), done: false };
        self.by_target().insert(target, transfer);
    }

    fn moved(&self, target: NodeId, done: bool) {
        if let Some(transfer) = self.by_target().get_mut(&target) {
            (transfer.moved, transfer.done) = (Instant::now(), done);
        }
    }

    /// Returns whether this file is known to be damaged.
    fn is_damaged(&self, file: &SnapshotFile) -> bool {
        self.damaged.borrow().as_ref().is_some_and(|damaged| damaged.id == file.id())
    }

    /// Records that a file is damaged.
    pub(crate) fn damaged(&self, file: &SnapshotFile, reason: &dyn std::fmt::Display) {
        self.by_target().retain(|_, transfer| transfer.file.id() != file.id());
        let is_news = self.damaged.send_if_modified(|known| {
            let is_news = known.as_ref().is_none_or(|known| known.id != file.id());
            if is_news {
                *known = Some(Damaged { id: file.id(), path: file.path().to_owned() });
            }
            is_news
        });
        if is_news {
            tracing::error!(
                path = %file.path().display(),
                %reason,
                "a snapshot on this node's disk is damaged; a new one is built from the running state and replaces it"
            );
        }
    }

    /// Returns the file that is damaged, and its changes.
    pub(super) fn watch_damage(&self) -> watch::Receiver<Option<Damaged>> {
        self.damaged.subscribe()
    }

    /// Records that another file has replaced the damaged one.
    pub(super) fn replaced(&self) {
        self.damaged.send_replace(None);
    }
}

/// The reason why a snapshot was not transferred.
pub(crate) enum Failure {
    /// The network failed, or the follower rejected a request.
    Peer(PeerError),
    /// The transfer ended without a result, for this reason.
    Ended(String),
    /// The follower has no space for the snapshot.
    Refused(String),
    /// The transfer must not be retried at once.
    NotNow(String),
}

/// Sends a snapshot to a follower and waits until the follower has installed it. Returns the
/// follower's vote. Fails if the follower makes no progress for `stall`.
pub(crate) async fn offer(
    peer: &Peer,
    transfers: &Arc<Transfers>,
    vote: Vote,
    file: SnapshotFile,
    stall: Duration,
) -> Result<Vote, Failure> {
    if transfers.is_damaged(&file) {
        return Err(Failure::NotNow("the snapshot is damaged and is being replaced".to_owned()));
    }
    let failed = |status| failed(peer, status);
    let ended = |reason: &str| Failure::Ended(reason.to_owned());
    let stalled = |after: Duration| {
        Failure::Ended(format!(
            "node {} has made no progress with the snapshot for {} s",
            peer.node_id,
            after.as_secs()
        ))
    };
    let mut client = peer.client(ConnectionClass::Snapshot).await.map_err(Failure::Peer)?;
    let (parts, stream) = mpsc::channel(PARTS_IN_FLIGHT);
    let first = start(vote, &file).map_err(|error| Failure::Ended(error.to_string()))?;
    let _ = parts.send(first).await;
    let answers = timeout(stall, client.install_snapshot(ReceiverStream::new(stream))).await;
    let mut answers = answers.map_err(|_| stalled(stall))?.map_err(failed)?.into_inner();
    let offered = timeout(stall, answers.message()).await.map_err(|_| stalled(stall))?;
    let offered = match offered.map_err(failed)?.and_then(|answer| answer.progress) {
        Some(Progress::Offer(offered)) => offered,
        Some(Progress::Done(done)) => return vote_of(done.vote),
        Some(Progress::Work(_)) | None => return Err(ended("the follower made no offer")),
    };
    transfers.begin(peer.node_id, &file);
    tracing::info!(
        to = peer.node_id,
        index = file.index(),
        from = offered.bytes,
        "sending a snapshot"
    );
    let mut sending = spawn_blocking({
        let (file, transfers) = (file.clone(), transfers.clone());
        move || send_chunks(&file, Some(offered), &parts, &transfers)
    });
    let (mut work, mut sent, mut moved) = (0, false, Instant::now());
    loop {
        // Once the follower has all bytes, it reports how many of them are restored.
        let within = if work >= file.bytes() { stall * RESTORE_STALLS } else { stall };
        let answer = tokio::select! {
            done = &mut sending, if !sent => {
                sent = true;
                match done {
                    Ok(Ok(())) => continue,
                    // The follower's own reason explains more than the broken stream.
                    Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => continue,
                    Ok(Err(error)) => return Err(Failure::Ended(error.to_string())),
                    Err(error) => return Err(Failure::Ended(error.to_string())),
                }
            }
            answer = timeout(within.saturating_sub(moved.elapsed()), answers.message()) => answer,
        };
        let answer = answer.map_err(|_| stalled(within))?.map_err(failed)?;
        match answer.and_then(|answer| answer.progress) {
            Some(Progress::Work(now)) if now > work => {
                (work, moved) = (now, Instant::now());
                transfers.moved(peer.node_id, false);
            }
            // The last call of a restore may take long. The log is kept in the meantime.
            Some(Progress::Work(_)) => transfers.moved(peer.node_id, false),
            Some(Progress::Done(done)) => {
                transfers.moved(peer.node_id, true);
                return vote_of(done.vote);
            }
            Some(Progress::Offer(_)) => return Err(ended("the follower made a second offer")),
            None => return Err(ended("the follower ended the transfer without a response")),
        }
    }
}

fn failed(peer: &Peer, status: Status) -> Failure {
    match status.code() {
        Code::ResourceExhausted => {
            Failure::Refused(format!("node {}: {}", peer.node_id, status.message()))
        }
        _ => Failure::Peer(peer.failed(ConnectionClass::Snapshot, status)),
    }
}

fn vote_of(vote: Option<conclave_proto::raft::Vote>) -> Result<Vote, Failure> {
    let vote = vote.ok_or_else(|| {
        Failure::Ended("the follower's response to the snapshot has no vote".to_owned())
    })?;
    Ok(vote_from_wire(&vote))
}

/// Sends the chunks of a file and its end. Skips the offered part, if the file begins with it. Blocking.
pub(super) fn send_chunks(
    file: &SnapshotFile,
    offered: Option<SnapshotOffer>,
    parts: &mpsc::Sender<SnapshotPart>,
    transfers: &Transfers,
) -> io::Result<()> {
    let read = |error: conclave_storage::Error| {
        transfers.damaged(file, &error);
        io::Error::other(error)
    };
    let send = |part| {
        parts
            .blocking_send(SnapshotPart { part: Some(part) })
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the receiver disconnected"))
    };
    let mut chunks = file.read().map_err(read)?;
    let (mut bytes, mut hash) = (0, blake3::Hasher::new());
    if let Some(offered) = offered {
        while bytes < offered.bytes
            && let Some(chunk) = chunks.next()
        {
            let chunk = chunk.map_err(read)?;
            bytes += chunk.len() as u64;
            hash.update(&chunk);
        }
        if bytes != offered.bytes || hash.finalize().as_bytes()[..] != offered.blake3[..] {
            (bytes, hash) = (0, blake3::Hasher::new());
            chunks = file.read().map_err(read)?;
        }
        send(Part::Offset(bytes))?;
    }
    for chunk in chunks {
        let chunk = chunk.map_err(read)?;
        bytes += chunk.len() as u64;
        hash.update(&chunk);
        send(Part::Chunk(chunk))?;
    }
    send(Part::End(SnapshotEnd { bytes, blake3: hash.finalize().as_bytes().to_vec().into() }))
}
