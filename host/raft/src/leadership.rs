//! Decides whether this node may lead, and transfers leadership away when it may not.
//!
//! A node must not lead if its disk hangs, its clock is wrong or it is about to stop. In these
//! cases a leader asks the best matched voter to take over (leadership transfer; Raft thesis,
//! section 3.10), and no such node is elected until the reason is gone.
//!
//! The request goes directly to the voter and not through openraft's `transfer_leader`. That marks
//! the leader as transferring for the rest of its term: it would propose nothing and send no
//! heartbeats even if the voter does not take over. Here the leader continues until another is
//! elected, and asks the next voter.
//!
//! A hung disk needs more: openraft's core waits for the disk to store a vote, but a leader's
//! heartbeats do not depend on its disk. So the node also sends no appends and no heartbeats
//! (`network/client.rs`), and the others elect a leader by themselves if no transfer succeeds. It
//! responds to no votes and to no appends of other leaders (`network/service.rs`), so that its own
//! core does not wait for the disk.
//!
//! Lease reads: a voter that was asked to take over is elected although the leader's lease is
//! valid. So a leader that has asked serves no lease reads for the rest of its term.

use std::{sync::Arc, time::Duration};

use openraft::{Instant as _, async_runtime::WatchReceiver};
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;

use super::{
    fitness::{Fitness, Unfit},
    lease::Lease,
    network::peer::ConnectionClass,
    node::Node,
    peer_status,
    raft_state::{leader_changed, raft_state},
    vote_holdoff::VoteHoldoff,
};
use conclave_proto::raft::TransferLeaderRequest;
use conclave_storage::{
    convert::{log_id_to_wire, vote_to_wire},
    raft_types::{LogId, Member, Vote},
};
use conclave_types::{
    NodeId,
    error::Error,
    status::{Health, NotServing},
};

/// The interval at which the disk is checked. Polled, because a hung disk raises no event.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The interval at which another node is asked whether it has elected a leader. The other node sends
/// no notification, and an election takes milliseconds.
const ASK_INTERVAL: Duration = Duration::from_millis(5);
/// The time that running proposals may take before leadership is transferred.
const PROPOSALS_TIME_MAX: Duration = Duration::from_millis(500);
/// The time that the other followers may take to learn of the new leader.
const SPREAD_TIME_MAX: Duration = Duration::from_millis(500);
/// The interval at which running proposals are counted. Polled, because only a planned stop waits
/// for them, and a notification would cost every command.
const COUNT_INTERVAL: Duration = Duration::from_millis(1);
/// The time limit of a short request.
const ASK_TIMEOUT: Duration = Duration::from_millis(200);
/// The pause before a failed transfer is retried.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Decides whether this node leads, and transfers leadership.
pub(super) struct Leadership {
    node: Arc<Node>,
    fitness: Arc<Fitness>,
    lease: Arc<Lease>,
    hold: Arc<VoteHoldoff>,
}

impl Leadership {
    pub(super) fn new(
        node: Arc<Node>,
        fitness: Arc<Fitness>,
        lease: Arc<Lease>,
        hold: Arc<VoteHoldoff>,
    ) -> Self {
        Self { node, fitness, lease, hold }
    }

    /// Reports that this node is about to stop, and takes part in no further election.
    pub(super) fn set_stopping(&self) {
        self.node.health.send_replace(Health::NotServing(NotServing::ShuttingDown));
        self.fitness.set_stopping();
        self.node.raft.runtime_config().elect(false);
    }

