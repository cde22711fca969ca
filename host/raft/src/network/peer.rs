//! Connections to the other members.
//!
//! Each [`Peer`] has a task that keeps it connected: it makes the handshake, pings the peer once
//! per second, and retries with a back-off after a failure. While the peer is not connected, all
//! other calls fail at once, so none of openraft's loops reaches the network.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::{sleep, timeout},
};
use tonic::{Code, Request, Status};

pub use super::connection::{Client, ConnectionClass};
use super::{
    PROTOCOL_VERSION,
    backoff::{self, Problem},
    connection::{CONNECT_TIMEOUT, Connection, Connector},
    local::Local,
    port::SMALL_BYTES_MAX,
};
use crate::{disk::DiskWatch, supervise::Supervisor};
use conclave_proto::raft::{HandshakeRequest, HandshakeResponse, PingRequest};
use conclave_storage::BatchWindow;
use conclave_types::{NodeId, status::PeerLink};

/// The interval at which a connected peer is pinged.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// The minimum time between two attempts, whatever their cause.
const ATTEMPT_SPACING: Duration = Duration::from_millis(20);

/// The reason why a peer was not reached.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PeerError {
    /// The network failed, or the peer returned an error.
    #[error("node {node_id} at {address}: {message}", message = status.message())]
    Call {
        /// The peer.
        node_id: NodeId,
        /// Its address.
        address: String,
        /// The error.
        status: Box<Status>,
    },
    /// The peer responded, but is not the expected node.
    #[error("node {node_id} at {address} is refused: {reason}")]
    Stranger {
        /// The peer.
        node_id: NodeId,
        /// Its address.
        address: String,
        /// The difference from the expected node.
        reason: String,
    },
    /// The address in the membership is invalid.
    #[error("node {node_id} has the invalid address {address}: {reason}")]
    Address {
        /// The peer.
        node_id: NodeId,
        /// Its address.
        address: String,
        /// The reason why the address is invalid.
        reason: String,
    },
}

impl PeerError {
    /// Returns whether one of the two nodes refuses the other. Otherwise the network failed.
    fn is_refusal(&self) -> bool {
        match self {
            Self::Call { status, .. } => matches!(
                status.code(),
                Code::PermissionDenied | Code::DataLoss | Code::FailedPrecondition
            ),
            Self::Stranger { .. } | Self::Address { .. } => true,
        }
    }
}

/// The state of the link to a peer.
#[derive(Clone, Debug)]
enum Link {
    /// The first attempt is running.
    Connecting,
    Up,
    /// The last attempt failed.
    Down(PeerError),
}

/// One other member.
pub struct Peer {
    /// Its node id.
    pub node_id: NodeId,
    /// Its peer address.
    pub address: String,
    local: Arc<Local>,
    connector: Result<Connector, String>,
    connections: Mutex<Vec<Connection>>,
    /// The process of the peer that introduced itself last; 0 if none has.
    process: watch::Sender<u64>,
    link: watch::Sender<Link>,
    /// Wakes the task that keeps the connection.
    wake: Arc<Notify>,
    /// Set when the peer has just introduced itself, so it can be reached now or soon.
    contacted: AtomicBool,
    /// The smoothed round trip; 0 if it has not been measured.
    round_trip_us: AtomicU64,
    keeper: Mutex<Option<AbortHandle>>,
    /// The highest commit index that this node, as the leader, has returned to the peer for a read.
    wanted_commit: watch::Sender<u64>,
}

