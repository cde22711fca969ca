//! The follower's side of a snapshot transfer.
//!
//! # Contract
//! - If a connection breaks, the part of the snapshot that has arrived is kept, sealed, under a
//!   temporary name. The next transfer of the same snapshot continues after it. Snapshots are the
//!   same if they have the same file id, number of bytes and header, which names the cluster and
//!   the log position. The sender also compares the hash of the bytes.
//! - At most one such file is kept, for [`KEPT_FOR`], and not beyond the end of the process.
//! - The sender announces the number of bytes. A snapshot that is larger than any state of the
//!   cluster, larger than announced, or too large for the free space of the disk is rejected, and
//!   its file is removed.
//! - The state is restored into new instances before openraft receives the snapshot. A snapshot
//!   that the state machine rejects has no effect.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use prost::Message;
use tokio::{
    sync::{Mutex, mpsc, watch},
    task::spawn_blocking,
    time::{MissedTickBehavior, interval, timeout},
};
use tonic::{Code, Status, Streaming};

use super::{Accepted, check_committed, opened, room, saved_state};
use crate::{components::Components, node::Node, raft_state::raft_state};
use conclave_proto::raft::{
    SnapshotEnd, SnapshotHeader, SnapshotOffer, SnapshotPart, SnapshotProgress, SnapshotResponse,
    snapshot_part::Part, snapshot_progress::Progress,
};
use conclave_storage::{
    SnapshotFile, SnapshotStore, SnapshotWriter,
    convert::{log_id_from_wire, vote_to_wire},
    raft_types::{LogId, Vote},
};

/// The time for which a broken transfer can be continued.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// The interval between progress reports.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);

/// The snapshot transfers that a node receives.
pub(crate) struct Receiving {
    node: Arc<Node>,
    components: Arc<Components>,
    files: SnapshotStore,
    /// The remainder of the last transfer. Locked while a transfer is running.
    left: Mutex<Option<Partial>>,
    /// Counts transfers. A running transfer ends when a newer one begins.
    newest: watch::Sender<u64>,
}

/// The identity of a snapshot.
#[derive(PartialEq)]
struct Subject {
    file_id: Bytes,
    bytes: u64,
    header: Bytes,
}

/// The part of a snapshot that has arrived.
struct Partial {
    subject: Subject,
    file: Stage,
    bytes: u64,
    hash: blake3::Hasher,
    at: Instant,
}

enum Stage {
    Open(SnapshotWriter),
    Whole(SnapshotFile),
}

/// A snapshot that a leader offers.
pub(crate) struct Offered {
    pub(crate) vote: Vote,
    pub(crate) header: SnapshotHeader,
    pub(crate) file_id: Bytes,
    pub(crate) bytes: u64,
    pub(crate) parts: Streaming<SnapshotPart>,
}

type Reports = mpsc::Sender<Result<SnapshotProgress, Status>>;

impl Receiving {
    pub(crate) fn new(node: Arc<Node>, components: Arc<Components>, files: SnapshotStore) -> Self {
        let newest = watch::Sender::new(0);
        Self { node, components, files, left: Mutex::default(), newest }
    }

    /// Removes the remainder of a transfer that was not continued for a long time.
    pub(crate) fn expire(&self) {
        if let Ok(mut left) = self.left.try_lock() {
            left.take_if(|partial| partial.at.elapsed() > KEPT_FOR);
        }
    }

    /// Receives a snapshot, restores it and installs it. Reports on the way, and at the end.
    pub(crate) async fn receive(&self, offered: Offered, reports: Reports) {
        let report = match self.received(offered, &reports).await {
            Ok(vote) => {
                let vote = Some(vote_to_wire(&vote));
                Ok(progress(Progress::Done(SnapshotResponse { vote })))
            }
            Err(status) => {
                if status.code() == Code::ResourceExhausted {
                    let reason = status.message();
                    tracing::warn!(reason, "cannot receive a snapshot");
                }
                Err(status)
            }
        };
        // The leader may have given up.
        let _ = reports.send(report).await;
    }

