//! Proposing a command: forwarded to the leader, appended to the log, answered with its outcome.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use openraft::{async_runtime::WatchReceiver, error::ClientWriteError, error::RaftError};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tonic::Code;

use super::{
    Replica, forward,
    network::{REFUSED_HEADER, peer::ConnectionClass},
};
use conclave_proto::{convert::call_to_wire, raft::ForwardRequest};
use conclave_storage::raft_types::{Member, TypeConfig};
use conclave_types::{
    Call, Caller, Command, CommandKind, NodeId, Outcome, Receipt, error::Error, status::Leader,
};

/// The largest part of the deadline that is reserved for the leader's response.
const ANSWER_TIME: Duration = Duration::from_millis(50);
/// The time that a superseded leader still has to respond.
const ANSWER_GRACE: Duration = Duration::from_millis(200);

impl Replica {
    /// Proposes a call on the leader, which may be another node. Retries through an election until
    /// the deadline. The error reports an unknown outcome only if the call may have been proposed.
    pub async fn command(
        &self,
        call: Call,
        caller: &Caller,
        deadline: Instant,
    ) -> Result<Receipt, Error> {
        if let Some(why) = self.0.fatal_error() {
            return Err(Error::stopped(why));
        }
        let patience = Instant::now() + self.0.timing.leader_patience();
        loop {
            let attempt = match self.0.leader() {
                Some((node_id, member)) if node_id != self.0.node_id() => {
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
                    if timeout_at(deadline, self.leader_changed()).await.is_err() {
                        return Err(Error::deadline());
                    }
                }
                result => return result,
            }
        }
    }

    /// Waits a short time for news of another leader.
    pub(super) async fn leader_changed(&self) {
        const MOMENT: Duration = Duration::from_millis(20);
        let mut metrics = self.0.raft.server_metrics();
        let _ = timeout(MOMENT, metrics.changed()).await;
        sleep(Duration::from_millis(1)).await;
    }

