//! Linearizable reads on any node, by read index (Raft thesis, section 6.4).
//!
//! A read obtains the commit index of the time at which it arrived, waits until its own node
//! has applied that index, and runs there. One round to a majority ([`super::confirmation`])
//! serves every read that was waiting when the round began. A lease read at the leader needs no
//! round ([`super::lease`]).

use std::sync::{Arc, Weak};

use openraft::async_runtime::WatchReceiver;
use tokio::{
    sync::{mpsc, oneshot},
    task::yield_now,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Inner, Replica,
    confirmation::ROUND_TIMEOUT,
    forward,
    network::peer::{ConnectionClass, Peer},
};
use conclave_machine::{QueryError, Subscribed, WatchError};
use conclave_proto::raft::{ReadIndexRequest, Refusal, read_index_response};
use conclave_storage::raft_types::{LogId, Member, StoredMembership};
use conclave_types::{
    Call, Caller, NodeId,
    error::Error,
    status::{Answered, Consistency},
};

/// The maximum number of reads that wait for a read index.
const WAITING_MAX: usize = 65_536;
/// The number of times that the task yields to the scheduler before a round begins. Other tasks
/// then receive further reads and send finished responses, so that more reads share the round,
/// which costs two nodes one call each. A read that is alone waits for almost nothing.
const TURNS_BEFORE_ROUND: usize = 4;

type Answer = oneshot::Sender<Result<u64, Refusal>>;
pub(super) type ReadRequests = mpsc::Receiver<Answer>;

/// A leader's state, as openraft had it at one point in time.
struct Leading {
    term: u64,
    /// An index that covers everything that was acknowledged before that time.
    read_index: u64,
    membership: Arc<StoredMembership>,
}

/// The queue of reads that wait for the next round.
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

