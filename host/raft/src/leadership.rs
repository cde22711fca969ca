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

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use openraft::{Instant as _, async_runtime::WatchReceiver};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tonic::Status;

use super::{Inner, Replica, network::peer::ConnectionClass};
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

/// The interval at which the disk is polled, because a hung disk raises no event.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The interval while an event is awaited that takes milliseconds.
const SHORT_POLL: Duration = Duration::from_millis(5);
/// The time that running proposals may take before leadership is transferred.
const PROPOSALS_TIME_MAX: Duration = Duration::from_millis(500);
/// The time that the other followers may take to learn of the new leader.
const SPREAD_TIME_MAX: Duration = Duration::from_millis(500);
/// The time limit of a short request.
const ASK_TIMEOUT: Duration = Duration::from_millis(200);
/// The pause before a failed transfer is retried.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The reason why a node must not lead.
#[derive(Clone, Debug)]
pub(super) enum Unfit {
    Disk(Duration),
    Clock(String),
    Stopping,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(busy) => {
                write!(f, "the disk has not completed a write for {:.1} s", busy.as_secs_f64())
            }
            Self::Clock(why) => f.write_str(why),
            Self::Stopping => f.write_str("this node is shutting down"),
        }
    }
}

/// The reasons and counters that decide whether this node leads.
pub(super) struct Leadership {
    stopping: AtomicBool,
    clock: Mutex<Option<String>>,
    /// Set while proposals are rejected, because another node is about to lead.
    transferring: AtomicBool,
    /// The number of proposals that openraft has received and not answered.
    proposals: Arc<AtomicUsize>,
    transfers: AtomicU64,
    hung: watch::Sender<bool>,
    /// Set once the peers' streams end.
    closed: watch::Sender<bool>,
}

/// A running proposal.
pub(super) struct Proposal(Arc<AtomicUsize>);

impl Drop for Proposal {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Leadership {
    pub(super) fn new() -> Self {
        Self {
            stopping: AtomicBool::new(false),
            clock: Mutex::new(None),
            transferring: AtomicBool::new(false),
            proposals: Arc::default(),
            transfers: AtomicU64::new(0),
            hung: watch::Sender::new(false),
            closed: watch::Sender::new(false),
        }
    }

    /// Counts a proposal, or rejects it while leadership is being transferred.
    pub(super) fn propose(&self) -> Result<Proposal, Error> {
        // Counted before the check, because a transfer sets the flag before it reads the count.
        self.proposals.fetch_add(1, Ordering::SeqCst);
        let proposal = Proposal(self.proposals.clone());
        if self.transferring.load(Ordering::SeqCst) {
            return Err(Error::not_leader(None));
        }
        Ok(proposal)
    }

    /// Sets or clears a fault of this node's clock. The node must not lead with a fault.
    pub(super) fn set_clock_fault(&self, fatal_error: Option<String>) {
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = fatal_error;
    }

    /// Waits until the disk hangs.
    pub(super) async fn disk_hangs(&self) {
        let mut hung = self.hung.subscribe();
        if hung.wait_for(|hung| *hung).await.is_err() {
            std::future::pending().await
        }
    }
}

impl Inner {
    /// Returns the reason why this node must not lead, if there is one.
    pub(super) fn unfit(&self) -> Option<Unfit> {
        if let Some(busy) = self.disk.hung_for() {
            return Some(Unfit::Disk(busy));
        }
        if self.is_stopping() {
            return Some(Unfit::Stopping);
        }
        let clock = self.leadership.clock.lock().unwrap_or_else(PoisonError::into_inner);
        clock.clone().map(Unfit::Clock)
    }

    /// Returns whether this node is about to stop, or has stopped.
    pub(super) fn is_stopping(&self) -> bool {
        self.leadership.stopping.load(Ordering::SeqCst)
    }

