//! openraft's network: its calls, over a peer's connections.

use std::{
    future::Future,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, StreamExt, stream};
use openraft::{
    AnyError, OptionalSend, RaftNetworkV2,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
        StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse, VoteRequest,
        VoteResponse,
    },
    type_config::alias::SnapshotOf,
};
use tokio::time::sleep;
use tonic::{Code, Request, Status};

use super::{
    OwnGiving, backoff, message,
    pacing::paced,
    peer::{ConnectionClass, Peer, PeerError},
};
use crate::{
    lease::{BootTime, Lease},
    snapshot::{self, SnapshotData, Transfers},
};
use conclave_proto::raft as wire;
use conclave_storage::{
    SnapshotFile,
    convert::{entry_to_wire, log_id_to_wire, vote_to_wire},
    raft_types::{TypeConfig, Vote},
};

/// The pause before a snapshot is offered again to a follower that has no space for it.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);

/// openraft's network to one peer, on one connection class.
pub struct PeerNetwork {
    peer: Arc<Peer>,
    class: ConnectionClass,
    lease: Arc<Lease>,
    transfers: Arc<Transfers>,
    giving: OwnGiving,
    /// The number of consecutive append streams that failed without a response.
    failures: Arc<AtomicU32>,
}

impl PeerNetwork {
    pub(super) fn new(
        peer: Arc<Peer>,
        class: ConnectionClass,
        lease: Arc<Lease>,
        transfers: Arc<Transfers>,
        giving: OwnGiving,
    ) -> Self {
        Self { peer, class, lease, transfers, giving, failures: Arc::default() }
    }

    /// Returns an error while this node's state is disputed, so that it is not copied.
    /// openraft retries after a pause.
    async fn may_give(&self, file: &SnapshotFile) -> Result<(), StreamingError<TypeConfig>> {
        let Some(giving) = self.giving.get().and_then(Weak::upgrade) else {
            return Ok(());
        };
        let given = giving.may_give(file, self.peer.node_id).await;
        given.map_err(|why| StreamingError::Unreachable(Unreachable::from_string(why)))
    }

    /// Returns an error while this node's disk hangs, so that the other nodes elect a leader without it.
    fn check_disk(&self) -> Result<(), RPCError<TypeConfig>> {
        match self.peer.disk().is_hung() {
            true => Err(RPCError::Unreachable(Unreachable::from_string(
                "this node's own disk does not respond",
            ))),
            false => Ok(()),
        }
    }

    fn failed(&self, status: Status) -> RPCError<TypeConfig> {
        rpc_error(self.peer.failed(self.class, status))
    }
}

/// Converts an error. openraft retries an unreachable peer after a pause, and any other failure at once.
fn rpc_error(error: PeerError) -> RPCError<TypeConfig> {
    let reached = match &error {
        PeerError::Call { status, .. } => {
            !matches!(status.code(), Code::Unavailable | Code::PermissionDenied)
        }
        PeerError::Stranger { .. } | PeerError::Address { .. } => false,
    };
    if reached {
        RPCError::Network(NetworkError::new(&AnyError::new(&error)))
    } else {
        RPCError::Unreachable(Unreachable::new(&AnyError::new(&error)))
    }
}

/// Converts an append request to its wire form.
fn append_to_wire(request: AppendEntriesRequest<TypeConfig>) -> wire::AppendRequest {
    wire::AppendRequest {
        vote: Some(vote_to_wire(&request.vote)),
        previous: request.prev_log_id.as_ref().map(log_id_to_wire),
        entries: request.entries.iter().map(entry_to_wire).collect(),
        leader_commit: request.leader_commit.as_ref().map(log_id_to_wire),
    }
}

