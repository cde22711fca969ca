//! Linearizable reads on any node, by read index (Ongaro's thesis, section 6.4).
//!
//! A read asks how far the log was committed when it arrived, waits until its own node's machine has
//! applied that much, and is answered from there. One round to a majority answers for every read that
//! was waiting when it began.

use std::{sync::Weak, time::Duration};

use openraft::{ReadPolicy, error::LinearizableReadError, error::RaftError};
use tokio::{
    sync::{mpsc, oneshot},
    task::yield_now,
    time::{Instant, timeout, timeout_at},
};

use super::{Inner, Replica, forward, network::peer::Lane};
use crate::{
    error::Error,
    machine::{QueryError, Subscribed, WatchError},
    proto::raft::{ReadIndexRequest, Refusal, read_index_response},
    types::{
        Call,
        status::{Answered, Consistency},
    },
};

/// Reads that wait for a read index at once.
const WAITING_MAX: usize = 65_536;
/// Turns that the other tasks get before a round begins. Each lets what has arrived be read and what is
/// ready be answered, so that more reads share the round, which costs two nodes a call each. A read that is
/// alone finds next to nothing to wait for.
const TURNS_BEFORE_ROUND: usize = 4;
/// Most rounds take a network round trip; a leader that is cut off would take forever.
const ROUND_TIMEOUT: Duration = Duration::from_secs(2);

type Answer = oneshot::Sender<Result<u64, Refusal>>;

/// Where reads queue for the next round.
pub(super) struct ReadIndex(mpsc::Sender<Answer>);

impl ReadIndex {
    pub(super) fn new() -> (Self, mpsc::Receiver<Answer>) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        (Self(sender), receiver)
    }

    async fn next(&self) -> Result<u64, Error> {
        let (answer, answered) = oneshot::channel();
        self.0.send(answer).await.map_err(|_| Error::shutting_down())?;
        let result = answered.await.map_err(|_| Error::shutting_down())?;
        result.map_err(forward::refusal_from_wire)
    }
}

/// Makes the rounds, one at a time, until the replica is gone. A second one beside it would spare a read
/// the rest of the round that it finds under way, and halve how many reads share a round.
pub(super) async fn serve(replica: Weak<Inner>, mut waiting: mpsc::Receiver<Answer>) {
    let mut answers = Vec::new();
    while waiting.recv_many(&mut answers, WAITING_MAX).await > 0 {
        for _ in 0..TURNS_BEFORE_ROUND {
            yield_now().await;
        }
        while let Ok(answer) = waiting.try_recv() {
            answers.push(answer);
        }
        let Some(replica) = replica.upgrade().map(Replica) else { return };
        let result = match timeout(ROUND_TIMEOUT, replica.read_index()).await {
            Ok(result) => result.map_err(|error| forward::refusal_to_wire(&error)),
            Err(_) => Err(forward::refusal_to_wire(&Error::no_quorum())),
        };
        for answer in answers.drain(..) {
            let _ = answer.send(result.clone());
        }
    }
}

