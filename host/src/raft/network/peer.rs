//! Connections to the other members.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tonic::{
    Request, Status,
    metadata::MetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::{CLUSTER_HEADER, FROM_HEADER, MESSAGE_BYTES_MAX, PROTOCOL_VERSION, TO_HEADER};
use crate::{
    proto::raft::{HandshakeRequest, HandshakeResponse, raft_client::RaftClient},
    raft::disk::DiskWatch,
    storage::{Identity, LogStore, Pace},
    types::{NodeId, raft::Member},
};

/// How long a new connection may take to be made, and its handshake to be answered.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection is probed this often while nothing else is on it …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// … and given up when a probe is not answered for so long.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// HTTP/2 flow control, a stream and a connection: enough for a batch of the largest entries.
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// What a connection is for. Each has its own, so that none waits behind another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Log entries.
    Log,
    /// Heartbeats, votes, forwarded calls, questions.
    Control,
    /// Snapshots.
    Snapshot,
}

const LANES: [Lane; 3] = [Lane::Log, Lane::Control, Lane::Snapshot];

/// Why a peer was not reached.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The network, or the peer, said no.
    #[error("node {node_id} at {address}: {message}", message = status.message())]
    Call {
        /// The peer.
        node_id: NodeId,
        /// Its address.
        address: String,
        /// What came back.
        status: Box<Status>,
    },
    /// It answered, but is not the node that it should be.
    #[error("node {node_id} at {address} is refused: {reason}")]
    Stranger {
        /// The peer.
        node_id: NodeId,
        /// Its address.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The address in the membership is not one.
    #[error("node {node_id} has the address {address}, which is not one: {reason}")]
    Address {
        /// The peer.
        node_id: NodeId,
        /// Its address.
        address: String,
        /// Why not.
        reason: String,
    },
}

/// Who this node is, as it tells its peers, and what it remembers of them.
pub struct Local {
    /// From the data directory.
    pub identity: Identity,
    /// The engine's fingerprint.
    pub engine: String,
    /// Where the peers' incarnations are remembered.
    log: LogStore,
    /// Whether this node's disk answers.
    pub(super) disk: DiskWatch,
    /// Two who introduce themselves by the same id at once meet one after the other.
    meeting: Mutex<()>,
    /// The peers' engines, as last seen.
    engines: Mutex<HashMap<NodeId, String>>,
}

impl Local {
    /// Whose data directory it is, and where to remember the others.
    pub fn new(identity: Identity, engine: String, log: LogStore, disk: DiskWatch) -> Self {
        let (meeting, engines) = (Mutex::default(), Mutex::default());
        Self { identity, engine, log, disk, meeting, engines }
    }

    /// The first meeting with a node id is remembered for good: the same id with another data
    /// directory is a node that lost its log, and with it the votes that it gave.
    fn recognise(&self, node_id: NodeId, incarnation: &[u8]) -> Result<(), String> {
        let record = format!("peer/{node_id}/incarnation");
        let _meeting = self.meeting.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.log.get_record(&record).map_err(|error| error.to_string())?;
        match known {
            Some(known) if known == incarnation => Ok(()),
            Some(_) => Err(format!(
                "node {node_id} came back with another data directory than the one it joined \
                 with: a node that lost its data must join under a new node id"
            )),
            None => self
                .log
                .put_record(&record, Some(incarnation.to_vec()))
                .map_err(|error| error.to_string()),
        }
    }

    /// Warns once of each other engine that a peer has.
    fn compare_engine(&self, node_id: NodeId, theirs: &str) {
        let mut known = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.entry(node_id).or_insert_with(|| self.engine.clone());
        if known == theirs {
            return;
        }
        theirs.clone_into(known);
        if theirs != self.engine {
            tracing::warn!(
                node = node_id,
                theirs,
                ours = self.engine,
                "engines differ, because of another processor, version or limit: calls that reach a limit may have \
                 other outcomes there"
            );
        }
    }

    /// Checks what a peer says of itself, at either end of a handshake.
    pub fn check(
        &self,
        node_id: NodeId,
        incarnation: &[u8],
        module_id: &[u8],
    ) -> Result<(), String> {
        if module_id != self.identity.module_id.0 {
            return Err(format!(
                "node {node_id} was begun with module {}, this node with {}: begin every node of a cluster \
                 with the same module (--module); later ones come through `conclave module push`",
                hex::encode(module_id),
                self.identity.module_id
            ));
        }
        self.recognise(node_id, incarnation)
    }
}

/// Puts on every request who asks whom.
#[derive(Clone)]
pub struct Introduce {
    cluster: MetadataValue<tonic::metadata::Ascii>,
    from: MetadataValue<tonic::metadata::Ascii>,
    to: MetadataValue<tonic::metadata::Ascii>,
}

