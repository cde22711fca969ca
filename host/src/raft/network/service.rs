//! Answers the other members.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Response, Status, Streaming,
    metadata::{MetadataMap, MetadataValue},
};

use super::{
    CLUSTER_HEADER, FROM_HEADER, PROTOCOL_VERSION, REFUSED_HEADER, TO_HEADER, peer::Local,
};
use crate::{
    proto::raft as wire,
    raft::{Replica, divergence, forward, modules, snapshot, status},
    types::{
        NodeId,
        convert::{
            Malformed, call_from_wire, checkpoint_from_wire, entry_from_wire, log_id_from_wire,
            log_id_to_wire, module_id_from_wire, vote_from_wire, vote_to_wire,
        },
        raft::{LogId, TypeConfig, Vote},
    },
};

/// The peer port's one service.
pub struct PeerService {
    replica: Replica,
    local: Arc<Local>,
    /// Who has introduced themselves since this process started.
    greeted: Mutex<BTreeSet<NodeId>>,
}

impl PeerService {
    /// Answers for this replica.
    pub fn new(replica: Replica, local: Arc<Local>) -> Self {
        Self { replica, local, greeted: Mutex::default() }
    }

    /// Refuses whoever is of another cluster, means another node, or has not introduced itself.
    fn admit(&self, metadata: &MetadataMap) -> Result<NodeId, Status> {
        self.check_open()?;
        let text = |name| metadata.get(name).and_then(|value| value.to_str().ok());
        let number = |name| text(name).and_then(|text| text.parse::<NodeId>().ok());
        self.check_target(text(CLUSTER_HEADER), number(TO_HEADER))?;
        let from = number(FROM_HEADER)
            .ok_or_else(|| Status::permission_denied("the peer port is for members only"))?;
        let greeted = self.greeted.lock().unwrap_or_else(PoisonError::into_inner);
        if greeted.contains(&from) {
            Ok(from)
        } else {
            Err(Status::permission_denied("a handshake must come first"))
        }
    }

    /// Refuses requests once this node stops.
    fn check_open(&self) -> Result<(), Status> {
        if !self.replica.is_closed_for_peers() {
            return Ok(());
        }
        let mut metadata = MetadataMap::new();
        metadata.insert(REFUSED_HEADER, MetadataValue::from_static("1"));
        Err(Status::with_metadata(Code::Unavailable, "this node is shutting down", metadata))
    }

    fn check_target(&self, cluster_id: Option<&str>, to: Option<NodeId>) -> Result<(), Status> {
        let identity = &self.local.identity;
        match cluster_id {
            Some(cluster_id) if cluster_id == identity.cluster_id => {}
            Some(cluster_id) => {
                return Err(Status::permission_denied(format!(
                    "this node belongs to cluster {}, not to {cluster_id}",
                    identity.cluster_id
                )));
            }
            None => return Err(Status::permission_denied("the peer port is for members only")),
        }
        if to == Some(identity.node_id) {
            Ok(())
        } else {
            let message =
                format!("this is node {}: check the members' addresses", identity.node_id);
            Err(Status::permission_denied(message))
        }
    }
}

fn malformed(error: Malformed) -> Status {
    Status::invalid_argument(error.to_string())
}

fn required<T>(field: Option<T>, name: &str) -> Result<T, Status> {
    field.ok_or_else(|| Status::invalid_argument(format!("{name} is missing")))
}

/// Reports of a snapshot's progress that wait to be sent: a newer one says more.
const REPORTS_WAITING: usize = 2;

/// No index and no term gets here, and counting on from here never overflows.
const COUNT_MAX: u64 = u64::MAX / 2;

fn vote(field: Option<wire::Vote>) -> Result<Vote, Status> {
    let vote = vote_from_wire(&required(field, "vote")?);
    if vote.leader_id.term > COUNT_MAX {
        let reason = format!("no cluster has a term of {}", vote.leader_id.term);
        return Err(Status::invalid_argument(reason));
    }
    Ok(vote)
}

/// The vote of one who leads: openraft takes it for granted that only a leader sends a log.
fn leader_vote(field: Option<wire::Vote>) -> Result<Vote, Status> {
    let vote = vote(field)?;
    if vote.committed {
        Ok(vote)
    } else {
        Err(Status::invalid_argument("the sender has not been elected"))
    }
}

fn log_id(field: Option<wire::LogId>) -> Result<Option<LogId>, Status> {
    match field {
        Some(log_id) if log_id.index > COUNT_MAX => {
            Err(Status::invalid_argument(format!("no log has an index of {}", log_id.index)))
        }
        log_id => Ok(log_id.as_ref().map(log_id_from_wire)),
    }
}

