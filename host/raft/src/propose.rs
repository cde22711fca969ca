//! Proposals of this node as the leader: appended to the log, answered with their outcomes.

use std::sync::Arc;

use openraft::error::{ClientWriteError, RaftError};
use tokio::time::{Instant, timeout_at};

use super::{fitness::Fitness, node::Node, time::Clock};
use conclave_storage::raft_types::TypeConfig;
use conclave_types::{Command, CommandKind, Receipt, error::Error, status::Leader};

/// Proposes commands as the leader.
pub(super) struct Proposer {
    node: Arc<Node>,
    fitness: Arc<Fitness>,
    clock: Arc<Clock>,
}

impl Proposer {
    pub(super) fn new(node: Arc<Node>, fitness: Arc<Fitness>, clock: Arc<Clock>) -> Self {
        Self { node, fitness, clock }
    }

    /// Returns the stamp for an entry that this node proposes.
    pub(super) async fn stamp(&self) -> u64 {
        self.clock.stamp().await
    }

    /// Proposes a command as the leader and waits for its outcome.
    pub(super) async fn propose(
        &self,
        kind: CommandKind,
        deadline: Instant,
    ) -> Result<Receipt, Error> {
        let time_ms = self.clock.stamp().await;
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
        let time_ms = self.clock.stamp().await;
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
    pub(super) async fn write(
        &self,
        time_ms: u64,
        kind: CommandKind,
        deadline: Instant,
        done: impl FnOnce(Option<&Receipt>) + Send + 'static,
    ) -> Result<Receipt, Error> {
        self.node.check_running()?;
        if deadline <= Instant::now() {
            return Err(Error::deadline());
        }
        let proposal = self.fitness.propose()?;
        let raft = self.node.raft.clone();
        let write = async move {
            let written = raft.client_write(Command { time_ms, kind }).await;
            done(written.as_ref().ok().map(|response| &response.data));
            drop(proposal);
            written
        };
        let written = timeout_at(deadline, self.node.supervisor.finish("command", write));
        let written = tokio::select! {
            written = written => written.map_err(|_| Error::deadline_outcome_unknown())?,
            () = self.fitness.disk_hangs() => return Err(Error::lost(
                "the leader's disk stopped responding while the command was being written",
            )),
        };
        written.map(|response| response.data).map_err(|error| self.refused(error))
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
            RaftError::APIError(error) => Error::caused_by(Error::fatal, error),
            // Raft was running when the command was proposed. So the command may be in the log,
            // although Raft or the state machine stopped before the response. Reported as certainly
            // not applied, it would be sent again and applied twice.
            RaftError::Fatal(fatal) => {
                let why = self.node.fatal_error().unwrap_or_else(|| fatal.to_string());
                Error::lost(format!("the leader stopped before the command was answered ({why})"))
            }
        }
    }
}
