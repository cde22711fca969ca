//! openraft's calls, over a peer's connections.

use std::{
    future::Future,
    sync::{Arc, Weak},
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
use tonic::{Code, Request, Status};

use super::{
    OwnReplica,
    peer::{Lane, Peer, PeerError},
};
use crate::{
    proto::raft as wire,
    raft::{
        Replica,
        lease::{BootTime, Lease},
        snapshot::{self, SnapshotData, Transfers},
    },
    storage::{Pace, SnapshotFile},
    types::{
        convert::{entry_to_wire, log_id_from_wire, log_id_to_wire, vote_from_wire, vote_to_wire},
        raft::{LogId, TypeConfig, Vote},
    },
};

/// openraft's network to one peer, on one lane.
pub struct PeerNetwork {
    peer: Arc<Peer>,
    lane: Lane,
    lease: Arc<Lease>,
    transfers: Arc<Transfers>,
    replica: OwnReplica,
}

impl PeerNetwork {
    pub(super) fn new(
        peer: Arc<Peer>,
        lane: Lane,
        lease: Arc<Lease>,
        transfers: Arc<Transfers>,
        replica: OwnReplica,
    ) -> Self {
        Self { peer, lane, lease, transfers, replica }
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
        rpc_error(self.peer.failed(self.lane, status))
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
    if let PeerError::Stranger { .. } = &error {
        tracing::warn!(%error, "a peer is not who it should be");
    }
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

fn append_result(response: wire::AppendResponse) -> Result<StreamAppendResult<TypeConfig>, Status> {
    use wire::append_response::Result as Answer;
    match response.result {
        Some(Answer::Matched(matched)) => Ok(Ok(matched.log_id.as_ref().map(log_id_from_wire))),
        Some(Answer::Conflict(log_id)) => {
            Ok(Err(StreamAppendError::Conflict(log_id_from_wire(&log_id))))
        }
        Some(Answer::HigherVote(vote)) => {
            Ok(Err(StreamAppendError::HigherVote(vote_from_wire(&vote))))
        }
        None => Err(Status::internal("the peer sent an answer without a result")),
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

    /// Requests go out without waiting for answers: gRPC keeps both in order. When many write, each has what
    /// this node writes as one batch ([`Pace`]). On the
    /// heartbeats' lane there is one request and it brings no entries: a call, which is less
    /// work for both nodes than a stream of one message, and linearizable reads wait for it.
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
            if self.lane == Lane::Control {
                let Some(request) = input.next().await else { return Ok(stream::empty().boxed()) };
                let answer = within(option.hard_ttl(), self.heartbeat(request)).await;
                return Ok(stream::iter([answer]).boxed());
            }
            let disk = self.peer.disk().clone();
            let requests = in_step(input, self.peer.pace())
                .take_while(move |_| std::future::ready(!disk.is_hung()))
                .map(append_to_wire);
            let setup = async {
                let mut client = self.peer.client(self.lane).await.map_err(rpc_error)?;
                client.append(Request::new(requests)).await.map_err(|status| self.failed(status))
            };
            let answers = within(option.hard_ttl(), setup).await?.into_inner();
            let this = &*self;
            let answers = answers.map(move |answer| {
                answer.and_then(append_result).map_err(|status| this.failed(status))
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
                Ok(vote) => return Ok(SnapshotResponse::new(vote)),
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
        // Whoever receives the offer may be elected while the followers' promises last.
        self.lease.end(request.from_leader().leader_id.term);
        let message = wire::TransferLeaderRequest {
            from: Some(vote_to_wire(request.from_leader())),
            to_node_id: *request.to_node_id(),
            last_log_id: request.last_log_id().map(log_id_to_wire),
        };
        let call = async {
            let mut client = self.peer.client(Lane::Control).await.map_err(rpc_error)?;
            client.transfer_leader(message).await.map_err(|status| self.failed(status))
        };
        within(option.hard_ttl(), call).await?;
        Ok(Ok(()))
    }
}

impl PeerNetwork {
    async fn heartbeat(
        &self,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>> {
        let mut client = self.peer.client(self.lane).await.map_err(rpc_error)?;
        let (term, sent) = (request.vote.leader_id.term, BootTime::now());
        let answer = client.heartbeat(append_to_wire(request)).await;
        let answer = answer.and_then(|answer| append_result(answer.into_inner()));
        // A conflict of the logs is an answer of a follower too.
        if matches!(answer, Ok(Ok(_) | Err(StreamAppendError::Conflict(_)))) {
            self.lease.extend(self.peer.node_id, term, sent);
        }
        answer.map_err(|status| self.failed(status))
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
            let mut client = self.peer.client(Lane::Control).await.map_err(rpc_error)?;
            client.vote(message).await.map_err(|status| self.failed(status))
        };
        let answer = within(option.hard_ttl(), call).await?.into_inner();
        let Some(vote) = answer.vote else {
            let reason = "the peer answered a vote without one";
            return Err(RPCError::Network(NetworkError::from_string(reason)));
        };
        let last_log_id: Option<LogId> = answer.last_log_id.as_ref().map(log_id_from_wire);
        Ok(VoteResponse::new(vote_from_wire(&vote), last_log_id, answer.granted))
    }
}

/// Takes the next request, which holds all that there is to send by then, in step with this node's own writes.
fn in_step<S: futures::Stream + Unpin>(
    input: S,
    pace: Pace,
) -> impl futures::Stream<Item = S::Item> + use<S> {
    stream::unfold((input, pace), |(mut input, mut pace)| async {
        pace.step().await;
        let item = input.next().await?;
        Some((item, (input, pace)))
    })
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