/// Runs the rounds, one at a time, until the replica is gone. A second concurrent round would save
/// a read the rest of the running round, but halve the number of reads per round.
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
    /// Runs a query. Only the leader uses its lease. On another node a lease read is a linearizable read.
    pub async fn query(
        &self,
        call: Call,
        caller: &Caller,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<Answered, Error> {
        let answer = async {
            let turn = self.0.query_limiter.admit(&call, caller, &self.0.worker, deadline).await?;
            let index = self.index_to_wait_for(consistency, deadline).await?;
            let (replica, method, caller) = (self.clone(), call.method.clone(), caller.clone());
            let answer = async move {
                let _turn = turn;
                let method = call.method.clone();
                let answer = timeout_at(deadline, replica.0.worker.query(call, index)).await;
                let answer = answer.map_err(|_| Error::deadline())?;
                answer.map_err(|error| replica.query_failed(error, &method, &caller))
            };
            self.to_its_end(&method, answer).await
        };
        let answer = timeout_at(deadline, answer).await.map_err(|_| Error::deadline())??;
        // The state machine that ran the query may have turned out to have diverged.
        if let Some(why) = self.0.divergence.why() {
            return Err(Error::stopped(why));
        }
        Ok(Answered { index: answer.index, result: answer.result })
    }

    /// Starts a subscription on this node's state machine, or resumes one that has received
    /// everything up to `resume`.
    pub async fn subscribe(
        &self,
        call: Call,
        caller: &Caller,
        consistency: Consistency,
        resume: Option<u64>,
        deadline: Instant,
    ) -> Result<Subscribed, Error> {
        let begun = async {
            let turn = self.0.query_limiter.admit(&call, caller, &self.0.worker, deadline).await?;
            let index = self.index_to_wait_for(consistency, deadline).await?;
            if let Some(resume) = resume {
                self.has_reached(resume, index, deadline).await?;
            }
            let (replica, method, caller) = (self.clone(), call.method.clone(), caller.clone());
            let begun = async move {
                let _turn = turn;
                let method = call.method.clone();
                let begun = replica.0.worker.subscribe(call, index, resume);
                let begun = timeout_at(deadline, begun).await.map_err(|_| Error::deadline())?;
                begun.map_err(|error| replica.query_failed(error, &method, &caller))
            };
            self.to_its_end(&method, begun).await
        };
        let begun = timeout_at(deadline, begun).await.map_err(|_| Error::deadline())??;
        // As for a query. The quarantine ends subscriptions that started before it.
        if let Some(why) = self.0.divergence.why() {
            return Err(Error::stopped(why));
        }
        Ok(begun)
    }

    /// Rejects a resume index that the cluster has not reached. `read_index` is an
    /// index that it has reached.
    async fn has_reached(
        &self,
        resume: u64,
        read_index: u64,
        deadline: Instant,
    ) -> Result<(), Error> {
        if resume <= read_index {
            return Ok(());
        }
        // The index is low if the caller requested a stale read.
        let read_index = self.read_index_waiting(deadline).await?;
        if resume <= read_index {
            return Ok(());
        }
        Err(Error::gone(format!(
            "the cluster has reached index {read_index}, but not {resume}: the index is from another cluster, or \
             from before the data was replaced. Subscribe again, without an index to resume from"
        )))
    }

    /// Waits for a query. If the method has trapped recently, the query runs to its end even if its
    /// caller gives up. Otherwise a caller that cancels its calls would not be limited.
    async fn to_its_end<T: Send + 'static>(
        &self,
        method: &str,
        query: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        match self.0.worker.has_trapped(method) {
            true => self.0.supervisor.finish("query", query).await,
            false => query.await,
        }
    }

    fn query_failed(&self, error: QueryError, method: &Arc<str>, caller: &Caller) -> Error {
        if let QueryError::Trap(_) = error {
            self.0.query_limiter.trapped(method, caller);
        }
        failed(error)
    }

    /// Returns the index that this node must have applied before it runs the query.
    async fn index_to_wait_for(
        &self,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<u64, Error> {
        if let Some(why) = self.0.fatal_error() {
            return Err(Error::stopped(why));
        }
        match consistency {
            Consistency::Stale => Ok(0),
            Consistency::Lease if self.0.is_leader() => match self.leased_index().await {
                Some(index) => Ok(index),
                None => self.read_index_waiting(deadline).await,
            },
            Consistency::Lease | Consistency::Linearizable => {
                self.read_index_waiting(deadline).await
            }
        }
    }

    /// Returns the read index. Retries through an election.
    pub(super) async fn read_index_waiting(&self, deadline: Instant) -> Result<u64, Error> {
        let patience = (Instant::now() + self.0.timing.leader_patience()).min(deadline);
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

    /// Runs one round: as the leader to a majority, otherwise to the leader. Ends early when
    /// another node leads, because a leader that is silent but still connected would block the
    /// round until its timeout.
    async fn read_index(&self) -> Result<u64, Error> {
        let Some((leader, member)) = self.0.leader() else { return Err(Error::no_quorum()) };
        let round = async {
            match leader == self.0.node_id() {
                true => self.confirmed_index().await,
                false => self.leaders_index(leader, &member).await,
            }
        };
        tokio::select! {
            result = round => result,
            () = self.leader_is_not(leader) => Err(Error::not_leader(self.leader())),
        }
    }

    /// Requests the read index from the leader.
    async fn leaders_index(&self, leader: NodeId, member: &Member) -> Result<u64, Error> {
        let peer = self.0.peers.peer(leader, member);
        let client = peer.client(ConnectionClass::Control).await;
        let mut client = client.map_err(|_| Error::no_quorum())?;
        let answer = client.read_index(ReadIndexRequest {}).await;
        let answer = answer.map_err(|status| {
            tracing::debug!(error = %peer.failed(ConnectionClass::Control, status), "no read index");
            Error::no_quorum()
        })?;
        match answer.into_inner().result {
            Some(read_index_response::Result::Index(index)) => Ok(index),
            Some(read_index_response::Result::Refusal(refusal)) => {
                Err(forward::refusal_from_wire(refusal))
            }
            None => Err(Error::fatal("the leader's response has no result")),
        }
    }

    /// Returns once another node or no node leads, as far as this node knows.
    async fn leader_is_not(&self, leader: NodeId) {
        let mut metrics = self.0.raft.server_metrics();
        while metrics.borrow_watched().current_leader == Some(leader) {
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    /// Returns the read index for a follower, from the leader's own rounds.
    pub(super) async fn read_index_as_leader(&self) -> Result<u64, Error> {
        if self.0.is_leader() { self.0.reads.next().await } else { Err(Error::not_leader(None)) }
    }

    /// Returns the leader's read index, once a majority has confirmed that it led when the round
    /// began. The requests to the voters and to openraft run in parallel. Their order does not
    /// matter, because both start after the reads of this round have arrived.
    async fn confirmed_index(&self) -> Result<u64, Error> {
        let own = self.0.node_id();
        let (voters, needed) = self.voters_to_confirm();
        let round = self.0.confirmation.begin(voters, needed);
        let Leading { term, read_index, membership } = self.leading().await?;
        let membership = membership.membership();
        match self.0.confirmation.wait(round, term, membership, own).await {
            true => Ok(read_index),
            false => Err(Error::not_leader(None)),
        }
    }

    /// Returns the other voters, and how many of them form a majority together with this node. In a
    /// joint configuration all of them are needed.
    fn voters_to_confirm(&self) -> (Vec<Arc<Peer>>, usize) {
        let own = self.0.node_id();
        let metrics = self.0.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let others = membership.voter_ids().filter(|voter| *voter != own);
        let others = others.filter_map(|voter| {
            membership.get_node(&voter).map(|member| self.0.peers.peer(voter, member))
        });
        let others: Vec<_> = others.collect();
        let needed = match &membership.get_joint_config()[..] {
            [voters] => voters.len() / 2 + usize::from(!voters.contains(&own)),
            _ => others.len(),
        };
        (others, needed)
    }

    /// Returns the leader's read index, if its lease is valid.
    async fn leased_index(&self) -> Option<u64> {
        let Leading { term, read_index, membership } = self.leading().await.ok()?;
        let lease = &self.0.lease;
        lease.is_valid(term, membership.membership(), self.0.node_id()).then_some(read_index)
    }

    /// Returns this node's state as the leader. It comes from openraft's core, because
    /// the metrics lag behind.
    async fn leading(&self) -> Result<Leading, Error> {
        let own = self.0.node_id();
        let leading = self.0.raft_state(move |state| {
            let vote = *state.vote_ref();
            let term = vote.leader_id.term;
            let of_term = |log_id: &LogId| log_id.committed_leader_id().term == term;
            // A leader does not know the commit index until an entry of its own term is committed
            // (Raft thesis, section 6.4). Its first entry, which it appends as soon as it is
            // elected, comes after all committed entries.
            let committed = state.local_committed().filter(|log_id| of_term(log_id));
            let read_index = committed.or_else(|| state.log_ids.last().filter(|id| of_term(id)));
            let leads = vote.committed && vote.leader_id.voted_for == own;
            let membership = state.membership_state.effective().clone();
            read_index.filter(|_| leads).map(|log_id| Leading {
                term,
                read_index: log_id.index,
                membership,
            })
        });
        match leading.await {
            Ok(Some(leading)) => Ok(leading),
            Ok(None) => Err(Error::not_leader(self.leader())),
            Err(fatal) => Err(self.0.stopped(fatal)),
        }
    }
}

/// Returns the reason why a subscription has ended.
pub fn watch_ended(error: WatchError) -> Error {
    match error {
        WatchError::Gone { .. } | WatchError::Replaced { .. } => {
            Error::caused_by(Error::gone, error)
        }
        WatchError::Fatal(fatal_error) => Error::caused_by(Error::stopped, fatal_error),
        WatchError::Stopped => Error::shutting_down(),
    }
}

fn failed(error: QueryError) -> Error {
    match error {
        QueryError::Trap(trap) => Error::trap(trap),
        QueryError::Fatal(fatal_error) => Error::caused_by(Error::stopped, fatal_error),
        QueryError::Stopped => Error::shutting_down(),
        error @ QueryError::NoStandby(_) => Error::caused_by(Error::busy, error),
        QueryError::Busy => Error::busy(
            "too many queries or subscriptions are waiting on this node: try again, or another node",
        ),
        QueryError::Watch(error) => watch_ended(error),
    }
}