    /// Returns the new leader once a node other than `leader` is known to lead.
    async fn superseded(&self, leader: NodeId) -> NodeId {
        let mut metrics = self.0.raft.server_metrics();
        loop {
            if let Some(known) = metrics.borrow_and_update().current_leader
                && known != leader
            {
                return known;
            }
            if metrics.changed().await.is_err() {
                // Raft has stopped. The deadline ends the call.
                std::future::pending::<()>().await;
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
        let peer = self.0.peers.peer(leader, member);
        // Until the request is sent, a rejection means that the call had no effect.
        let client = tokio::select! {
            client = peer.client(ConnectionClass::Control) => client,
            _ = self.superseded(leader) => return Err(Error::no_quorum()),
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
                let successor = self.superseded(leader).await;
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
        let limiter = self.0.command_limiter.clone();
        let prepared = timeout_at(deadline, async {
            self.settle_limits(deadline).await?;
            // Before the slot is taken: a slowed-down call must not occupy a slot that
            // another call could use.
            let turn = limiter.admit(&call, caller, &self.0.worker, deadline).await?;
            let slot = self.0.slot()?;
            self.0.admission.wait(call.bytes(), deadline).await?;
            Ok::<_, Error>((turn, slot, self.stamp().await))
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
        self.write(time_ms, CommandKind::Call(call), deadline, done).await
    }

    /// Proposes a command as the leader and waits for its outcome.
    pub(super) async fn propose_kind(
        &self,
        kind: CommandKind,
        deadline: Instant,
    ) -> Result<Receipt, Error> {
        if matches!(kind, CommandKind::Component(_)) {
            self.settle_limits(deadline).await?;
        }
        let time_ms = self.stamp().await;
        self.propose_at(time_ms, kind, deadline).await
    }

    /// Proposes a command as the leader and waits for its outcome. `held` is dropped once Raft has
    /// applied or discarded the command, even if this call is cancelled.
    pub(super) async fn propose_holding(
        &self,
        kind: CommandKind,
        deadline: Instant,
        held: impl Send + 'static,
    ) -> Result<Receipt, Error> {
        let time_ms = self.stamp().await;
        self.write(time_ms, kind, deadline, move |_| drop(held)).await
    }

    /// Proposes a command with this timestamp as the leader and waits for its outcome.
    pub(super) async fn propose_at(
        &self,
        time_ms: u64,
        kind: CommandKind,
        deadline: Instant,
    ) -> Result<Receipt, Error> {
        self.write(time_ms, kind, deadline, |_| ()).await
    }

    /// Proposes a command and waits for its outcome. `done` is called with the outcome, or without
    /// one if Raft discarded the command. It is called even if this call is cancelled or its
    /// deadline passes, because a proposed command may still be committed.
    async fn write(
        &self,
        time_ms: u64,
        kind: CommandKind,
        deadline: Instant,
        done: impl FnOnce(Option<&Receipt>) + Send + 'static,
    ) -> Result<Receipt, Error> {
        self.0.check_running()?;
        if deadline <= Instant::now() {
            return Err(Error::deadline());
        }
        let proposal = self.0.leadership.propose()?;
        let raft = self.0.raft.clone();
        let write = async move {
            let written = raft.client_write(Command { time_ms, kind }).await;
            done(written.as_ref().ok().map(|response| &response.data));
            drop(proposal);
            written
        };
        let written = timeout_at(deadline, self.0.supervisor.finish("command", write));
        let written = tokio::select! {
            written = written => written.map_err(|_| Error::deadline_outcome_unknown())?,
            () = self.0.leadership.disk_hangs() => return Err(Error::lost(
                "the leader's disk stopped responding while the command was being written",
            )),
        };
        written.map(|response| response.data).map_err(|error| self.refused(error))
    }

    /// Returns an error that names the leader unless this node is the leader.
    pub(super) fn check_leader(&self) -> Result<(), Error> {
        self.0.check_running()?;
        match self.leader() {
            Some(leader) if leader.node_id != self.0.node_id() => {
                Err(Error::not_leader(Some(leader)))
            }
            Some(_) => Ok(()),
            None => Err(Error::no_quorum()),
        }
    }

    fn refused(&self, error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> Error {
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
                match (forward.leader_id, forward.leader_node) {
                    (Some(node_id), Some(member)) => Error::not_leader(Some(Leader {
                        node_id,
                        client_address: Arc::from(member.client_address),
                    })),
                    // A leader that has lost its majority names no leader.
                    _ => Error::no_quorum(),
                }
            }
            RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => {
                Error::lost("another leader took over before the command was committed")
            }
            RaftError::APIError(error) => Error::fatal(error.to_string()),
            // Raft was running when the command was proposed. So the command may be in the log,
            // although Raft or the state machine stopped before the response. Reported as certainly
            // not applied, it would be sent again and applied twice.
            RaftError::Fatal(fatal) => {
                let why = self.0.fatal_error().unwrap_or_else(|| fatal.to_string());
                Error::lost(format!("the leader stopped before the command was answered ({why})"))
            }
        }
    }
}

/// A slot among the commands in flight on the leader.
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl super::Inner {
    fn slot(&self) -> Result<Slot, Error> {
        let most = self.limits.commands_in_flight_max;
        if self.commands_in_flight.fetch_add(1, Ordering::Relaxed) >= most {
            self.commands_in_flight.fetch_sub(1, Ordering::Relaxed);
            return Err(Error::busy(format!(
                "the leader already has {most} commands in flight (commands_in_flight_max): try again"
            )));
        }
        Ok(Slot(self.commands_in_flight.clone()))
    }

    /// Rejects a new command once Raft, the store or the state machine has stopped.
    fn check_running(&self) -> Result<(), Error> {
        if let Some(why) = self.fatal_error() {
            return Err(Error::stopped(why));
        }
        let state = self.raft.metrics().borrow_watched().running_state.clone();
        state.map_err(|fatal| self.stopped(fatal))
    }

    /// Runs `look` on the state of openraft's core. openraft's own `with_raft_state` logs an error
    /// if the caller is cancelled; this function does not.
    pub(super) async fn raft_state<T: Send + 'static>(
        &self,
        look: impl FnOnce(&openraft::RaftState<TypeConfig>) -> T + Send + 'static,
    ) -> Result<T, openraft::error::Fatal<TypeConfig>> {
        let (answer, answered) = oneshot::channel();
        let ask = move |state: &openraft::RaftState<TypeConfig>| {
            // The caller was cancelled.
            let _ = answer.send(look(state));
        };
        self.raft.external_request(ask).await?;
        match answered.await {
            Ok(answer) => Ok(answer),
            // The core ended before it ran the request. The next request returns the reason.
            Err(_) => match self.raft.external_request(|_| ()).await {
                Err(fatal) => Err(fatal),
                Ok(()) => Err(openraft::error::Fatal::Stopped),
            },
        }
    }

    /// Returns the error of a call that had no effect because Raft has stopped.
    pub(super) fn stopped(&self, fatal: openraft::error::Fatal<TypeConfig>) -> Error {
        match fatal {
            openraft::error::Fatal::Stopped => Error::shutting_down(),
            fatal => Error::fatal(format!(
                "this node has stopped applying entries: {}; see its log",
                self.worker.fatal_error().unwrap_or_else(|| fatal.to_string())
            )),
        }
    }
}
