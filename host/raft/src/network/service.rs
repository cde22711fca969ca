//! The gRPC service for the other members.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use openraft::raft::{StreamAppendError, StreamAppendResult};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    local::Local,
    message::{self, log_id, malformed, required},
    port::Admission,
};
use crate::{
    bootstrap::Bootstrap,
    command::Commands,
    components::{self, Rehearsals},
    divergence::{self, Digests, Giving, StateHashChecks},
    forward,
    health::HealthMonitor,
    leadership::Leadership,
    node::Node,
    peer_status,
    read_index::ReadIndex,
    snapshot::{self, Receiving, Transfers},
    status::Status as NodeStatus,
    time::Clock,
    vote_holdoff::VoteHoldoff,
};
use conclave_proto::{
    convert::{call_from_wire, component_id_from_wire, consistency_check_from_wire},
    raft as wire,
};
use conclave_storage::{
    convert::{log_id_to_wire, vote_to_wire},
    raft_types::TypeConfig,
};
use conclave_types::Caller;

/// The parts of a replica that serve the peers' requests.
pub(crate) struct Parts {
    pub(crate) node: Arc<Node>,
    pub(crate) bootstrap: Arc<Bootstrap>,
    pub(crate) hold: Arc<VoteHoldoff>,
    pub(crate) health: Arc<HealthMonitor>,
    pub(crate) leadership: Arc<Leadership>,
    pub(crate) commands: Arc<Commands>,
    pub(crate) read_index: Arc<ReadIndex>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) status: Arc<NodeStatus>,
    pub(crate) rehearsals: Arc<Rehearsals>,
    pub(crate) digests: Arc<Digests>,
    pub(crate) state_hash_checks: Arc<StateHashChecks>,
    pub(crate) giving: Arc<Giving>,
    pub(crate) transfers: Arc<Transfers>,
    pub(crate) receiving: Arc<Receiving>,
    /// Set once the streams of peers end.
    pub(crate) closed: watch::Receiver<bool>,
}

/// The only service of the peer port, for one connection. [`super::port`] admits each call before
/// its message is read.
pub(super) struct PeerService {
    parts: Arc<Parts>,
    local: Arc<Local>,
    admission: Admission,
}

impl PeerService {
    pub(super) fn new(parts: Arc<Parts>, admission: Admission) -> Self {
        let local = parts.node.local.clone();
        Self { parts, local, admission }
    }

    pub(super) fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Waits until the streams of peers end.
    fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut closed = self.parts.closed.clone();
        // A dropped sender also closes the streams.
        async move { drop(closed.wait_for(|closed| *closed).await) }
    }
}

/// The number of progress reports that wait to be sent. A newer report replaces an older one.
const REPORTS_WAITING: usize = 2;

fn append_to_wire(result: StreamAppendResult<TypeConfig>, process: u64) -> wire::AppendResponse {
    use wire::append_response::Result as Answer;
    let result = match result {
        Ok(log_id) => {
            Answer::Matched(wire::Matched { log_id: log_id.as_ref().map(log_id_to_wire) })
        }
        Err(StreamAppendError::Conflict(log_id)) => Answer::Conflict(log_id_to_wire(&log_id)),
        Err(StreamAppendError::HigherVote(vote)) => Answer::HigherVote(vote_to_wire(&vote)),
    };
    wire::AppendResponse { result: Some(result), process }
}

/// Returns the error for a request after openraft has stopped.
fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("this node has stopped: {error}"))
}

#[tonic::async_trait]
impl wire::raft_server::Raft for PeerService {
    type AppendStream = BoxStream<'static, Result<wire::AppendResponse, Status>>;

    async fn handshake(
        &self,
        request: Request<wire::HandshakeRequest>,
    ) -> Result<Response<wire::HandshakeResponse>, Status> {
        let hello = request.into_inner();
        self.admission.admit(&hello)?;
        self.parts.node.peers.contacted(hello.node_id, hello.standing.unwrap_or_default().process);
        let identity = &self.local.identity;
        Ok(Response::new(wire::HandshakeResponse {
            incarnation: identity.incarnation.to_vec().into(),
            component_id: identity.component_id.0.to_vec().into(),
            engine_fingerprint: self.local.engine.clone(),
            initialized: self.parts.bootstrap.is_initialized().await,
            standing: Some(self.local.standing.to_wire()),
            lease_ms: self.local.lease_ms(),
            restore_id: self.local.restore_id().to_vec().into(),
        }))
    }

    async fn ping(
        &self,
        _request: Request<wire::PingRequest>,
    ) -> Result<Response<wire::PingResponse>, Status> {
        Ok(Response::new(wire::PingResponse {}))
    }