impl Interceptor for Introduce {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert(CLUSTER_HEADER, self.cluster.clone());
        metadata.insert(FROM_HEADER, self.from.clone());
        metadata.insert(TO_HEADER, self.to.clone());
        Ok(request)
    }
}

/// The client of one lane to one peer.
pub type Client = RaftClient<InterceptedService<Channel, Introduce>>;

struct Connection {
    client: Client,
    /// Set by a handshake, cleared by a failure: whoever answers next may be somebody else.
    greeted: AtomicBool,
}

/// One other member.
pub struct Peer {
    /// Its node id.
    pub node_id: NodeId,
    /// Its peer address.
    pub address: String,
    local: Arc<Local>,
    connections: Result<[Connection; LANES.len()], String>,
}

impl Peer {
    fn new(node_id: NodeId, address: &str, local: Arc<Local>) -> Self {
        let connections = connect(node_id, address, &local);
        Self { node_id, address: address.to_owned(), local, connections }
    }

    /// Whether this node's own disk answers.
    pub(super) fn disk(&self) -> &DiskWatch {
        &self.local.disk
    }

    /// The pace at which this node writes what it sends.
    pub(super) fn pace(&self) -> Pace {
        self.local.log.pace()
    }

    fn connection(&self, lane: Lane) -> Result<&Connection, PeerError> {
        match &self.connections {
            Ok(connections) => Ok(&connections[lane as usize]),
            Err(reason) => Err(PeerError::Address {
                node_id: self.node_id,
                address: self.address.clone(),
                reason: reason.clone(),
            }),
        }
    }

    /// A client of a connection whose other end has been checked.
    pub async fn client(&self, lane: Lane) -> Result<Client, PeerError> {
        let connection = self.connection(lane)?;
        if !connection.greeted.load(Ordering::Acquire) {
            self.handshake(lane).await?;
        }
        Ok(connection.client.clone())
    }

    /// Introduces this node to the peer and checks who answers.
    pub async fn handshake(&self, lane: Lane) -> Result<HandshakeResponse, PeerError> {
        let connection = self.connection(lane)?;
        let identity = &self.local.identity;
        let mut request = Request::new(HandshakeRequest {
            cluster_id: identity.cluster_id.clone(),
            node_id: identity.node_id,
            target_node_id: self.node_id,
            incarnation: identity.incarnation.to_vec().into(),
            module_id: identity.module_id.0.to_vec().into(),
            engine_fingerprint: self.local.engine.clone(),
            protocol_version: PROTOCOL_VERSION,
        });
        request.set_timeout(CONNECT_TIMEOUT);
        let answer = connection.client.clone().handshake(request).await;
        let answer = answer.map_err(|status| self.failed(lane, status))?.into_inner();
        self.local.check(self.node_id, &answer.incarnation, &answer.module_id).map_err(
            |reason| PeerError::Stranger {
                node_id: self.node_id,
                address: self.address.clone(),
                reason,
            },
        )?;
        self.local.compare_engine(self.node_id, &answer.engine_fingerprint);
        connection.greeted.store(true, Ordering::Release);
        Ok(answer)
    }

    /// Notes that a call failed, so that the next one begins with a handshake.
    pub fn failed(&self, lane: Lane, status: Status) -> PeerError {
        if let Ok(connection) = self.connection(lane) {
            connection.greeted.store(false, Ordering::Release);
        }
        let (node_id, address) = (self.node_id, self.address.clone());
        PeerError::Call { node_id, address, status: Box::new(status) }
    }
}

fn connect(
    node_id: NodeId,
    address: &str,
    local: &Local,
) -> Result<[Connection; LANES.len()], String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| error.to_string())?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    let ascii = |text: String| MetadataValue::try_from(text).map_err(|error| error.to_string());
    let introduce = Introduce {
        cluster: ascii(local.identity.cluster_id.clone())?,
        from: ascii(local.identity.node_id.to_string())?,
        to: ascii(node_id.to_string())?,
    };
    Ok(LANES.map(|_| Connection {
        client: RaftClient::with_interceptor(endpoint.connect_lazy(), introduce.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX),
        greeted: AtomicBool::new(false),
    }))
}

/// All the peers that this node has had to do with.
pub struct Peers {
    local: Arc<Local>,
    known: Mutex<HashMap<NodeId, Arc<Peer>>>,
}

impl Peers {
    /// None yet.
    pub fn new(local: Arc<Local>) -> Self {
        Self { local, known: Mutex::default() }
    }

    /// The peer, at the address that the membership gives for it.
    pub fn peer(&self, node_id: NodeId, member: &Member) -> Arc<Peer> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&node_id) {
            Some(peer) if peer.address == member.peer_address => peer.clone(),
            _ => {
                let peer = Peer::new(node_id, &member.peer_address, self.local.clone());
                let peer = Arc::new(peer);
                known.insert(node_id, peer.clone());
                peer
            }
        }
    }
}