    pub(super) fn set_stopping(&self) {
        self.health.send_replace(Health::NotServing(NotServing::ShuttingDown));
        self.leadership.stopping.store(true, Ordering::SeqCst);
        self.raft.runtime_config().elect(false);
    }

    /// Returns how often this node has transferred its leadership.
    pub(super) fn transfers(&self) -> u64 {
        self.leadership.transfers.load(Ordering::Relaxed)
    }
}

/// Enables openraft's elections and heartbeats according to this node's fitness, and transfers
/// leadership away from an unfit node, until the replica is gone.
pub(super) async fn run(replica: Weak<Inner>) {
    let mut last: Option<Unfit> = None;
    // The term in which leadership was transferred. openraft may not have noticed, see the module page.
    let mut transferred_in = None;
    let mut retry_at = Instant::now();
    loop {
        sleep(POLL_INTERVAL).await;
        let Some(inner) = replica.upgrade() else { return };
        let unfit = inner.unfit();
        let (hung, was_unfit) = (matches!(unfit, Some(Unfit::Disk(_))), last.is_some());
        inner.leadership.hung.send_if_modified(|known| std::mem::replace(known, hung) != hung);
        match &unfit {
            Some(Unfit::Stopping) => {}
            Some(why) if !was_unfit => tracing::warn!(%why, "this node must not lead"),
            None if was_unfit => tracing::info!("this node may lead again"),
            _ => {}
        }
        let config = inner.raft.runtime_config();
        config.elect(unfit.is_none() && inner.hold.is_released() && inner.local.lost().is_none());
        config.heartbeat(!hung);
        // Observed twice, because a process that was paused during a write finds its disk working.
        let lasting = was_unfit && unfit.is_some();
        last = unfit;
        let term = inner.raft.metrics().borrow_watched().current_term;
        // A planned stop makes its own transfer.
        if lasting && !inner.is_stopping() && inner.raft.is_leader() && transferred_in != Some(term)
        {
            if Instant::now() < retry_at {
                continue;
            }
            match Replica(inner.clone()).transfer_leadership(|_| true).await {
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

impl Replica {
    /// Prepares a planned stop. Reports that this node is stopping, takes part in no further
    /// election, and transfers leadership if this node leads. Calls are served in the meantime.
    /// Takes at most three election timeouts.
    pub async fn retire(&self) {
        let inner = &self.0;
        inner.set_stopping();
        if !inner.is_leader() || self.other_voters().is_empty() {
            return;
        }
        inner.leadership.transferring.store(true, Ordering::SeqCst);
        let under_way = || inner.leadership.proposals.load(Ordering::SeqCst);
        let until = Instant::now() + PROPOSALS_TIME_MAX;
        while under_way() > 0 && Instant::now() < until {
            sleep(Duration::from_millis(1)).await;
        }
        let limit = inner.timing.election_time();
        match timeout(limit, self.transfer_leadership(|_| true)).await {
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
        inner.leadership.transferring.store(false, Ordering::SeqCst);
    }

    /// Ends the streams of peers, so that Raft can stop without an open stream.
    pub fn close_peers(&self) {
        self.0.leadership.closed.send_replace(true);
    }

    /// Returns whether [`Replica::close_peers`] was called.
    pub(super) fn is_closed_for_peers(&self) -> bool {
        *self.0.leadership.closed.borrow()
    }

    /// Waits for [`Replica::close_peers`].
    pub(super) fn peers_closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut closed = self.0.leadership.closed.subscribe();
        // A dropped sender also closes the streams.
        async move { drop(closed.wait_for(|closed| *closed).await) }
    }

    /// Asks the other voters that may lead, best matched first, to take over, until one has.
    /// Returns the node that then leads.
    pub(super) async fn transfer_leadership(
        &self,
        may_lead: impl Fn(NodeId) -> bool,
    ) -> Result<NodeId, String> {
        let state = self.0.raft_state(|state| {
            let last: Option<LogId> = state.log_ids.last().copied();
            (*state.vote_ref(), last)
        });
        let (vote, last) = timeout(ASK_TIMEOUT, state)
            .await
            .map_err(|_| "Raft does not respond".to_owned())?
            .map_err(|fatal| fatal.to_string())?;
        let hung = self.0.disk.is_hung();
        let mut reasons = Vec::new();
        let mut successors = self.successors();
        successors.retain(|other| may_lead(other.node_id));
        for Successor { node_id, member, matched, .. } in successors {
            // From here on its election may succeed at any time.
            self.0.lease.end(vote.leader_id.term);
            // With a hung disk, no other node may have the end of the log.
            let last = if hung { matched } else { last };
            let request = TransferLeaderRequest {
                from: Some(vote_to_wire(&vote)),
                to_node_id: node_id,
                last_log_id: last.as_ref().map(log_id_to_wire),
            };
            let peer = self.0.peers.peer(node_id, &member);
            let answer = timeout(self.0.timing.election_min, async {
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
                    self.0.leadership.transfers.fetch_add(1, Ordering::Relaxed);
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
        let until = Instant::now() + self.0.timing.election_min;
        while Instant::now() < until {
            let known = self.0.leader().map(|(leader, _)| leader);
            if let Some(leader) = known.filter(|leader| *leader != self.0.node_id()) {
                return Some(leader);
            }
            if let Ok(Ok(status)) = timeout(ASK_TIMEOUT, self.ask(to, member)).await
                && status.term > term
                && let Some(leader) = status.leader
            {
                return Some(leader);
            }
            sleep(SHORT_POLL).await;
        }
        None
    }

    /// Waits until the other nodes follow the new leader too, so that none forwards
    /// calls to a stopped node.
    async fn until_followed(&self, leader: NodeId) {
        let until = Instant::now() + SPREAD_TIME_MAX;
        for (node_id, member) in self.other_voters() {
            while node_id != leader && Instant::now() < until {
                match timeout(ASK_TIMEOUT, self.ask(node_id, &member)).await {
                    Ok(Ok(status)) if status.leader != Some(leader) => sleep(SHORT_POLL).await,
                    _ => break,
                }
            }
        }
        // Also waits for this node itself, so that running calls are forwarded.
        while self.0.leader().is_none_or(|(known, _)| known != leader) && Instant::now() < until {
            self.leader_changed().await;
        }
    }

    fn other_voters(&self) -> Vec<(NodeId, Member)> {
        let mut voters = self.voters();
        voters.retain(|(node_id, _)| *node_id != self.0.node_id());
        voters
    }

    /// Returns the other voters, the most suitable successor first: first those that responded
    /// recently, then by matched log.
    fn successors(&self) -> Vec<Successor> {
        let voters = self.other_voters().into_iter();
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        let answered = |node_id: &NodeId| {
            let at = metrics.heartbeat.as_ref()?.get(node_id).copied().flatten()?;
            Some(at.elapsed() < self.0.timing.election_max)
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
        self.0.unfit().is_none() && self.0.fatal_error().is_none()
    }

    /// Rejects a peer's request that openraft's core could answer only after a write,
    /// while the disk hangs. A leader that this node already follows is not rejected,
    /// because its vote is on disk.
    pub(super) fn check_disk(&self, leader: Option<&Vote>) -> Result<(), Status> {
        if !self.0.disk.is_hung() {
            return Ok(());
        }
        let followed = self.0.raft.metrics().borrow_watched().vote;
        if leader == Some(&followed) && !self.0.raft.is_leader() {
            return Ok(());
        }
        Err(Status::unavailable("this node's disk does not respond"))
    }

    /// Ends a call early once the disk hangs, because another node can serve it.
    pub async fn unless_disk_hangs<T>(
        &self,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            result = call => result,
            () = self.0.leadership.disk_hangs() => {
                let why = self.0.disk.fatal_error();
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