    async fn append(
        &self,
        request: Request<Streaming<wire::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let from = self.admission.member()?;
        // An invalid request ends the stream, because the requests after it build on it.
        let (parts, local) = (self.parts.clone(), self.local.clone());
        let closed = Box::pin(self.closed());
        let requests = request.into_inner().take_until(closed).scan((), move |(), request| {
            let (parts, local) = (parts.clone(), local.clone());
            async move {
                let checked = async {
                    let request = request?;
                    if let Some(reason) = local.lost() {
                        return Err(Status::unavailable(reason));
                    }
                    let request = message::append(request, from)?;
                    parts.leadership.check_disk(Some(&request.vote))?;
                    message::check_against_log(&request, &parts.node.log).await?;
                    Ok(request)
                };
                let checked = checked.await.inspect_err(|status: &Status| {
                    tracing::debug!(from, error = status.message(), "an append stream ended");
                });
                checked.ok()
            }
        });
        let answers = self.parts.node.raft.stream_append(requests);
        let (health, process) = (self.parts.health.clone(), self.local.standing.process());
        let answers = answers.map(move |answer| {
            if matches!(&answer, Ok(result) if !matches!(result, Err(StreamAppendError::HigherVote(_)))) {
                health.hear_leader();
            }
            answer.map(|result| append_to_wire(result, process)).map_err(stopped)
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn heartbeat(
        &self,
        request: Request<wire::AppendRequest>,
    ) -> Result<Response<wire::AppendResponse>, Status> {
        let from = self.admission.member()?;
        let request = message::append(request.into_inner(), from)?;
        message::check_against_log(&request, &self.parts.node.log).await?;
        if !request.entries.is_empty() {
            return Err(Status::invalid_argument("a heartbeat must not contain entries"));
        }
        self.parts.leadership.check_disk(Some(&request.vote))?;
        let previous = request.prev_log_id;
        let answer = self.parts.node.raft.append_entries(request).await.map_err(stopped)?;
        let result = answer.into_stream_result(previous, None);
        if !matches!(result, Err(StreamAppendError::HigherVote(_))) {
            self.parts.health.hear_leader();
        }
        Ok(Response::new(append_to_wire(result, self.local.standing.process())))
    }

    async fn vote(
        &self,
        request: Request<wire::VoteRequest>,
    ) -> Result<Response<wire::VoteResponse>, Status> {
        let from = self.admission.member()?;
        self.parts.leadership.check_disk(None)?;
        let message = request.into_inner();
        let request = message::vote_request(&message, from)?;
        if !message.leadership_transfer {
            self.parts.hold.over().await;
            self.parts.node.peers.settled().await;
        }
        let raft = &self.parts.node.raft;
        let answer =
            if message.pre_vote { raft.pre_vote(request).await } else { raft.vote(request).await };
        let answer = answer.map_err(stopped)?;
        Ok(Response::new(wire::VoteResponse {
            vote: Some(vote_to_wire(&answer.vote)),
            granted: answer.vote_granted,
            last_log_id: answer.last_log_id.as_ref().map(log_id_to_wire),
        }))
    }

    async fn digest(
        &self,
        request: Request<wire::DigestRequest>,
    ) -> Result<Response<wire::DigestResponse>, Status> {
        let digest = self.parts.digests.here(request.into_inner().index).await;
        Ok(Response::new(divergence::digest_to_wire(digest)))
    }

    type FetchSnapshotStream = BoxStream<'static, Result<wire::SnapshotPart, Status>>;

    async fn fetch_snapshot(
        &self,
        request: Request<wire::FetchSnapshotRequest>,
    ) -> Result<Response<Self::FetchSnapshotStream>, Status> {
        let to = self.admission.member()?;
        let wire::FetchSnapshotRequest { consistency_check, index_min } = request.into_inner();
        let consistency_check = required(consistency_check, "consistency_check")?;
        let consistency_check =
            consistency_check_from_wire(&consistency_check).map_err(malformed)?;
        let found = self.parts.giving.snapshot_for(consistency_check, index_min, to).await;
        let (vote, file) = found.map_err(|error| Status::failed_precondition(error.to_string()))?;
        tracing::info!(to, index = file.index(), "sending a snapshot to a node that has diverged");
        let parts = snapshot::send(vote, file, self.parts.transfers.clone());
        Ok(Response::new(parts.map(Ok).boxed()))
    }

    async fn verify_state(
        &self,
        request: Request<wire::VerifyStateRequest>,
    ) -> Result<Response<wire::VerifyStateResponse>, Status> {
        let found = self.parts.state_hash_checks.here(request.into_inner().index).await;
        Ok(Response::new(divergence::verified_to_wire(found)))
    }

    async fn compare_clocks(
        &self,
        _request: Request<wire::CompareClocksRequest>,
    ) -> Result<Response<wire::CompareClocksResponse>, Status> {
        Ok(Response::new(self.parts.clock.for_peer()))
    }

    type InstallSnapshotStream = ReceiverStream<Result<wire::SnapshotProgress, Status>>;

    async fn install_snapshot(
        &self,
        request: Request<Streaming<wire::SnapshotPart>>,
    ) -> Result<Response<Self::InstallSnapshotStream>, Status> {
        let from = self.admission.member()?;
        let mut parts = request.into_inner();
        let Some(wire::SnapshotPart { part: Some(wire::snapshot_part::Part::Start(start)) }) =
            parts.message().await?
        else {
            return Err(Status::invalid_argument("a snapshot must begin with its header"));
        };
        let vote = message::leader_vote(start.vote, from)?;
        self.parts.leadership.check_disk(Some(&vote))?;
        let mut header = required(start.header, "header")?;
        snapshot::note_origin(&mut header, from);
        snapshot::check_header(&header, &self.local.identity)
            .map_err(Status::failed_precondition)?;
        log_id(header.last_log_id)?;
        snapshot::check_coverage(&header, &vote).map_err(Status::invalid_argument)?;
        tracing::info!(from, bytes = start.bytes, "receiving a snapshot");
        let wire::SnapshotStart { file_id, bytes, .. } = start;
        let offered = snapshot::Offered { vote, header, file_id, bytes, parts };
        let (reports, answers) = mpsc::channel(REPORTS_WAITING);
        let receiving = self.parts.receiving.clone();
        // In a separate task, because the received part outlives the connection.
        let receiving = async move { Box::pin(receiving.receive(offered, reports)).await };
        self.parts.node.supervisor.spawn("snapshot receiver", receiving);
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn transfer_leader(
        &self,
        request: Request<wire::TransferLeaderRequest>,
    ) -> Result<Response<wire::TransferLeaderResponse>, Status> {
        let from = self.admission.member()?;
        let message = request.into_inner();
        if !self.parts.leadership.may_take_over() {
            return Ok(Response::new(wire::TransferLeaderResponse { accepted: false }));
        }
        let request = openraft::raft::TransferLeaderRequest::<TypeConfig>::new(
            message::leader_vote(message.from, from)?,
            message.to_node_id,
            log_id(message.last_log_id)?,
        );
        let answer = self.parts.node.raft.handle_transfer_leader(request).await.map_err(stopped)?;
        Ok(Response::new(wire::TransferLeaderResponse { accepted: answer.is_ok() }))
    }

    async fn forward(
        &self,
        request: Request<wire::ForwardRequest>,
    ) -> Result<Response<wire::ForwardResponse>, Status> {
        let message = request.into_inner();
        let call = call_from_wire(required(message.call, "call")?);
        let deadline = tokio::time::Instant::now() + Duration::from_millis(message.timeout_ms);
        let caller = Caller(message.caller.into());
        let result = self.parts.commands.propose(call, &caller, deadline).await;
        Ok(Response::new(forward::result_to_wire(result)))
    }

    async fn read_index(
        &self,
        _request: Request<wire::ReadIndexRequest>,
    ) -> Result<Response<wire::ReadIndexResponse>, Status> {
        let from = self.admission.member()?;
        self.parts.leadership.check_disk(None)?;
        let result = match self.parts.read_index.get_as_leader().await {
            Ok(index) => {
                self.parts.node.peers.want_commit(from, index);
                wire::read_index_response::Result::Index(index)
            }
            Err(error) => {
                wire::read_index_response::Result::Refusal(forward::refusal_to_wire(&error))
            }
        };
        Ok(Response::new(wire::ReadIndexResponse { result: Some(result) }))
    }

    type ConfirmLeaderStream = BoxStream<'static, Result<wire::ConfirmLeaderResponse, Status>>;

    async fn confirm_leader(
        &self,
        request: Request<Streaming<wire::ConfirmLeaderRequest>>,
    ) -> Result<Response<Self::ConfirmLeaderStream>, Status> {
        let local = self.local.clone();
        let requests = request.into_inner().take_until(Box::pin(self.closed()));
        let answers = requests.map(move |request| {
            let wire::ConfirmLeaderRequest { round } = request?;
            match local.lost() {
                Some(reason) => Err(Status::unavailable(reason)),
                None => Ok(wire::ConfirmLeaderResponse { round, term: local.voted_term() }),
            }
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn node_status(
        &self,
        _request: Request<wire::NodeStatusRequest>,
    ) -> Result<Response<wire::NodeStatusResponse>, Status> {
        Ok(Response::new(peer_status::to_wire(&self.parts.status.of_node())))
    }

    async fn component_status(
        &self,
        request: Request<wire::ComponentStatusRequest>,
    ) -> Result<Response<wire::ComponentStatusResponse>, Status> {
        let wire::ComponentStatusRequest { component_id, rehearse } = request.into_inner();
        let component = component_id_from_wire(&component_id).map_err(malformed)?;
        let readiness = match rehearse {
            true => self.parts.rehearsals.rehearse(component).await,
            false => self.parts.rehearsals.readiness(component),
        };
        Ok(Response::new(components::status_to_wire(&readiness)))
    }
}