    /// Enables openraft's elections and heartbeats according to this node's fitness, and transfers
    /// leadership away from an unfit node.
    pub(super) async fn run(self: Arc<Self>) {
        let Self { node, fitness, .. } = &*self;
        let mut last: Option<Unfit> = None;
        // The term in which leadership was transferred. openraft may not have noticed, see the module page.
        let mut transferred_in = None;
        let mut retry_at = Instant::now();
        loop {
            sleep(POLL_INTERVAL).await;
            let unfit = fitness.unfit();
            let (hung, was_unfit) = (matches!(unfit, Some(Unfit::Disk(_))), last.is_some());
            fitness.set_hung(hung);
            match &unfit {
                Some(Unfit::Stopping) => {}
                Some(why) if !was_unfit => tracing::warn!(%why, "this node must not lead"),
                None if was_unfit => tracing::info!("this node may lead again"),
                _ => {}
            }
            let config = node.raft.runtime_config();
            config.elect(unfit.is_none() && self.hold.is_released() && node.local.lost().is_none());
            config.heartbeat(!hung);
            // Observed twice, because a process that was paused during a write finds its disk working.
            let lasting = was_unfit && unfit.is_some();
            last = unfit;
            let term = node.raft.metrics().borrow_watched().current_term;
            // A planned stop makes its own transfer.
            let must_transfer = lasting && !fitness.is_stopping() && node.raft.is_leader();
            if must_transfer && transferred_in != Some(term) && Instant::now() >= retry_at {
                match self.transfer(|_| true).await {
                    Ok(to) => {
                        tracing::warn!(to, "leadership transferred");
                        transferred_in = Some(term);
                    }
                    Err(why) => {
                        tracing::warn!(why, "cannot transfer leadership");
                        retry_at = Instant::now() + RETRY_INTERVAL;
                    }
                }
            }
        }
    }

    /// Prepares a planned stop. Reports that this node is stopping, takes part in no further
    /// election, and transfers leadership if this node leads. Calls are served in the meantime.
    /// Takes at most three election timeouts.
    pub(super) async fn retire(&self) {
        self.set_stopping();
        if !self.node.is_leader() || self.node.other_voters().is_empty() {
            return;
        }
        self.fitness.set_transferring(true);
        let until = Instant::now() + PROPOSALS_TIME_MAX;
        while self.fitness.proposals() > 0 && Instant::now() < until {
            sleep(COUNT_INTERVAL).await;
        }
        let limit = self.node.timing.election_time();
        match timeout(limit, self.transfer(|_| true)).await {
            Ok(Ok(to)) => {
                tracing::info!(to, "leadership transferred before the stop");
                self.until_followed(to).await;
            }
            Ok(Err(why)) => {
                tracing::warn!(
                    why,
                    "this node stops as the leader, so the other nodes must elect one"
                );
            }
            Err(_) => tracing::warn!(
                within = ?limit,
                "no other node has taken over leadership: this node stops as the leader"
            ),
        }
        self.fitness.set_transferring(false);
    }

    /// Asks the other voters that may lead, best matched first, to take over, until one has.
    /// Returns the node that then leads.
    pub(super) async fn transfer(
        &self,
        may_lead: impl Fn(NodeId) -> bool,
    ) -> Result<NodeId, String> {
        let state = raft_state(&self.node.raft, |state| {
            let last: Option<LogId> = state.log_ids.last().copied();
            (*state.vote_ref(), last)
        });
        let (vote, last) = timeout(ASK_TIMEOUT, state)
            .await
            .map_err(|_| "Raft does not respond".to_owned())?
            .map_err(|fatal| fatal.to_string())?;
        let hung = self.node.disk.is_hung();
        let mut reasons = Vec::new();
        let mut successors = self.successors();
        successors.retain(|other| may_lead(other.node_id));
        for Successor { node_id, member, matched, .. } in successors {
            // From here on its election may succeed at any time.
            self.lease.end(vote.leader_id.term);
            // With a hung disk, no other node may have the end of the log.
            let last = if hung { matched } else { last };
            let request = TransferLeaderRequest {
                from: Some(vote_to_wire(&vote)),
                to_node_id: node_id,
                last_log_id: last.as_ref().map(log_id_to_wire),
            };
            let peer = self.node.peers.peer(node_id, &member);
            let answer = timeout(self.node.timing.election_min, async {
                let mut client = peer
                    .client(ConnectionClass::Control)
                    .await
                    .map_err(|error| error.to_string())?;
                let answer = client.transfer_leader(request).await;
                answer.map_err(|status| peer.failed(ConnectionClass::Control, status).to_string())
            });
            match answer.await {
                Ok(Ok(answer)) if answer.get_ref().accepted => {}
                Ok(Ok(_)) => {
                    reasons.push(format!("node {node_id} refused to take over"));
                    continue;
                }
                Ok(Err(reason)) => {
                    reasons.push(reason);
                    continue;
                }
                Err(_) => {
                    reasons.push(format!("node {node_id} does not respond"));
                    continue;
                }
            }
            match self.led_by_another(node_id, &member, vote.leader_id.term).await {
                Some(leader) => {
                    self.node.metrics.transfers.inc();
                    return Ok(leader);
                }
                None => reasons.push(format!("node {node_id} accepted but was not elected")),
            }
        }
        match reasons.is_empty() {
            true => Err("there is no other voter that may lead".to_owned()),
            false => Err(reasons.join("; ")),
        }
    }

