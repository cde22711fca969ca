//! openraft's calls, over a peer's connections.

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
    OwnReplica, backoff, message,
    pacing::paced,
    peer::{ConnectionClass, Peer, PeerError},
};
use crate::{
    Replica,
    lease::{BootTime, Lease},
    snapshot::{self, SnapshotData, Transfers},
};
use conclave_proto::raft as wire;
use conclave_storage::{
    SnapshotFile,
    convert::{entry_to_wire, log_id_to_wire, vote_to_wire},
    raft_types::{TypeConfig, Vote},
};

/// openraft's network to one peer, on one lane.
pub struct PeerNetwork {
    peer: Arc<Peer>,
    class: ConnectionClass,
    lease: Arc<Lease>,
    transfers: Arc<Transfers>,
    replica: OwnReplica,
    /// Streams of entries that failed one after the other, without an answer.
    failures: Arc<AtomicU32>,
}

impl PeerNetwork {
    pub(super) fn new(
        peer: Arc<Peer>,
        class: ConnectionClass,
        lease: Arc<Lease>,
        transfers: Arc<Transfers>,
        replica: OwnReplica,
    ) -> Self {
        Self { peer, class, lease, transfers, replica, failures: Arc::default() }
    }

    /// A disputed state is not spread. openraft tries again after a pause.
    async fn may_give(&self, file: &SnapshotFile) -> Result<(), StreamingError<TypeConfig>> {
        let Some(replica) = self.replica.get().and_then(Weak::upgrade).map(Replica) else {
            return Ok(());
        };
        let given = replica.may_give(file, self.peer.node_id).await;
        given.map_err(|why| StreamingError::Unreachable(Unreachable::from_string(why)))
    }

    /// Refuses to speak for Raft while this node's disk hangs, so that the others elect a leader without it.
    fn check_disk(&self) -> Result<(), RPCError<TypeConfig>> {
        match self.peer.disk().is_hung() {
            true => Err(RPCError::Unreachable(Unreachable::from_string(
                "this node's own disk does not answer",
            ))),
            false => Ok(()),
        }
    }

    fn failed(&self, status: Status) -> RPCError<TypeConfig> {
        rpc_error(self.peer.failed(self.class, status))
    }
}

/// A peer that cannot be reached is tried again after a pause; any other failure at once.
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

/// A streamed request.
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

    /// Requests go out without waiting for answers: gRPC keeps both in order. [`paced`] decides when. On the
    /// heartbeats' lane there is one request and it brings no entries: a call, which is less
    /// work for both nodes than a stream of one message.
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
                    // All requests of a stream are of one leader.
                    let _ = leader.set(request.vote);
                    append_to_wire(request)
                });
            let setup = async {
                let mut client = self.peer.client(self.class).await.map_err(rpc_error)?;
                client.append(Request::new(requests)).await.map_err(|status| self.failed(status))
            };
            // openraft's deadline is one of a heartbeat. A stream that is opened takes up to three round trips,
            // and while it is not, a deadline gains nothing: a dead connection is noticed by its pings.
            let limit = option.hard_ttl().max(self.peer.local().timing.election_max);
            let answers = within(limit, setup).await?.into_inner();
            let this = &*self;
            // A stream to a host that has vanished is silent for long.
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
        let failure = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
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
                tracing::warn!(to = self.peer.node_id, reason, "a snapshot was not transferred");
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
        // A node that receives the offer may be elected while the followers' promises last.
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
    /// After streams that failed: waits, so that openraft, which opens the next one at once, does not do
    /// so without end. Ends when the peer is connected again.
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
                // A heartbeat names what the peer has acknowledged to this leader, which it cannot lose.
                Err(StreamAppendError::Conflict(log_id)) => Err(message::lost(log_id)),
                result => Ok(result),
            }
        });
        if matches!(answer, Ok(Ok(_))) {
            self.lease.extend(self.peer.node_id, term, sent);
        }
        answer.map_err(|status| self.failed(status))
    }

    /// Checks the answer of a peer to the leader with this vote, and remembers what it acknowledges.
    fn acknowledged(
        &self,
        answer: wire::AppendResponse,
        vote: Option<&Vote>,
    ) -> Result<StreamAppendResult<TypeConfig>, Status> {
        let vote = vote.ok_or_else(|| Status::internal("the peer answered before it was asked"))?;
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

/// Bounds a call: a peer that neither answers nor refuses counts as unreachable.
async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, RPCError<TypeConfig>>>,
) -> Result<T, RPCError<TypeConfig>> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result,
        Err(_) => Err(RPCError::Unreachable(Unreachable::from_string(format!(
            "no answer within {} ms",
            limit.as_millis()
        )))),
    }
}
