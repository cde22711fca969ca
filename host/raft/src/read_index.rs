//! The read index (Raft thesis, section 6.4): an index that covers everything that was acknowledged
//! before a read arrived.
//!
//! One round to a majority ([`super::confirmation`]) serves every read that was waiting when the
//! round began. A lease read at the leader needs no round ([`super::lease`]).

use std::sync::Arc;

use openraft::async_runtime::WatchReceiver;
use tokio::{
    sync::{mpsc, oneshot},
    task::yield_now,
    time::{Instant, timeout},
};

use super::{
    confirmation::{Confirmation, ROUND_TIMEOUT},
    forward,
    lease::Lease,
    network::peer::{ConnectionClass, Peer},
    node::Node,
    raft_state::{leader_changed, leader_is_not, raft_state},
};
use conclave_proto::raft::{ReadIndexRequest, Refusal, read_index_response};
use conclave_storage::raft_types::{LogId, Member, StoredMembership};
use conclave_types::{NodeId, error::Error};

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

/// The read index: the queue of reads that wait for the next round, and the rounds.
pub(super) struct ReadIndex {
    node: Arc<Node>,
    lease: Arc<Lease>,
    confirmation: Confirmation,
    waiting: mpsc::Sender<Answer>,
}

impl ReadIndex {
    /// Creates the queue. The reads of the receiver are served by [`ReadIndex::serve`].
    pub(super) fn new(node: Arc<Node>, lease: Arc<Lease>) -> (Self, ReadRequests) {
        let (waiting, requests) = mpsc::channel(WAITING_MAX);
        let confirmation = Confirmation::new(node.supervisor.clone());
        (Self { node, lease, confirmation, waiting }, requests)
    }

    async fn next(&self) -> Result<u64, Error> {
        let (answer, answered) = oneshot::channel();
        self.waiting.send(answer).await.map_err(|_| Error::shutting_down())?;
        let result = answered.await.map_err(|_| Error::shutting_down())?;
        result.map_err(forward::refusal_from_wire)
    }

    /// Runs the rounds, one at a time. A second concurrent round would save a read the rest of the
    /// running round, but halve the number of reads per round.
    pub(super) async fn serve(self: Arc<Self>, mut waiting: ReadRequests) {
        let mut answers = Vec::new();
        while waiting.recv_many(&mut answers, WAITING_MAX).await > 0 {
            for _ in 0..TURNS_BEFORE_ROUND {
                yield_now().await;
            }
            while let Ok(answer) = waiting.try_recv() {
                answers.push(answer);
            }
            let result = match timeout(ROUND_TIMEOUT, self.run_round()).await {
                Ok(result) => result.map_err(|error| forward::refusal_to_wire(&error)),
                Err(_) => Err(forward::refusal_to_wire(&Error::no_quorum())),
            };
            for answer in answers.drain(..) {
                let _ = answer.send(result.clone());
            }
        }
    }

    /// Returns the read index. Retries through an election.
    pub(super) async fn get(&self, deadline: Instant) -> Result<u64, Error> {
        let patience = (Instant::now() + self.node.timing.leader_patience()).min(deadline);
        loop {
            match self.next().await {
                Err(error)
                    if (error.is_not_leader() || error.is_no_quorum())
                        && Instant::now() < patience =>
                {
                    leader_changed(&self.node.raft).await;
                }
                result => return result,
            }
        }
    }

    /// Runs one round: as the leader to a majority, otherwise to the leader. Ends early when
    /// another node leads, because a leader that is silent but still connected would block the
    /// round until its timeout.
    async fn run_round(&self) -> Result<u64, Error> {
        let Some((leader, member)) = self.node.leader() else { return Err(Error::no_quorum()) };
        let round = async {
            match leader == self.node.id() {
                true => self.confirmed_index().await,
                false => self.leaders_index(leader, &member).await,
            }
        };
        tokio::select! {
            result = round => result,
            () = leader_is_not(&self.node.raft, leader) => Err(Error::not_leader(self.node.leader_for_clients())),
        }
    }

    /// Requests the read index from the leader.
    async fn leaders_index(&self, leader: NodeId, member: &Member) -> Result<u64, Error> {
        let peer = self.node.peers.peer(leader, member);
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

    /// Returns the read index for a follower, from the leader's own rounds.
    pub(super) async fn get_as_leader(&self) -> Result<u64, Error> {
        if self.node.is_leader() { self.next().await } else { Err(Error::not_leader(None)) }
    }

    /// Returns the leader's read index, once a majority has confirmed that it led when the round
    /// began. The requests to the voters and to openraft run in parallel. Their order does not
    /// matter, because both start after the reads of this round have arrived.
    async fn confirmed_index(&self) -> Result<u64, Error> {
        let own = self.node.id();
        let (voters, needed) = self.voters_to_confirm();
        let round = self.confirmation.begin(voters, needed);
        let Leading { term, read_index, membership } = self.leading().await?;
        let membership = membership.membership();
        match self.confirmation.wait(round, term, membership, own).await {
            true => Ok(read_index),
            false => Err(Error::not_leader(None)),
        }
    }

    /// Returns the other voters, and how many of them form a majority together with this node. In a
    /// joint configuration all of them are needed.
    fn voters_to_confirm(&self) -> (Vec<Arc<Peer>>, usize) {
        let own = self.node.id();
        let metrics = self.node.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let others = membership.voter_ids().filter(|voter| *voter != own);
        let others = others.filter_map(|voter| {
            membership.get_node(&voter).map(|member| self.node.peers.peer(voter, member))
        });
        let others: Vec<_> = others.collect();
        let needed = match &membership.get_joint_config()[..] {
            [voters] => voters.len() / 2 + usize::from(!voters.contains(&own)),
            _ => others.len(),
        };
        (others, needed)
    }

    /// Returns the leader's read index, if its lease is valid.
    pub(super) async fn leased(&self) -> Option<u64> {
        let Leading { term, read_index, membership } = self.leading().await.ok()?;
        self.lease.is_valid(term, membership.membership(), self.node.id()).then_some(read_index)
    }

    /// Returns this node's state as the leader. It comes from openraft's core, because
    /// the metrics lag behind.
    async fn leading(&self) -> Result<Leading, Error> {
        let own = self.node.id();
        let leading = raft_state(&self.node.raft, move |state| {
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
            Ok(None) => Err(Error::not_leader(self.node.leader_for_clients())),
            Err(fatal) => Err(self.node.stopped(fatal)),
        }
    }
}