impl Peer {
    pub(super) fn start(
        node_id: NodeId,
        address: &str,
        local: Arc<Local>,
        supervisor: &Supervisor,
    ) -> Arc<Self> {
        let connector = Connector::new(address);
        let peer = Arc::new(Self {
            node_id,
            address: address.to_owned(),
            local,
            connections: Mutex::new(connector.as_ref().map(Connector::all).unwrap_or_default()),
            connector,
            process: watch::Sender::new(0),
            link: watch::Sender::new(Link::Connecting),
            wake: Arc::default(),
            contacted: AtomicBool::new(false),
            round_trip_us: AtomicU64::new(0),
            keeper: Mutex::default(),
            wanted_commit: watch::Sender::new(0),
        });
        let keeper = supervisor.spawn("peer", keep(Arc::downgrade(&peer), peer.wake.clone()));
        *peer.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper.abort_handle());
        peer
    }

    /// Returns this node's identity towards its peers.
    pub(super) fn local(&self) -> &Local {
        &self.local
    }

    /// Returns the watch on this node's own disk.
    pub(super) fn disk(&self) -> &DiskWatch {
        &self.local.disk
    }

    /// Records that the peer waits until it has applied the log up to this index.
    pub(super) fn want_commit(&self, index: u64) {
        self.wanted_commit.send_if_modified(|wanted| {
            let higher = index > *wanted;
            *wanted = index.max(*wanted);
            higher
        });
    }

    pub(super) fn wanted_commit(&self) -> watch::Receiver<u64> {
        self.wanted_commit.subscribe()
    }

    /// Returns the batch window of this node's own disk writes.
    pub(super) fn pace(&self) -> BatchWindow {
        self.local.pace()
    }

    fn connections(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connection(&self, class: ConnectionClass) -> Result<Connection, PeerError> {
        match &self.connector {
            Ok(_) => Ok(self.connections()[class as usize].clone()),
            Err(reason) => Err(PeerError::Address {
                node_id: self.node_id,
                address: self.address.clone(),
                reason: reason.clone(),
            }),
        }
    }

    /// Replaces all connections. A connection to a host that vanished is silent, and is closed only
    /// after its keep-alive timeout.
    fn reconnect(&self) {
        if let Ok(connector) = &self.connector {
            *self.connections() = connector.all();
        }
    }

    /// Returns once a process of the peer other than the present one has introduced itself. Nothing
    /// more arrives on the connections to the present process.
    pub(crate) fn replaced(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut process = self.process.subscribe();
        let present = *process.borrow();
        async move {
            let another = process.wait_for(|process| *process != present);
            if another.await.is_err() {
                // The peer is gone, and its connections with it.
                std::future::pending().await
            }
        }
    }

    /// Returns a client of a connection after a successful handshake. Fails at once while the peer
    /// is not connected. Waits while the first attempt is running.
    pub async fn client(&self, class: ConnectionClass) -> Result<Client, PeerError> {
        let connection = self.connection(class)?;
        self.settled().await?;
        if let Some(reason) = self.local.lost() {
            return Err(self.call_error(Status::data_loss(reason)));
        }
        if !connection.greeted.load(Ordering::Acquire) {
            self.greet_once(&connection).await?;
        }
        Ok(connection.client)
    }

    /// Makes the handshake of a connection, or waits for the handshake of another call.
    async fn greet_once(&self, connection: &Connection) -> Result<(), PeerError> {
        match connection.greeting.try_lock() {
            Ok(_greeting) => {
                self.greet(connection).await.inspect_err(|_| self.wake.notify_one())?;
                Ok(())
            }
            Err(_) => {
                drop(connection.greeting.lock().await);
                match connection.greeted.load(Ordering::Acquire) {
                    true => Ok(()),
                    false => Err(self.call_error(Status::unavailable("the handshake failed"))),
                }
            }
        }
    }

    /// Waits for the end of the first attempt to connect, and returns the result of the last attempt.
    pub(super) async fn settled(&self) -> Result<(), PeerError> {
        let mut link = self.link.subscribe();
        let link = link.wait_for(|link| !matches!(link, Link::Connecting)).await;
        match link.as_deref() {
            Ok(Link::Down(error)) => Err(error.clone()),
            // The sender is a field of this peer, so it cannot be gone.
            Ok(Link::Connecting | Link::Up) | Err(_) => Ok(()),
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        matches!(&*self.link.borrow(), Link::Up)
    }

    /// Returns when the peer is connected.
    pub(super) async fn connected(&self) {
        // An error is impossible for the same reason.
        let _ = self.link.subscribe().wait_for(|link| matches!(link, Link::Up)).await;
    }

    /// Introduces this node to the peer and checks the peer's identity.
    pub async fn handshake(&self, class: ConnectionClass) -> Result<HandshakeResponse, PeerError> {
        self.greet(&self.connection(class)?).await
    }

    async fn greet(&self, connection: &Connection) -> Result<HandshakeResponse, PeerError> {
        let identity = &self.local.identity;
        let mut request = Request::new(HandshakeRequest {
            cluster_id: identity.cluster_id.clone(),
            node_id: identity.node_id,
            target_node_id: self.node_id,
            incarnation: identity.incarnation.to_vec().into(),
            component_id: identity.component_id.0.to_vec().into(),
            engine_fingerprint: self.local.engine.clone(),
            protocol_version: PROTOCOL_VERSION,
            standing: Some(self.local.standing.to_wire()),
            lease_ms: self.local.lease_ms(),
            restore_id: self.local.restore_id().to_vec().into(),
        });
        request.set_timeout(CONNECT_TIMEOUT);
        let client = connection.client.clone();
        let answer = client.max_decoding_message_size(SMALL_BYTES_MAX).handshake(request).await;
        let answer = answer.map_err(|status| {
            if status.code() == Code::DataLoss {
                self.local.condemn(self.node_id, status.message());
            }
            self.call_error(status)
        })?;
        let answer = answer.into_inner();
        let checked = self.local.check(
            self.node_id,
            &answer.incarnation,
            &answer.component_id,
            answer.lease_ms,
            &answer.restore_id,
        );
        let standing = answer.standing.unwrap_or_default();
        checked.and_then(|()| self.local.check_standing(self.node_id, &standing)).map_err(
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

    /// Records that a call failed: the next call begins with a handshake, and the connection is checked.
    pub fn failed(&self, class: ConnectionClass, status: Status) -> PeerError {
        if let Ok(connection) = self.connection(class) {
            connection.greeted.store(false, Ordering::Release);
        }
        self.wake.notify_one();
        self.call_error(status)
    }

    fn call_error(&self, status: Status) -> PeerError {
        let (node_id, address) = (self.node_id, self.address.clone());
        PeerError::Call { node_id, address, status: Box::new(status) }
    }

    /// Records that a process of the peer has introduced itself, which is a reason to retry at
    /// once. If the process is a new one, the connections to the previous process are replaced, and
    /// a running attempt is cancelled.
    pub(super) fn contacted(&self, process: u64) {
        self.contacted.store(true, Ordering::Relaxed);
        let known = self.process.send_replace(process);
        let first = known == 0 && self.is_connected();
        if known != process && !first {
            self.reconnect();
        }
        self.wake.notify_one();
    }

    /// Pings a connected peer, or connects.
    async fn attempt(&self) -> Result<(), PeerError> {
        let connection = self.connection(ConnectionClass::Control)?;
        if connection.greeted.load(Ordering::Acquire) {
            let began = Instant::now();
            let mut client = connection.client.clone();
            match timeout(CONNECT_TIMEOUT, client.ping(PingRequest {})).await {
                Ok(Ok(_)) => {
                    self.measured(began.elapsed());
                    return Ok(());
                }
                // The connections may be gone, or belong to a process that is gone. A handshake
                // gives a definite result.
                Ok(Err(_)) | Err(_) => {
                    for connection in self.connections().iter() {
                        connection.greeted.store(false, Ordering::Release);
                    }
                }
            }
        }
        self.greet(&connection).await?;
        let began = Instant::now();
        if timeout(CONNECT_TIMEOUT, connection.client.clone().ping(PingRequest {})).await.is_ok() {
            self.measured(began.elapsed());
        }
        Ok(())
    }

    fn measured(&self, sample: Duration) {
        let sample = (sample.as_micros() as u64).max(1);
        let known = self.round_trip_us.load(Ordering::Relaxed);
        let smoothed = if known == 0 { sample } else { (known * 7 + sample) / 8 };
        self.round_trip_us.store(smoothed, Ordering::Relaxed);
    }

    pub(crate) fn round_trip(&self) -> Option<Duration> {
        let us = self.round_trip_us.load(Ordering::Relaxed);
        (us > 0).then(|| Duration::from_micros(us))
    }

    /// Returns advice if a setting is too small for the measured round trip.
    fn misfit(&self) -> Option<String> {
        let round_trip = self.round_trip()?;
        let timing = &self.local.timing;
        (round_trip > timing.round_trip_max()).then(|| timing.advice(round_trip))
    }

    /// Ends the task that keeps the connection.
    pub(super) fn stop(&self) {
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(keeper) = keeper {
            keeper.abort();
        }
    }

    pub(super) fn status(&self) -> PeerLink {
        let link = self.link.borrow();
        let problem = match &*link {
            Link::Down(error) => Some(error.to_string()),
            Link::Connecting => Some("not connected yet".to_owned()),
            Link::Up => self.misfit(),
        };
        PeerLink {
            node_id: self.node_id,
            connected: matches!(&*link, Link::Up),
            round_trip: self.round_trip().unwrap_or_default(),
            problem: problem.unwrap_or_default(),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Keeps a peer connected until it is dropped.
async fn keep(peer: Weak<Peer>, wake: Arc<Notify>) {
    let (mut failures, mut down, mut slow) = (0_u32, Problem::default(), Problem::default());
    loop {
        let began = Instant::now();
        let Some(this) = peer.upgrade() else { return };
        let result = tokio::select! {
            result = this.attempt() => result,
            // At most once per process of the peer, so that two nodes do not
            // interrupt each other endlessly.
            () = this.replaced() => continue,
        };
        let pause = match result {
            Ok(()) => {
                failures = 0;
                this.link.send_if_modified(|link| {
                    let changed = !matches!(link, Link::Up);
                    *link = Link::Up;
                    changed
                });
                if let Some(attempts) = down.over() {
                    tracing::info!(node = this.node_id, attempts, "peer connected again");
                }
                report_misfit(&this, &mut slow);
                PING_INTERVAL
            }
            Err(error) => {
                if this.contacted.swap(false, Ordering::Relaxed) {
                    failures = 0;
                }
                failures = failures.saturating_add(1);
                let (reason, refused) = (error.to_string(), error.is_refusal());
                if let Some(attempts) = down.occurred(&reason, refused, began) {
                    tracing::warn!(node = this.node_id, attempts, reason, "peer not connected");
                }
                this.link.send_replace(Link::Down(error));
                if refused { backoff::pause_refused(failures) } else { backoff::pause(failures) }
            }
        };
        drop(this);
        tokio::select! {
            () = sleep(pause) => {}
            () = wake.notified() => sleep(ATTEMPT_SPACING.saturating_sub(began.elapsed())).await,
        }
    }
}

fn report_misfit(peer: &Peer, slow: &mut Problem) {
    match peer.misfit() {
        Some(advice) => {
            if slow.occurred("", true, Instant::now()).is_some() {
                tracing::warn!(node = peer.node_id, advice, "round trip too long for the settings");
            }
        }
        None => {
            if slow.over().is_some() {
                tracing::info!(node = peer.node_id, "round trip fits the settings again");
            }
        }
    }
}
