//! The peer port's connections.
//!
//! # Contract
//! - A connection belongs to no member until a handshake on it has succeeded. Until then every other
//!   call is rejected by its headers, and no byte of its message is read.
//! - Every method has a limit for its messages. Only log entries are large.
//! - A connection belongs to one member. A handshake that is rejected ends its admission.
//!
//! The node id in a handshake is the caller's own claim: the peer port belongs on a private network.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Instant,
};

use tokio::sync::watch;
use tonic::{
    Code, Status,
    body::Body,
    codegen::{BoxFuture, Service, StdError, http},
    metadata::{MetadataMap, MetadataValue},
};

use super::{
    MESSAGE_BYTES_MAX, PROTOCOL_VERSION, REFUSED_HEADER,
    backoff::Problem,
    service::{Parts, PeerService},
};
use conclave_proto::raft::{HandshakeRequest, raft_server::RaftServer};
use conclave_types::NodeId;

/// The largest handshake.
const HANDSHAKE_BYTES_MAX: usize = 4 << 10;
/// The largest request message of the methods that have no limit of their own.
pub(super) const SMALL_BYTES_MAX: usize = 64 << 10;
/// The largest forwarded call. The largest `request_bytes_max` of a configuration is 16 MiB.
const FORWARD_BYTES_MAX: usize = 17 << 20;
/// The largest part of a snapshot. Its header and its chunks have up to 1 MiB each.
const SNAPSHOT_PART_BYTES_MAX: usize = 2 << 20;
/// The maximum number of refused peers that are remembered for the log. A caller can claim any node id.
const REFUSED_MAX: usize = 64;

/// The methods' paths are this prefix and the method's name.
const PATH: &str = "/conclave.raft.v1.Raft/";
const HANDSHAKE: &str = "Handshake";

/// Creates the services for the connections to the peer port.
#[derive(Clone)]
pub struct PeerPort {
    parts: Arc<Parts>,
    /// The peers that this process refuses, with the reasons.
    refused: Arc<Mutex<BTreeMap<NodeId, Problem>>>,
}

impl PeerPort {
    /// Creates the port for these parts of a replica.
    pub(crate) fn new(parts: Parts) -> Self {
        Self { parts: Arc::new(parts), refused: Arc::default() }
    }

    /// Returns the service for a new connection. It publishes the member that the connection
    /// belongs to.
    pub fn connection(&self, member: watch::Sender<Option<NodeId>>) -> PeerConnection {
        let admission = Admission { port: self.clone(), member };
        PeerConnection { service: Arc::new(PeerService::new(self.parts.clone(), admission)) }
    }

    /// Rejects a caller that belongs to another cluster, or that intends another node.
    fn check_target(&self, hello: &HandshakeRequest) -> Result<(), Status> {
        let identity = &self.parts.node.local.identity;
        if hello.cluster_id != identity.cluster_id {
            return Err(Status::permission_denied(format!(
                "this node belongs to cluster {}, not to {}",
                identity.cluster_id, hello.cluster_id
            )));
        }
        if hello.target_node_id != identity.node_id {
            return Err(Status::permission_denied(format!(
                "this is node {}: check the members' addresses",
                identity.node_id
            )));
        }
        Ok(())
    }

    /// Checks the data that a peer presents.
    fn check(&self, hello: &HandshakeRequest) -> Result<(), Status> {
        if hello.protocol_version != PROTOCOL_VERSION {
            return Err(Status::permission_denied(format!(
                "this node speaks version {PROTOCOL_VERSION} of the peers' protocol, not {}",
                hello.protocol_version
            )));
        }
        if !self.parts.bootstrap.is_member(hello.node_id) {
            return Err(Status::permission_denied(format!(
                "node {} is not a member of this cluster",
                hello.node_id
            )));
        }
        let local = &self.parts.node.local;
        local
            .check(
                hello.node_id,
                &hello.incarnation,
                &hello.component_id,
                hello.lease_ms,
                &hello.restore_id,
            )
            .map_err(Status::permission_denied)?;
        let standing = hello.standing.unwrap_or_default();
        local.check_standing(hello.node_id, &standing).map_err(Status::data_loss)
    }

