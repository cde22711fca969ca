//! Compares this node's clock with the members' clocks, and provides the leader's stamps.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use openraft::async_runtime::WatchReceiver;
use tokio::time::timeout;

use super::{Compared, Evidence, Nanos, Offset, Reading, State, Time, log_clock};
use crate::{fitness::Fitness, network::peer::ConnectionClass, node::Node, raft_state::superseded};
use conclave_proto::raft::{CompareClocksRequest, CompareClocksResponse};
use conclave_storage::raft_types::Member;
use conclave_types::NodeId;

/// The interval between two comparisons with every member.
const INTERVAL: Duration = Duration::from_secs(1);
/// The interval while the leader does not know the log's time yet.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// The time after which a peer that has not responded is skipped in this comparison.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);
const NANOS_PER_MICRO: Nanos = 1_000;

/// Returns the pause before the next comparison. A leader that was just elected may have responded
/// before it knew the log's time.
fn pause(has_leader: bool, follows: bool) -> Duration {
    if has_leader && !follows { RETRY_INTERVAL } else { INTERVAL }
}

/// This node's clock, compared with the members' clocks.
pub(crate) struct Clock {
    node: Arc<Node>,
    fitness: Arc<Fitness>,
    time: Arc<Time>,
}

impl Clock {
    pub(crate) fn new(node: Arc<Node>, fitness: Arc<Fitness>, time: Arc<Time>) -> Self {
        Self { node, fitness, time }
    }

    /// Compares the clocks at intervals, and as soon as another leader becomes known. A node that
    /// follows the leader's pace can continue the log's time at once when that leader fails.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut metrics = self.node.raft.server_metrics();
        loop {
            let before = metrics.borrow_and_update().current_leader;
            self.compare(|_| false).await;
            let leads = self.node.is_leader();
            if leads {
                // Also without writes, because timers that were due during a downtime wait for the stamp.
                self.stamp().await;
            }
            self.fitness.set_clock_fault(self.time.check());
            let pause = pause(before.is_some() && !leads, self.time.follows());
            let _ = timeout(pause, superseded(&self.node.raft, before)).await;
        }
    }

    /// Returns the stamp for an entry that this node proposes as the leader.
    pub(crate) async fn stamp(self: &Arc<Self>) -> u64 {
        let time = &self.time;
        if let Some(stamp_ms) = time.stamp_ms() {
            return stamp_ms;
        }
        // In a separate task: the call that needs the stamp may be cancelled, and calls with short
        // deadlines would otherwise restart the comparison endlessly.
        let clock = self.clone();
        let settled = self.node.supervisor.spawn("log-time", async move { clock.settle().await });
        let _ = settled.await;
        time.stamp_ms().unwrap_or_else(|| time.now_ms())
    }

    /// Determines the log's time from the members' clocks, once for all callers.
    async fn settle(&self) {
        let time = &self.time;
        let _turn = time.settling.lock().await;
        let settled_at = time.state().settled_at;
        let recent = |at| Reading::now().boot.saturating_sub(at) < INTERVAL;
        if time.stamp_ms().is_none() && !settled_at.is_some_and(recent) {
            let own = self.node.id();
            self.compare(|state| state.is_decided(own, Reading::now())).await;
            time.settle();
        }
    }

    /// Requests the clocks of all members in parallel. Returns early once `enough` returns `true`.
    async fn compare(&self, enough: impl Fn(&mut State) -> bool) {
        let (voters, members) = {
            let metrics = self.node.raft.metrics();
            let metrics = metrics.borrow_watched();
            let membership = metrics.membership_config.membership();
            let members: Vec<(NodeId, Member)> =
                membership.nodes().map(|(id, member)| (*id, member.clone())).collect();
            (membership.get_joint_config().clone(), members)
        };
        self.time.state().voters = voters;
        let others = members.iter().filter(|(id, _)| *id != self.node.id());
        let requests =
            others.map(|(id, member)| timeout(ASK_TIMEOUT, self.compare_with(*id, member)));
        let mut requests: FuturesUnordered<_> = requests.collect();
        while requests.next().await.is_some() {
            if enough(&mut self.time.state()) {
                return;
            }
        }
    }

    async fn compare_with(&self, node_id: NodeId, member: &Member) {
        let peer = self.node.peers.peer(node_id, member);
        let Ok(mut client) = peer.client(ConnectionClass::Control).await else { return };
        let sent = Reading::now();
        let answer = match client.compare_clocks(CompareClocksRequest {}).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                tracing::debug!(error = %peer.failed(ConnectionClass::Control, status), "no clock");
                return;
            }
        };
        let received = Reading::now();
        let round_trip = received.boot.saturating_sub(sent.boot);
        let follows =
            answer.leads && self.node.leader().is_some_and(|(leader, _)| leader == node_id);
        self.time.note(node_id, sent, round_trip, &answer, follows);
    }

    /// Returns this node's clock, for a peer.
    pub(crate) fn for_peer(&self) -> CompareClocksResponse {
        let leads = self.node.is_leader();
        let now = Reading::now();
        let mut state = self.time.state();
        let log_time = state.clock.advance(now.boot, None);
        let micros = |nanos: Nanos| u64::try_from(nanos / NANOS_PER_MICRO).unwrap_or(u64::MAX);
        CompareClocksResponse {
            wall_us: micros(now.wall),
            log_time_us: if state.clock.is_known() { micros(log_time) } else { 0 },
            leads,
        }
    }
}