impl RaftNetworkV2<TypeConfig> for PeerNetwork {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let mut answers = self.stream_append(stream::iter([request]), option).await?;
        match answers.next().await {
            Some(answer) => Ok(answer?.into()),
            None => Err(RPCError::Network(NetworkError::from_string("the peer closed the stream"))),
        }
    }

    /// Sends requests without waiting for responses: gRPC keeps both in order. [`paced`] times
    /// them. On the heartbeats' connection there is one request without entries. It is sent as a
    /// call, which is less work for both nodes than a stream of one message.
    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>,
            RPCError<TypeConfig>,
        >,
    >
    where
        S: futures::Stream<Item = AppendEntriesRequest<TypeConfig>>
            + OptionalSend
            + Unpin
            + 'static,
    {
        async move {
            self.check_disk()?;
            if self.class == ConnectionClass::Control {
                let Some(request) = input.next().await else { return Ok(stream::empty().boxed()) };
                let answer = within(option.hard_ttl(), self.heartbeat(request)).await;
                return Ok(stream::iter([answer]).boxed());
            }
            self.pause().await;
            self.failures.fetch_add(1, Ordering::Relaxed);
            let vote = Arc::new(OnceLock::new());
            let (leader, disk) = (vote.clone(), self.peer.disk().clone());
            let requests = paced(input, self.peer.pace(), self.peer.wanted_commit())
                .take_while(move |_| std::future::ready(!disk.is_hung()))
                .map(move |request| {
                    // All requests of a stream come from one leader.
                    let _ = leader.set(request.vote);
                    append_to_wire(request)
                });
            let setup = async {
                let mut client = self.peer.client(self.class).await.map_err(rpc_error)?;
                client.append(Request::new(requests)).await.map_err(|status| self.failed(status))
            };
            // openraft's deadline is that of a heartbeat. Opening a stream takes up to three round
            // trips, and a shorter deadline gains nothing: the pings detect a dead connection.
            let limit = option.hard_ttl().max(self.peer.local().timing.election_max);
            let answers = within(limit, setup).await?.into_inner();
            let this = &*self;
            // A stream to a host that has vanished stays silent for a long time.
            let answers = answers.take_until(Box::pin(self.peer.replaced()));
            let answers = answers.map(move |answer| {
                let answer = answer.and_then(|answer| this.acknowledged(answer, vote.get()));
                let answer = answer.map_err(|status| this.failed(status))?;
                this.failures.store(0, Ordering::Relaxed);
                Ok(answer)
            });
            Ok(answers.boxed())
        }
        .boxed()
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_for_vote(request, option, false).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_for_vote(request, option, true).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        self.check_disk().map_err(StreamingError::from)?;
        self.may_give(&snapshot.snapshot.file).await?;
        let stall = option.hard_ttl();
        let offer =
            snapshot::offer(&self.peer, &self.transfers, vote, snapshot.snapshot.file, stall);
        let mut cancel = std::pin::pin!(cancel);
        let failure = tokio::select! {
            closed = &mut cancel => return Err(StreamingError::Closed(closed)),
            answer = offer => match answer {
                Ok(answered) => {
                    let answered = message::checked_answer(answered, &vote);
                    let answered = answered.map_err(|status| self.failed(status))?;
                    return Ok(SnapshotResponse::new(answered));
                }
                Err(failure) => failure,
            },
        };
        Err(match failure {
            snapshot::Failure::Peer(error) => StreamingError::from(rpc_error(error)),
            snapshot::Failure::Ended(reason) => {
                tracing::warn!(to = self.peer.node_id, reason, "cannot transfer a snapshot");
                StreamingError::Unreachable(Unreachable::from_string(reason))
            }
            snapshot::Failure::Refused(reason) => {
                tracing::warn!(reason, "a follower refused a snapshot");
                tokio::select! {
                    closed = cancel => return Err(StreamingError::Closed(closed)),
                    () = sleep(REFUSED_PAUSE) => {}
                }
                StreamingError::Unreachable(Unreachable::from_string(reason))
            }
            snapshot::Failure::NotNow(reason) => {
                StreamingError::Unreachable(Unreachable::from_string(reason))
            }
        })
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        // The receiver of the offer may be elected although the followers' promises still hold.
        self.lease.end(request.from_leader().leader_id.term);
        let message = wire::TransferLeaderRequest {
            from: Some(vote_to_wire(request.from_leader())),
            to_node_id: *request.to_node_id(),
            last_log_id: request.last_log_id().map(log_id_to_wire),
        };
        let call = async {
            let mut client = self.peer.client(ConnectionClass::Control).await.map_err(rpc_error)?;
            client.transfer_leader(message).await.map_err(|status| self.failed(status))
        };
        within(option.hard_ttl(), call).await?;
        Ok(Ok(()))
    }
}