    /// Records that a peer is refused, and logs it once, then once per minute.
    fn refuse(&self, node_id: NodeId, status: &Status) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() >= REFUSED_MAX && !refused.contains_key(&node_id) {
            return;
        }
        let reason = status.message();
        let problem = refused.entry(node_id).or_default();
        if let Some(attempts) = problem.occurred(reason, true, Instant::now()) {
            tracing::warn!(node = node_id, attempts, reason, "peer refused");
        }
    }

    /// Rejects requests once this node stops.
    fn check_open(&self) -> Result<(), Status> {
        if !*self.parts.closed.borrow() {
            return Ok(());
        }
        let mut metadata = MetadataMap::new();
        metadata.insert(REFUSED_HEADER, MetadataValue::from_static("1"));
        Err(Status::with_metadata(Code::Unavailable, "this node is shutting down", metadata))
    }
}

/// The admission of one connection.
pub(super) struct Admission {
    port: PeerPort,
    /// The member that the connection belongs to, after its handshake.
    member: watch::Sender<Option<NodeId>>,
}

impl Admission {
    /// Admits the connection if the handshake is that of a member.
    pub(super) fn admit(&self, hello: &HandshakeRequest) -> Result<(), Status> {
        let known = *self.member.borrow();
        let checked = self.port.check_target(hello).and_then(|()| match known {
            Some(node_id) if node_id != hello.node_id => Err(Status::permission_denied(format!(
                "this connection belongs to node {node_id}, not to node {}",
                hello.node_id
            ))),
            _ => {
                let checked = self.port.check(hello);
                checked.inspect_err(|status| self.port.refuse(hello.node_id, status))
            }
        });
        if checked.is_ok() {
            let mut refused = self.port.refused.lock().unwrap_or_else(PoisonError::into_inner);
            refused.remove(&hello.node_id);
        }
        self.member.send_replace(checked.is_ok().then_some(hello.node_id));
        checked
    }

    /// Returns the member that the connection belongs to. A member that was removed must repeat the
    /// handshake, which then fails.
    pub(super) fn member(&self) -> Result<NodeId, Status> {
        match *self.member.borrow() {
            Some(node_id) if self.port.parts.bootstrap.is_member(node_id) => Ok(node_id),
            _ => Err(Status::permission_denied(
                "the peer port is for members only: a handshake must come first",
            )),
        }
    }

    /// Rejects a call that must not be read.
    fn check(&self, method: &str) -> Result<(), Status> {
        self.port.check_open()?;
        if method == HANDSHAKE {
            return Ok(());
        }
        self.member()?;
        match self.port.parts.node.local.lost() {
            // An old copy of a data directory takes part in nothing, but its status can be read.
            Some(reason) if !matches!(method, "Ping" | "NodeStatus") => {
                Err(Status::unavailable(reason))
            }
            _ => Ok(()),
        }
    }
}

/// Returns the limit of a method's request messages.
fn request_bytes_max(method: &str) -> usize {
    match method {
        HANDSHAKE => HANDSHAKE_BYTES_MAX,
        "Append" => MESSAGE_BYTES_MAX,
        "Forward" => FORWARD_BYTES_MAX,
        "InstallSnapshot" => SNAPSHOT_PART_BYTES_MAX,
        _ => SMALL_BYTES_MAX,
    }
}

/// The service for one connection.
#[derive(Clone)]
pub struct PeerConnection {
    service: Arc<PeerService>,
}

impl<B> Service<http::Request<B>> for PeerConnection
where
    B: tonic::codegen::Body<Error: Into<StdError> + Send + 'static> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let method = request.uri().path().strip_prefix(PATH).unwrap_or_default();
        if let Err(status) = self.service.admission().check(method) {
            return Box::pin(std::future::ready(Ok(status.into_http())));
        }
        let limit = request_bytes_max(method);
        RaftServer::from_arc(self.service.clone())
            .max_decoding_message_size(limit)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .call(request)
    }
}
