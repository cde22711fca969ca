//! Commands: forwarded to the leader, or admitted and proposed here.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tonic::Code;

use super::{
    forward,
    limits_proposer::LimitsProposer,
    network::{REFUSED_HEADER, peer::ConnectionClass},
    node::Node,
    propose::Proposer,
    raft_state::{leader_changed, superseded},
    snapshot::Admission,
    trap_limiter::TrapLimiter,
};
use conclave_proto::{convert::call_to_wire, raft::ForwardRequest};
use conclave_storage::raft_types::Member;
use conclave_types::{Call, Caller, CommandKind, NodeId, Outcome, Receipt, error::Error};

/// The largest part of the deadline that is reserved for the leader's response.
const ANSWER_TIME: Duration = Duration::from_millis(50);
/// The time that a superseded leader still has to respond.
const ANSWER_GRACE: Duration = Duration::from_millis(200);

/// Runs commands: forwarded to the leader, or proposed here.
pub(super) struct Commands {
    node: Arc<Node>,
    proposer: Arc<Proposer>,
    limits: Arc<LimitsProposer>,
    admission: Arc<Admission>,
    limiter: Arc<TrapLimiter>,
    in_flight: Arc<AtomicUsize>,
    in_flight_max: usize,
}

impl Commands {
    pub(super) fn new(
        node: Arc<Node>,
        proposer: Arc<Proposer>,
        limits: Arc<LimitsProposer>,
        admission: Arc<Admission>,
        in_flight_max: usize,
    ) -> Self {
        Self {
            node,
            proposer,
            limits,
            admission,
            limiter: Arc::default(),
            in_flight: Arc::default(),
            in_flight_max,
        }
    }

    /// Proposes a call on the leader, which may be another node. Retries through an election until
    /// the deadline. The error reports an unknown outcome only if the call may have been proposed.
    pub(super) async fn run(
        &self,
        call: Call,
        caller: &Caller,
        deadline: Instant,
    ) -> Result<Receipt, Error> {
        if let Some(why) = self.node.fatal_error() {
            return Err(Error::stopped(why));
        }
        let patience = Instant::now() + self.node.timing.leader_patience();
        loop {
            let attempt = match self.node.leader() {
                Some((node_id, member)) if node_id != self.node.id() => {
                    self.forward(node_id, &member, &call, caller, deadline).await
                }
                Some(_) => self.propose(call.clone(), caller, deadline).await,
                None => Err(Error::no_quorum()),
            };
            match attempt {
                Err(error)
                    if (error.is_not_leader() || error.is_no_quorum())
                        && Instant::now() < patience.min(deadline) =>
                {
                    if timeout_at(deadline, leader_changed(&self.node.raft)).await.is_err() {
                        return Err(Error::deadline());
                    }
                }
                result => return result,
            }
        }
    }

    async fn forward(
        &self,
        leader: NodeId,
        member: &Member,
        call: &Call,
        caller: &Caller,
        deadline: Instant,
    ) -> Result<Receipt, Error> {
        let peer = self.node.peers.peer(leader, member);
        // Until the request is sent, a rejection means that the call had no effect.
        let client = tokio::select! {
            client = peer.client(ConnectionClass::Control) => client,
            _ = superseded(&self.node.raft, Some(leader)) => return Err(Error::no_quorum()),
            () = sleep_until(deadline) => return Err(Error::deadline()),
        };
        let mut client = client.map_err(|error| {
            tracing::debug!(%error, "cannot forward");
            Error::no_quorum()
        })?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::deadline());
        }
        // A leader that stops before the caller's deadline can still report whether it proposed the call.
        let timeout_ms = (left - (left / 20).min(ANSWER_TIME)).as_millis() as u64;
        let caller = caller.0.to_string();
        let request = ForwardRequest { call: Some(call_to_wire(call)), timeout_ms, caller };
        let answer = tokio::select! {
            answer = timeout_at(deadline, client.forward(request)) => answer,
            // A leader that is silent but not dead would respond long after its successor. A leader
            // that has transferred leadership responds soon.
            successor = async {
                let successor = superseded(&self.node.raft, Some(leader)).await;
                sleep(ANSWER_GRACE).await;
                successor
            } => {
                return Err(Error::lost(format!(
                    "node {successor} became the leader before node {leader} answered"
                )));
            }
        };
        let answer = answer.map_err(|_| Error::deadline_outcome_unknown())?;
        let answer = answer.map_err(|status| {
            // The peer refused the request before it read it: a restarted leader requires a
            // handshake first, and a stopping leader accepts no calls.
            let refused = status.code() == Code::PermissionDenied
                || status.metadata().get(REFUSED_HEADER).is_some();
            let error = peer.failed(ConnectionClass::Control, status);
            if refused {
                return Error::no_quorum();
            }
            Error::lost(format!("the connection to the leader was lost during the call ({error})"))
        })?;
        forward::result_from_wire(answer.into_inner())
    }

    /// Proposes a call as the leader and waits for its outcome.
    pub(super) async fn propose(
        &self,
        call: Call,
        caller: &Caller,
        deadline: Instant,
    ) -> Result<Receipt, Error> {
        let limiter = self.limiter.clone();
        let prepared = timeout_at(deadline, async {
            self.limits.settle(deadline).await?;
            // Before the slot is taken: a slowed-down call must not occupy a slot that
            // another call could use.
            let turn = limiter.admit(&call, caller, &self.node.worker, deadline).await?;
            let slot = self.slot()?;
            self.admission.wait(call.bytes(), deadline).await?;
            Ok::<_, Error>((turn, slot, self.proposer.stamp().await))
        });
        let (turn, slot, time_ms) = prepared.await.map_err(|_| Error::deadline())??;
        let (method, caller) = (call.method.clone(), caller.clone());
        let done = move |applied: Option<&Receipt>| {
            drop(slot);
            if let Some(Receipt { outcome: Some(Outcome::Trap(_)), .. }) = applied {
                limiter.trapped(&method, &caller);
            }
            drop(turn);
        };
        self.proposer.write(time_ms, CommandKind::Call(call), deadline, done).await
    }

    fn slot(&self) -> Result<Slot, Error> {
        let most = self.in_flight_max;
        if self.in_flight.fetch_add(1, Ordering::Relaxed) >= most {
            self.in_flight.fetch_sub(1, Ordering::Relaxed);
            return Err(Error::busy(format!(
                "the leader already has {most} commands in flight (commands_in_flight_max): try again"
            )));
        }
        Ok(Slot(self.in_flight.clone()))
    }
}

/// A slot among the commands in flight on the leader.
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