impl PeerNetwork {
    /// Waits after streams that failed, because openraft opens the next stream at once and would
    /// retry endlessly. Ends early when the peer is connected again.
    async fn pause(&self) {
        let failures = self.failures.load(Ordering::Relaxed);
        if failures == 0 {
            return;
        }
        let pause = sleep(backoff::pause(failures));
        if self.peer.is_connected() {
            pause.await;
        } else {
            tokio::select! {
                () = pause => {}
                () = self.peer.connected() => {}
            }
        }
    }

    async fn heartbeat(
        &self,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>> {
        let vote = request.vote;
        let mut client = self.peer.client(self.class).await.map_err(rpc_error)?;
        let (term, sent) = (request.vote.leader_id.term, BootTime::now());
        let answer = client.heartbeat(append_to_wire(request)).await;
        let answer = answer.and_then(|answer| {
            match self.acknowledged(answer.into_inner(), Some(&vote))? {
                // A heartbeat names the last entry that the peer acknowledged to this leader, and
                // the peer cannot lose it.
                Err(StreamAppendError::Conflict(log_id)) => Err(message::lost(log_id)),
                result => Ok(result),
            }
        });
        if matches!(answer, Ok(Ok(_))) {
            self.lease.extend(self.peer.node_id, term, sent);
        }
        answer.map_err(|status| self.failed(status))
    }

    /// Checks a peer's response to the leader with this vote, and records the acknowledgement.
    fn acknowledged(
        &self,
        answer: wire::AppendResponse,
        vote: Option<&Vote>,
    ) -> Result<StreamAppendResult<TypeConfig>, Status> {
        let vote = vote
            .ok_or_else(|| Status::internal("the peer responded before it received a request"))?;
        let process = answer.process;
        let result = message::append_result(answer, vote)?;
        let (local, node_id) = (self.peer.local(), self.peer.node_id);
        match &result {
            Ok(last) => local.note_acknowledged(node_id, *vote, *last, process),
            Err(StreamAppendError::Conflict(log_id)) => {
                // openraft asserts that this does not happen.
                if local.has_acknowledged(node_id, vote, log_id.index) {
                    return Err(message::lost(*log_id));
                }
            }
            Err(StreamAppendError::HigherVote(_)) => {}
        }
        Ok(result)
    }

    async fn ask_for_vote(
        &self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
        pre_vote: bool,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.check_disk()?;
        let message = wire::VoteRequest {
            vote: Some(vote_to_wire(&request.vote)),
            last_log_id: request.last_log_id.as_ref().map(log_id_to_wire),
            leadership_transfer: request.leadership_transfer,
            pre_vote,
        };
        let call = async {
            let mut client = self.peer.client(ConnectionClass::Control).await.map_err(rpc_error)?;
            client.vote(message).await.map_err(|status| self.failed(status))
        };
        let answer = within(option.hard_ttl(), call).await?.into_inner();
        message::vote_response(answer, &request.vote).map_err(|status| self.failed(status))
    }
}

/// Bounds a call: a peer that does not respond in time counts as unreachable.
async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, RPCError<TypeConfig>>>,
) -> Result<T, RPCError<TypeConfig>> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result,
        Err(_) => Err(RPCError::Unreachable(Unreachable::from_string(format!(
            "no response within {} ms",
            limit.as_millis()
        )))),
    }
}