fn append_from_wire(
    request: wire::AppendRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, Status> {
    let entries = request.entries.into_iter().map(entry_from_wire).collect::<Result<Vec<_>, _>>();
    let (previous, entries) = (log_id(request.previous)?, entries.map_err(malformed)?);
    let first = previous.as_ref().map_or(0, |log_id| log_id.index + 1);
    if !entries.iter().zip(first..).all(|(entry, index)| entry.log_id.index == index) {
        return Err(Status::invalid_argument("the entries are not consecutive"));
    }
    Ok(AppendEntriesRequest {
        vote: leader_vote(request.vote)?,
        prev_log_id: previous,
        entries,
        leader_commit: log_id(request.leader_commit)?,
    })
}

fn append_to_wire(result: StreamAppendResult<TypeConfig>) -> wire::AppendResponse {
    use wire::append_response::Result as Answer;
    let result = match result {
        Ok(log_id) => {
            Answer::Matched(wire::Matched { log_id: log_id.as_ref().map(log_id_to_wire) })
        }
        Err(StreamAppendError::Conflict(log_id)) => Answer::Conflict(log_id_to_wire(&log_id)),
        Err(StreamAppendError::HigherVote(vote)) => Answer::HigherVote(vote_to_wire(&vote)),
    };
    wire::AppendResponse { result: Some(result) }
}

/// What openraft says once it has stopped.
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
        self.check_open()?;
        let hello = request.into_inner();
        self.check_target(Some(&hello.cluster_id), Some(hello.target_node_id))?;
        if hello.protocol_version != PROTOCOL_VERSION {
            return Err(Status::permission_denied(format!(
                "this node speaks version {PROTOCOL_VERSION} of the peers' protocol, not {}",
                hello.protocol_version
            )));
        }
        if !self.replica.is_member(hello.node_id) {
            return Err(Status::permission_denied(format!(
                "node {} is none of this cluster's members",
                hello.node_id
            )));
        }
        self.local
            .check(hello.node_id, &hello.incarnation, &hello.module_id)
            .map_err(Status::permission_denied)?;
        self.greeted.lock().unwrap_or_else(PoisonError::into_inner).insert(hello.node_id);
        let identity = &self.local.identity;
        Ok(Response::new(wire::HandshakeResponse {
            incarnation: identity.incarnation.to_vec().into(),
            module_id: identity.module_id.0.to_vec().into(),
            engine_fingerprint: self.local.engine.clone(),
            initialized: self.replica.is_initialized().await,
        }))
    }

    async fn append(
        &self,
        request: Request<Streaming<wire::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let from = self.admit(request.metadata())?;
        // A request that cannot be understood ends the stream: what follows builds on it.
        let receiver = self.replica.clone();
        let closed = Box::pin(self.replica.peers_closed());
        let requests = request.into_inner().take_until(closed).scan((), move |(), request| {
            let request = request.and_then(append_from_wire);
            let request = request.and_then(|request| {
                receiver.check_disk(Some(&request.vote))?;
                Ok(request)
            });
            let request = request.inspect_err(|status| {
                tracing::debug!(from, error = status.message(), "an append stream ended");
            });
            std::future::ready(request.ok())
        });
        let answers = self.replica.raft().stream_append(requests);
        let replica = self.replica.clone();
        let answers = answers.map(move |answer| {
            if matches!(&answer, Ok(result) if !matches!(result, Err(StreamAppendError::HigherVote(_)))) {
                replica.hear_leader();
            }
            answer.map(append_to_wire).map_err(stopped)
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn heartbeat(
        &self,
        request: Request<wire::AppendRequest>,
    ) -> Result<Response<wire::AppendResponse>, Status> {
        self.admit(request.metadata())?;
        let request = append_from_wire(request.into_inner())?;
        if !request.entries.is_empty() {
            return Err(Status::invalid_argument("a heartbeat brings no entries"));
        }
        self.replica.check_disk(Some(&request.vote))?;
        let previous = request.prev_log_id;
        let answer = self.replica.raft().append_entries(request).await.map_err(stopped)?;
        let result = answer.into_stream_result(previous, None);
        if !matches!(result, Err(StreamAppendError::HigherVote(_))) {
            self.replica.hear_leader();
        }
        Ok(Response::new(append_to_wire(result)))
    }

    async fn vote(
        &self,
        request: Request<wire::VoteRequest>,
    ) -> Result<Response<wire::VoteResponse>, Status> {
        self.admit(request.metadata())?;
        self.replica.check_disk(None)?;
        let message = request.into_inner();
        let mut request = openraft::raft::VoteRequest::<TypeConfig>::new(
            vote(message.vote)?,
            log_id(message.last_log_id)?,
        );
        request.leadership_transfer = message.leadership_transfer;
        if !message.leadership_transfer {
            self.replica.votes_freely().await;
        }
        let raft = self.replica.raft();
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
        self.admit(request.metadata())?;
        let digest = self.replica.digest_here(request.into_inner().index).await;
        Ok(Response::new(divergence::digest_to_wire(digest)))
    }

    type FetchSnapshotStream = BoxStream<'static, Result<wire::SnapshotPart, Status>>;

    async fn fetch_snapshot(
        &self,
        request: Request<wire::FetchSnapshotRequest>,
    ) -> Result<Response<Self::FetchSnapshotStream>, Status> {
        let to = self.admit(request.metadata())?;
        let wire::FetchSnapshotRequest { checkpoint, index_min } = request.into_inner();
        let checkpoint = required(checkpoint, "checkpoint")?;
        let checkpoint = checkpoint_from_wire(&checkpoint).map_err(malformed)?;
        let found = self.replica.snapshot_for(checkpoint, index_min, to).await;
        let (vote, file) = found.map_err(|error| Status::failed_precondition(error.to_string()))?;
        tracing::info!(to, index = file.index(), "sending a snapshot to a node that has diverged");
        Ok(Response::new(self.replica.send_snapshot(vote, file).map(Ok).boxed()))
    }

    async fn verify_state(
        &self,
        request: Request<wire::VerifyStateRequest>,
    ) -> Result<Response<wire::VerifyStateResponse>, Status> {
        self.admit(request.metadata())?;
        let found = self.replica.verify_here(request.into_inner().index).await;
        Ok(Response::new(divergence::verified_to_wire(found)))
    }

    async fn compare_clocks(
        &self,
        request: Request<wire::CompareClocksRequest>,
    ) -> Result<Response<wire::CompareClocksResponse>, Status> {
        self.admit(request.metadata())?;
        Ok(Response::new(self.replica.clock_for_peer()))
    }

    type InstallSnapshotStream = ReceiverStream<Result<wire::SnapshotProgress, Status>>;

    async fn install_snapshot(
        &self,
        request: Request<Streaming<wire::SnapshotPart>>,
    ) -> Result<Response<Self::InstallSnapshotStream>, Status> {
        let from = self.admit(request.metadata())?;
        let mut parts = request.into_inner();
        let Some(wire::SnapshotPart { part: Some(wire::snapshot_part::Part::Start(start)) }) =
            parts.message().await?
        else {
            return Err(Status::invalid_argument("a snapshot must begin with its header"));
        };
        let vote = leader_vote(start.vote)?;
        self.replica.check_disk(Some(&vote))?;
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
        let replica = self.replica.clone();
        // A task of its own: what has been received outlives the connection.
        let receiving = async move { replica.receive_snapshot(offered, reports).await };
        self.replica.supervisor().spawn("snapshot receiver", receiving);
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn transfer_leader(
        &self,
        request: Request<wire::TransferLeaderRequest>,
    ) -> Result<Response<wire::TransferLeaderResponse>, Status> {
        self.admit(request.metadata())?;
        let message = request.into_inner();
        if !self.replica.may_take_over() {
            return Ok(Response::new(wire::TransferLeaderResponse { accepted: false }));
        }
        let request = openraft::raft::TransferLeaderRequest::<TypeConfig>::new(
            vote(message.from)?,
            message.to_node_id,
            log_id(message.last_log_id)?,
        );
        let answer = self.replica.raft().handle_transfer_leader(request).await.map_err(stopped)?;
        Ok(Response::new(wire::TransferLeaderResponse { accepted: answer.is_ok() }))
    }

    async fn forward(
        &self,
        request: Request<wire::ForwardRequest>,
    ) -> Result<Response<wire::ForwardResponse>, Status> {
        self.admit(request.metadata())?;
        let message = request.into_inner();
        let call = call_from_wire(required(message.call, "call")?);
        let deadline = tokio::time::Instant::now() + Duration::from_millis(message.timeout_ms);
        let result = self.replica.propose(call, deadline).await;
        Ok(Response::new(forward::result_to_wire(result)))
    }

    async fn read_index(
        &self,
        request: Request<wire::ReadIndexRequest>,
    ) -> Result<Response<wire::ReadIndexResponse>, Status> {
        self.admit(request.metadata())?;
        self.replica.check_disk(None)?;
        let result = match self.replica.read_index_as_leader().await {
            Ok(index) => wire::read_index_response::Result::Index(index),
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
        self.admit(request.metadata())?;
        let replica = self.replica.clone();
        let requests = request.into_inner().take_until(Box::pin(self.replica.peers_closed()));
        let answers = requests.and_then(move |wire::ConfirmLeaderRequest { round }| {
            let replica = replica.clone();
            async move {
                let term = replica.raft().with_raft_state(|state| state.vote_ref().leader_id.term);
                let term = term.await.map_err(stopped)?;
                Ok(wire::ConfirmLeaderResponse { round, term })
            }
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn node_status(
        &self,
        request: Request<wire::NodeStatusRequest>,
    ) -> Result<Response<wire::NodeStatusResponse>, Status> {
        self.admit(request.metadata())?;
        Ok(Response::new(status::to_wire(&self.replica.node_status())))
    }

    async fn module_status(
        &self,
        request: Request<wire::ModuleStatusRequest>,
    ) -> Result<Response<wire::ModuleStatusResponse>, Status> {
        self.admit(request.metadata())?;
        let wire::ModuleStatusRequest { module_id, rehearse } = request.into_inner();
        let module = module_id_from_wire(&module_id).map_err(malformed)?;
        let readiness = match rehearse {
            true => self.replica.rehearse_here(module).await,
            false => self.replica.readiness(module),
        };
        Ok(Response::new(modules::status_to_wire(&readiness)))
    }
}