    async fn received(&self, offered: Offered, reports: &Reports) -> Result<Vote, Status> {
        let own = self.node.raft.metrics().borrow_watched().vote;
        if own > offered.vote {
            return Ok(own); // The sender is no longer the leader.
        }
        let in_force = self.node.applied().limits.limits;
        room::check_size(&offered.header, offered.bytes, &in_force)?;
        let last = offered.header.last_log_id.as_ref().map(log_id_from_wire);
        self.check_committed(last).await?;
        let mut number = 0;
        self.newest.send_modify(|newest| {
            *newest += 1;
            number = *newest;
        });
        let mut left = self.left.lock().await;
        let subject = Subject {
            file_id: offered.file_id,
            bytes: offered.bytes,
            header: offered.header.encode_to_vec().into(),
        };
        let position = offered.header.last_log_id.as_ref();
        let position = position.map_or((0, 0), |log_id| (log_id.term, log_id.index));
        let partial = match left.take().filter(|partial| partial.subject == subject) {
            Some(partial) => partial.check_space(&self.files).await?,
            None => Partial::begin(&self.files, subject, position).await?,
        };
        let transfer = Transfer {
            reports,
            number,
            newest: self.newest.subscribe(),
            work: Arc::new(AtomicU64::new(0)),
        };
        let (partial, result) =
            transfer.receive(&self.files, partial, offered.parts, position).await;
        if let Err(status) = result {
            *left = partial;
            return Err(status);
        }
        let Some(Partial { subject, file: Stage::Whole(file), bytes, hash, .. }) = partial else {
            return Err(Status::internal("the received snapshot is not complete"));
        };
        let accepting = self.accept(file.clone(), transfer.work.clone());
        let accepted = match transfer.reporting(accepting).await {
            Ok(accepted) => accepted,
            // The leader stopped waiting. The received bytes can be used by the next transfer.
            Err(status) => {
                let file = Stage::Whole(file);
                *left = Some(Partial { subject, file, bytes, hash, at: Instant::now() });
                return Err(status);
            }
        };
        let accepted = accepted.map_err(|error| Status::failed_precondition(error.to_string()))?;
        // Entries may have been committed in the meantime.
        self.check_committed(last).await?;
        let mut snapshot = opened(file).map_err(|error| Status::internal(error.to_string()))?;
        snapshot.snapshot.accepted = Some(Box::new(accepted));
        let installing = self.node.raft.install_full_snapshot(offered.vote, snapshot);
        let answer = transfer.reporting(installing).await?;
        Ok(answer.map_err(stopped)?.vote)
    }

    /// Does the same as [`super::accept`], and counts the restored bytes.
    async fn accept(&self, file: SnapshotFile, work: Arc<AtomicU64>) -> io::Result<Accepted> {
        let components = self.components.clone();
        let reading = spawn_blocking(move || saved_state(&file, &components));
        let (mut saved, registry) = reading.await.map_err(io::Error::other)??;
        saved.chunks = Box::new(saved.chunks.inspect(move |chunk| {
            work.fetch_add(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64), Ordering::Relaxed);
        }));
        let state = self.node.worker.prepare(saved).await.map_err(io::Error::other)?;
        Ok(Accepted { state, registry })
    }

    async fn check_committed(&self, last: Option<LogId>) -> Result<(), Status> {
        let committed = raft_state(&self.node.raft, |state| state.local_committed().copied());
        let committed = committed.await.map_err(stopped)?;
        last.map_or(Ok(()), |last| check_committed(last, committed))
            .map_err(Status::invalid_argument)
    }
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("this node has stopped: {error}"))
}

fn progress(progress: Progress) -> SnapshotProgress {
    SnapshotProgress { progress: Some(progress) }
}

impl Partial {
    async fn begin(
        snapshots: &SnapshotStore,
        subject: Subject,
        (term, index): (u64, u64),
    ) -> Result<Self, Status> {
        let snapshots = snapshots.clone();
        blocking(move || {
            room::check_space(&snapshots, subject.bytes)?;
            let writer = snapshots.create(term, index, &subject.header);
            let writer = writer.map_err(|error| Status::internal(error.to_string()))?;
            let (file, hash) = (Stage::Open(writer), blake3::Hasher::new());
            Ok(Self { subject, file, bytes: 0, hash, at: Instant::now() })
        })
        .await
    }

    /// Returns the part if the rest of the snapshot fits on the disk.
    async fn check_space(self, snapshots: &SnapshotStore) -> Result<Self, Status> {
        let snapshots = snapshots.clone();
        let rest = self.subject.bytes.saturating_sub(self.bytes);
        blocking(move || room::check_space(&snapshots, rest).map(|()| self)).await
    }

    fn offer(&self) -> SnapshotOffer {
        let blake3 = self.hash.finalize().as_bytes().to_vec().into();
        SnapshotOffer { bytes: self.bytes, blake3 }
    }

    /// Writes a chunk. Blocking.
    fn write(&mut self, chunk: &Bytes, snapshots: &SnapshotStore) -> Result<(), Status> {
        let Stage::Open(writer) = &mut self.file else {
            return Err(Status::invalid_argument("the snapshot continues after its end"));
        };
        let length = chunk.len() as u64;
        if length > self.subject.bytes - self.bytes {
            return Err(room::exceeds(self.subject.bytes));
        }
        room::check_space(snapshots, length)?;
        writer.write(chunk).map_err(|error| Status::internal(error.to_string()))?;
        self.bytes += length;
        self.hash.update(chunk);
        self.at = Instant::now();
        Ok(())
    }