impl Time {
    fn note(
        &self,
        node_id: NodeId,
        sent: Reading,
        round_trip: Duration,
        answer: &CompareClocksResponse,
        follows: bool,
    ) {
        let half = round_trip / 2;
        let nanos = |micros: u64| Nanos::from(micros) * NANOS_PER_MICRO;
        let at = sent.boot + half;
        let log_time = (answer.log_time_us != 0).then(|| nanos(answer.log_time_us));
        let offset = Offset::measured(sent.wall, round_trip, nanos(answer.wall_us));
        let mut state = self.state();
        state.compared.insert(node_id, Compared { at, offset, log_time });
        if let Some(log_time) = log_time
            && follows
        {
            state.clock.follow(at, log_time);
        }
    }

    /// Determines the log's time, for a leader that does not know its pace.
    fn settle(&self) {
        let now = Reading::now();
        let mut state = self.state();
        state.settled_at = Some(now.boot);
        let followed = state
            .fresh(now)
            .filter_map(|(_, one)| Some(one.log_time? + now.boot.saturating_sub(one.at).as_nanos()))
            .max();
        state.refresh(self.node_id, now);
        let majority = state.majority_wall(now);
        let before = state.clock.advance(now.boot, None);
        state.clock.settle(now.boot, Evidence { followed, majority, wall: now.wall });
        let after = state.clock.advance(now.boot, None);
        let known = state.clock.is_known();
        drop(state);
        let (before_ms, after_ms) = (log_clock::ms_of_nanos(before), log_clock::ms_of_nanos(after));
        match known {
            true => tracing::info!(before_ms, after_ms, "the log's time continues"),
            false => tracing::warn!(
                before_ms,
                "no majority of the voters' clocks agrees: the log's time continues from its last entry"
            ),
        }
    }

    /// Applies the time that an operator has set, once its entry is in the log.
    pub(crate) fn set(&self, time_ms: u64) {
        let now = Reading::now();
        self.state().clock.set(now.boot, log_clock::nanos_of_ms(time_ms));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follower_asks_soon_again_until_its_leader_knows_the_time_of_the_log() {
        assert_eq!(pause(true, false), RETRY_INTERVAL);
        assert_eq!(pause(true, true), INTERVAL);
        assert_eq!(pause(false, false), INTERVAL, "a new leader ends the pause");
    }
}