    /// Waits until another node leads. A node whose disk hangs does not learn of it, so
    /// it queries the successor.
    async fn led_by_another(&self, to: NodeId, member: &Member, term: u64) -> Option<NodeId> {
        let until = Instant::now() + self.node.timing.election_min;
        while Instant::now() < until {
            let known = self.node.leader().map(|(leader, _)| leader);
            if let Some(leader) = known.filter(|leader| *leader != self.node.id()) {
                return Some(leader);
            }
            if let Ok(Ok(status)) =
                timeout(ASK_TIMEOUT, peer_status::ask(&self.node.peers, to, member)).await
                && status.term > term
                && let Some(leader) = status.leader
            {
                return Some(leader);
            }
            sleep(ASK_INTERVAL).await;
        }
        None
    }

    /// Waits until the other nodes follow the new leader too, so that none forwards
    /// calls to a stopped node.
    async fn until_followed(&self, leader: NodeId) {
        let until = Instant::now() + SPREAD_TIME_MAX;
        for (node_id, member) in self.node.other_voters() {
            while node_id != leader && Instant::now() < until {
                match timeout(ASK_TIMEOUT, peer_status::ask(&self.node.peers, node_id, &member))
                    .await
                {
                    Ok(Ok(status)) if status.leader != Some(leader) => sleep(ASK_INTERVAL).await,
                    _ => break,
                }
            }
        }
        // Also waits for this node itself, so that running calls are forwarded.
        while self.node.leader().is_none_or(|(known, _)| known != leader) && Instant::now() < until
        {
            leader_changed(&self.node.raft).await;
        }
    }

    /// Returns the other voters, the most suitable successor first: first those that responded
    /// recently, then by matched log.
    fn successors(&self) -> Vec<Successor> {
        let voters = self.node.other_voters().into_iter();
        let metrics = self.node.raft.metrics();
        let metrics = metrics.borrow_watched();
        let answered = |node_id: &NodeId| {
            let at = metrics.heartbeat.as_ref()?.get(node_id).copied().flatten()?;
            Some(at.elapsed() < self.node.timing.election_max)
        };
        let matched =
            |node_id: &NodeId| metrics.replication.as_ref()?.get(node_id).copied().flatten();
        let mut successors: Vec<_> = voters
            .map(|(node_id, member)| Successor {
                answered: answered(&node_id).unwrap_or(false),
                matched: matched(&node_id),
                node_id,
                member,
            })
            .collect();
        successors.sort_by_key(|other| std::cmp::Reverse((other.answered, other.matched)));
        successors
    }

    /// Returns whether this node may take over leadership from another.
    pub(super) fn may_take_over(&self) -> bool {
        self.fitness.unfit().is_none() && self.node.fatal_error().is_none()
    }

    /// Rejects a peer's request that openraft's core could answer only after a write,
    /// while the disk hangs. A leader that this node already follows is not rejected,
    /// because its vote is on disk.
    pub(super) fn check_disk(&self, leader: Option<&Vote>) -> Result<(), Status> {
        if !self.node.disk.is_hung() {
            return Ok(());
        }
        let followed = self.node.raft.metrics().borrow_watched().vote;
        if leader == Some(&followed) && !self.node.raft.is_leader() {
            return Ok(());
        }
        Err(Status::unavailable("this node's disk does not respond"))
    }

    /// Ends a call early once the disk hangs, because another node can serve it.
    pub(super) async fn unless_disk_hangs<T>(
        &self,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            result = call => result,
            () = self.fitness.disk_hangs() => {
                let why = self.node.disk.fatal_error();
                Err(Error::stopped(why.unwrap_or_else(|| "the disk did not respond".to_owned())))
            }
        }
    }
}

/// A voter that could lead instead.
struct Successor {
    node_id: NodeId,
    member: Member,
    answered: bool,
    matched: Option<LogId>,
}