    /// Completes the file if the end matches the received bytes. Blocking.
    fn finish(mut self, end: &SnapshotEnd) -> Result<Self, Status> {
        let is_whole = end.bytes == self.bytes && self.bytes == self.subject.bytes;
        if !is_whole || end.blake3 != self.hash.finalize().as_bytes().as_slice() {
            return Err(Status::data_loss("the snapshot was damaged in transit"));
        }
        if let Stage::Open(writer) = self.file {
            let file = writer.finish().map_err(|error| Status::internal(error.to_string()))?;
            self.file = Stage::Whole(file);
        }
        Ok(self)
    }
}

/// One attempt to receive a snapshot.
struct Transfer<'a> {
    reports: &'a Reports,
    /// The number of this transfer. A newer transfer has a higher number.
    number: u64,
    newest: watch::Receiver<u64>,
    /// The number of bytes written to the file and to instances.
    work: Arc<AtomicU64>,
}

impl Transfer<'_> {
    fn report(&self) {
        let work = self.work.load(Ordering::Relaxed);
        // A leader that is gone is noticed while its parts, or the end of `reports`, are awaited.
        let _ = self.reports.try_send(Ok(progress(Progress::Work(work))));
    }

    /// Waits for `work` and reports progress in the meantime.
    ///
    /// # Errors
    /// Fails if the leader disconnected or started a newer transfer.
    async fn reporting<T>(&self, work: impl Future<Output = T>) -> Result<T, Status> {
        let (mut work, number) = (std::pin::pin!(work), self.number);
        let mut newest = self.newest.clone();
        let mut ticks = interval(REPORT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                _ = ticks.tick() => self.report(),
                _ = newest.wait_for(|newest| *newest > number) => {
                    return Err(Status::aborted("a newer transfer has started"));
                }
                () = self.reports.closed() => {
                    return Err(Status::cancelled("the leader disconnected"));
                }
            }
        }
    }

    /// Receives a snapshot. Returns the part that can be continued or is complete, and the result.
    async fn receive(
        &self,
        snapshots: &SnapshotStore,
        mut partial: Partial,
        mut parts: Streaming<SnapshotPart>,
        position: (u64, u64),
    ) -> (Option<Partial>, Result<(), Status>) {
        let mut begun = false;
        if self.reports.send(Ok(progress(Progress::Offer(partial.offer())))).await.is_err() {
            return (Some(partial), Err(Status::cancelled("the leader disconnected")));
        }
        loop {
            let next = async {
                let next = timeout(KEPT_FOR, parts.message()).await;
                next.unwrap_or_else(|_| Err(Status::deadline_exceeded("the leader sends no more")))
            };
            let part = match self.reporting(next).await.and_then(|part| part) {
                Ok(Some(SnapshotPart { part: Some(part) })) => part,
                Ok(Some(SnapshotPart { part: None })) => {
                    return (None, Err(Status::invalid_argument("a part of a snapshot is empty")));
                }
                Ok(None) => {
                    let status = Status::aborted("the snapshot ended too early");
                    return (Some(partial), Err(status));
                }
                Err(status) => return (Some(partial), Err(status)),
            };
            let step = match part {
                Part::Offset(offset) if !begun => {
                    begun = true;
                    if offset == 0 && partial.bytes > 0 {
                        let again = Partial::begin(snapshots, partial.subject, position).await;
                        again.map(|again| (again, false))
                    } else if offset == partial.bytes {
                        self.work.store(offset, Ordering::Relaxed);
                        Ok((partial, false))
                    } else {
                        Err(Status::invalid_argument(
                            "the snapshot does not continue at the requested offset",
                        ))
                    }
                }
                Part::Chunk(chunk) if begun => {
                    self.work.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                    let snapshots = snapshots.clone();
                    let write =
                        move || partial.write(&chunk, &snapshots).map(|()| (partial, false));
                    blocking(write).await
                }
                Part::End(end) if begun => {
                    blocking(move || partial.finish(&end).map(|partial| (partial, true))).await
                }
                Part::Start(_) => Err(Status::invalid_argument("a snapshot has one header")),
                Part::Offset(_) | Part::Chunk(_) | Part::End(_) => {
                    Err(Status::invalid_argument("the parts of the snapshot are out of order"))
                }
            };
            match step {
                Ok((next, false)) => partial = next,
                Ok((whole, true)) => return (Some(whole), Ok(())),
                Err(status) => return (None, Err(status)),
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))?
}