impl Replica {
    /// Asks the machine. A lease is only asked of the leader itself; elsewhere a lease read is a
    /// linearizable one.
    pub async fn query(
        &self,
        call: Call,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<Answered, Error> {
        let answer = async {
            let index = self.index_to_wait_for(consistency, deadline).await?;
            self.0.worker.query(call, index).await.map_err(failed)
        };
        let answer = timeout_at(deadline, answer).await.map_err(|_| Error::deadline())??;
        // It may have been found meanwhile that the machine which answered has diverged.
        if let Some(why) = self.0.divergence.why() {
            return Err(Error::stopped(why));
        }
        Ok(Answered { index: answer.index, result: answer.result })
    }

    /// Begins a subscription on this node's machine, or goes on with one that has seen everything up to
    /// `resume`.
    pub async fn subscribe(
        &self,
        call: Call,
        consistency: Consistency,
        resume: Option<u64>,
        deadline: Instant,
    ) -> Result<Subscribed, Error> {
        let begun = async {
            let index = self.index_to_wait_for(consistency, deadline).await?;
            self.0.worker.subscribe(call, index, resume).await.map_err(failed)
        };
        timeout_at(deadline, begun).await.map_err(|_| Error::deadline())?
    }

    /// How far this node's machine must have come before it answers.
    async fn index_to_wait_for(
        &self,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<u64, Error> {
        if let Some(why) = self.0.fault() {
            return Err(Error::stopped(why));
        }
        match consistency {
            Consistency::Stale => Ok(0),
            Consistency::Lease if self.0.is_leader() => self.lease_index().await,
            Consistency::Lease | Consistency::Linearizable => {
                self.read_index_waiting(deadline).await
            }
        }
    }

    /// The read index, waiting out an election.
    pub(super) async fn read_index_waiting(&self, deadline: Instant) -> Result<u64, Error> {
        let patience = (Instant::now() + self.0.timing.election_max * 3).min(deadline);
        loop {
            match self.0.reads.next().await {
                Err(error)
                    if (error.is_not_leader() || error.is_no_quorum())
                        && Instant::now() < patience =>
                {
                    self.leader_changed().await;
                }
                result => return result,
            }
        }
    }

    /// One round: as the leader to a majority, otherwise to the leader.
    async fn read_index(&self) -> Result<u64, Error> {
        match self.0.leader() {
            Some((node_id, member)) if node_id != self.0.node_id() => {
                let peer = self.0.peers.peer(node_id, &member);
                let client = peer.client(Lane::Control).await;
                let mut client = client.map_err(|_| Error::no_quorum())?;
                let answer = client.read_index(ReadIndexRequest {}).await;
                let answer = answer.map_err(|status| {
                    tracing::debug!(error = %peer.failed(Lane::Control, status), "no read index");
                    Error::no_quorum()
                })?;
                match answer.into_inner().result {
                    Some(read_index_response::Result::Index(index)) => Ok(index),
                    Some(read_index_response::Result::Refusal(refusal)) => {
                        Err(forward::refusal_from_wire(refusal))
                    }
                    None => Err(Error::fault("the leader answered without a result")),
                }
            }
            Some(_) => self.leader_index(ReadPolicy::ReadIndex).await,
            None => Err(Error::no_quorum()),
        }
    }

    /// For a follower that asks: joins the leader's own rounds.
    pub(super) async fn read_index_as_leader(&self) -> Result<u64, Error> {
        if self.0.is_leader() { self.0.reads.next().await } else { Err(Error::not_leader(None)) }
    }

    async fn lease_index(&self) -> Result<u64, Error> {
        self.leader_index(ReadPolicy::LeaseRead).await
    }

    async fn leader_index(&self, policy: ReadPolicy) -> Result<u64, Error> {
        match self.0.raft.get_read_linearizer(policy).await {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => {
                Err(Error::not_leader(self.leader()))
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(Error::no_quorum())
            }
            Err(RaftError::Fatal(fatal)) => Err(self.0.stopped(fatal)),
        }
    }
}

/// Why a subscription is over.
pub(crate) fn watch_ended(error: WatchError) -> Error {
    match error {
        WatchError::Gone { .. } => Error::gone(error.to_string()),
        WatchError::Fault(fault) => Error::stopped(fault.to_string()),
        WatchError::Stopped => Error::shutting_down(),
    }
}

fn failed(error: QueryError) -> Error {
    match error {
        QueryError::Trap(trap) => Error::trap(trap),
        QueryError::Fault(fault) => Error::stopped(fault.to_string()),
        QueryError::Stopped => Error::shutting_down(),
        QueryError::Busy => Error::busy(
            "too many queries or subscriptions are waiting on this node: try again, or another node",
        ),
        QueryError::Watch(error) => watch_ended(error),
    }
}
