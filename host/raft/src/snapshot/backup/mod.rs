//! Backups: taken from a running node, verified, and restored into directories of a new cluster.
//!
//! A backup is a snapshot in a file of its own. The node takes a snapshot that covers every write
//! acknowledged before the request, restores it into an instance as it does with all snapshots, and
//! sends the file, sealed again under a key for this backup. [`restore`] is the other direction.

mod restore;

use std::{io, sync::Arc};

use openraft::async_runtime::WatchReceiver;
use prost::Message;
use tokio::{
    sync::mpsc,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

pub use self::restore::{
    NotRestored, RestoredCluster, VerifiedBackup, restore_backup, verify_backup,
};
use super::{Snapshots, header};
use crate::{node::Node, read_index::ReadIndex};
use conclave_proto::{
    backup::Contents,
    convert::{about_from_wire, component_id_from_wire},
};
use conclave_storage::{BackupAbout, BackupKey, SealedBackup, SnapshotFile};
use conclave_types::{backup::BackupPiece, error::Error};

/// The number of pieces in memory between the file and the network. Each has at most 1 MiB.
const PIECES_IN_FLIGHT: usize = 4;

/// The pieces of a backup that is being sent.
pub struct BackupStream {
    /// The last log index that the backup covers.
    pub index: u64,
    /// The pieces. The last one is the end or an error.
    pub pieces: mpsc::Receiver<Result<BackupPiece, Error>>,
}

/// The backups that this node sends.
pub(crate) struct Backups {
    node: Arc<Node>,
    snapshots: Arc<Snapshots>,
    read_index: Arc<ReadIndex>,
}

impl Backups {
    pub(crate) fn new(
        node: Arc<Node>,
        snapshots: Arc<Snapshots>,
        read_index: Arc<ReadIndex>,
    ) -> Self {
        Self { node, snapshots, read_index }
    }

    /// Takes a backup that covers every command acknowledged before this call. Without a key, this
    /// node's master key wraps the data key.
    pub(crate) async fn create(
        &self,
        key: Option<BackupKey>,
        deadline: Instant,
    ) -> Result<BackupStream, Error> {
        let file = timeout_at(deadline, self.covering_snapshot(deadline));
        let file = file.await.map_err(|_| Error::deadline())??;
        let (seed, index) = (self.node.local.identity.seed(), file.index());
        let sealed = spawn_blocking(move || seal(&file, seed, key)).await;
        let sealed = sealed.map_err(io::Error::other).and_then(|sealed| sealed);
        let sealed = sealed.map_err(|error| {
            Error::fatal(format!("the backup at index {index} cannot be made")).with_source(error)
        })?;
        let (sender, pieces) = mpsc::channel(PIECES_IN_FLIGHT);
        spawn_blocking(move || send(sealed, &sender));
        tracing::info!(index, "sending a backup");
        Ok(BackupStream { index, pieces })
    }

    /// Takes a snapshot of a state that includes all commands acknowledged before the call.
    async fn covering_snapshot(&self, deadline: Instant) -> Result<SnapshotFile, Error> {
        if let Some(why) = self.node.fatal_error().or_else(|| self.node.divergence.why()) {
            return Err(Error::stopped(why));
        }
        let acknowledged = self.read_index.get(deadline).await?;
        let mut metrics = self.node.raft.metrics();
        while metrics.borrow_watched().last_applied.is_none_or(|last| last.index < acknowledged) {
            if metrics.changed().await.is_err() {
                return Err(Error::shutting_down());
            }
        }
        let index = self.snapshots.take_now().await?;
        let newest = self.snapshots.newest().await?;
        match newest.filter(|file| file.index() >= index.max(acknowledged)) {
            Some(file) if self.node.divergence.why().is_none() => Ok(file),
            _ => Err(Error::busy(
                "this node's snapshot was replaced while the backup began: try again, or another node",
            )),
        }
    }
}

/// Begins to seal a snapshot. Blocking.
fn seal(file: &SnapshotFile, seed: [u8; 32], key: Option<BackupKey>) -> io::Result<SealedBackup> {
    let header = header(file)?;
    let component_id = component_id_from_wire(&header.component_id).map_err(io::Error::other)?;
    let mut components = header.components.iter();
    let active = components.find(|component| component.component_id == header.component_id);
    let about = active.and_then(|component| component.about.as_ref()).map(about_from_wire);
    let about = about.map(|about| BackupAbout {
        name: about.name.to_string(),
        version: about.version.to_string(),
    });
    let contents = Contents { snapshot: file.header().clone(), seed: seed.to_vec().into() };
    let (cluster_id, contents) = (&header.cluster_id, contents.encode_to_vec());
    file.back_up(cluster_id, component_id, about.unwrap_or_default(), &contents, key)
        .map_err(io::Error::other)
}

/// Sends the pieces and the end, as fast as the receiver takes them. Ends when the receiver is gone.
fn send(sealed: SealedBackup, pieces: &mpsc::Sender<Result<BackupPiece, Error>>) {
    let index = sealed.info().index;
    let (mut bytes, mut hasher) = (0, blake3::Hasher::new());
    for piece in sealed {
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => {
                tracing::error!(%error, index, "cannot read the snapshot for a backup");
                let _ = pieces.blocking_send(Err(Error::caused_by(Error::fatal, error)));
                return;
            }
        };
        bytes += piece.len() as u64;
        hasher.update(&piece);
        if pieces.blocking_send(Ok(BackupPiece::Bytes(piece))).is_err() {
            return;
        }
    }
    let end = BackupPiece::End { bytes, blake3: *hasher.finalize().as_bytes() };
    let _ = pieces.blocking_send(Ok(end));
}
