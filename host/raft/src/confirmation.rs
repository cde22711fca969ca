//! Confirmation of leadership: rounds in which a leader asks the voters whether they still follow it.
//!
//! A linearizable read needs proof that no later leader had committed an entry when the read
//! arrived (Raft thesis, section 6.4). The proof: a majority of the voters, asked after the
//! arrival, has not voted in a later term. A later leader needs a majority of votes, and any two
//! majorities share a voter.
//!
//! Each response carries the number of its round, so it is never counted for a request that the
//! voter has not received. openraft counts a response for the newest request that carried no more
//! entries than the response acknowledges, which makes its own linearizable reads unsound:
//! `docs/upstream/openraft-drain-acked.md`. A response does not wait for the voter's disk.
//!
//! One stream per peer carries the rounds. A slow peer receives only the newest round.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::stream;
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::{Instant, sleep, sleep_until},
};
use tonic::Request;

use super::network::peer::{ConnectionClass, Peer, PeerError};
use crate::supervise::Supervisor;
use conclave_proto::raft::{ConfirmLeaderRequest, ConfirmLeaderResponse};
use conclave_storage::raft_types::Membership;
use conclave_types::NodeId;

/// The time limit of a round. Most rounds take one network round trip; a leader that is
/// cut off gets no majority.
pub(super) const ROUND_TIMEOUT: Duration = Duration::from_secs(2);
/// The minimum time before the remaining peers are asked too.
const PATIENCE_MIN: Duration = Duration::from_millis(2);
/// The pause before a peer that could not be reached is asked again about a pending round.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// The rounds of one node, and the newest answer of each peer.
pub(super) struct Confirmation {
    /// The number of the newest round.
    newest: AtomicU64,
    answers: Arc<Answers>,
    supervisor: Supervisor,
    /// The tasks that send the rounds to the peers, by node id.
    asking: Mutex<HashMap<NodeId, Asking>>,
}

#[derive(Clone, Copy)]
struct Round {
    number: u64,
    begun: Instant,
}

/// A round that has started.
pub(super) struct Begun {
    round: Round,
    /// The peers that are asked if the first ones do not respond in time.
    rest: Vec<Arc<Peer>>,
    patience: Duration,
}

struct Asking {
    address: String,
    rounds: watch::Sender<Round>,
    task: AbortHandle,
}

#[derive(Default)]
struct Answers {
    newest: Mutex<BTreeMap<NodeId, ConfirmLeaderResponse>>,
    changed: Notify,
}

/// The result of counting the answers of one round.
#[derive(Debug, PartialEq, Eq)]
enum Count {
    /// A majority has not voted in a later term.
    Confirmed,
    /// A voter has voted in a later term.
    Superseded,
    /// Too few voters have responded.
    Pending,
}

impl Confirmation {
    /// Creates an empty state. The tasks that send the rounds run under the supervisor.
    pub(super) fn new(supervisor: Supervisor) -> Self {
        Self {
            newest: AtomicU64::new(0),
            answers: Arc::default(),
            supervisor,
            asking: Mutex::default(),
        }
    }

    /// Starts a round: asks `needed` of the other voters, preferring those that responded most
    /// recently and are nearest. Everything that [`Confirmation::wait`] reports about this round
    /// was observed after this call.
    pub(super) fn begin(&self, mut peers: Vec<Arc<Peer>>, needed: usize) -> Begun {
        let round = Round {
            number: self.newest.fetch_add(1, Ordering::Relaxed) + 1,
            begun: Instant::now(),
        };
        if needed < peers.len() {
            let newest = self.answers.newest();
            peers.sort_by_key(|peer| {
                let answered = newest.get(&peer.node_id).map_or(0, |answer| answer.round);
                (Reverse(answered), peer.round_trip())
            });
        }
        let rest = peers.split_off(needed.min(peers.len()));
        let round_trips = peers.iter().filter_map(|peer| peer.round_trip());
        let patience = PATIENCE_MIN.max(round_trips.max().unwrap_or_default() * 2);
        self.ask(round, peers);
        Begun { round, rest, patience }
    }

    fn ask(&self, round: Round, peers: Vec<Arc<Peer>>) {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        for peer in peers {
            match asking.get(&peer.node_id) {
                Some(known) if known.address == peer.address && !known.task.is_finished() => {
                    known.rounds.send_replace(round);
                }
                _ => {
                    let (node_id, address) = (peer.node_id, peer.address.clone());
                    let (rounds, receiver) = watch::channel(round);
                    let asks = ask(peer, receiver, self.answers.clone());
                    let task = self.supervisor.spawn("confirmation", asks).abort_handle();
                    let replaced = asking.insert(node_id, Asking { address, rounds, task });
                    if let Some(replaced) = replaced {
                        replaced.task.abort();
                    }
                }
            }
        }
    }

    /// Waits until a majority of the voters has responded to the round. Returns whether none of
    /// them has voted in a later term than `term`. Waits without a limit while too few respond.
    pub(super) async fn wait(
        &self,
        begun: Begun,
        term: u64,
        membership: &Membership,
        own: NodeId,
    ) -> bool {
        let Begun { round, mut rest, patience } = begun;
        let mut late = pin!(sleep_until(round.begun + patience));
        loop {
            let changed = self.answers.changed.notified();
            let counted = count(&self.answers.newest(), round.number, term, membership, own);
            match counted {
                Count::Confirmed => return true,
                Count::Superseded => return false,
                Count::Pending => {}
            }
            tokio::select! {
                () = changed => {}
                () = &mut late, if !rest.is_empty() => self.ask(round, std::mem::take(&mut rest)),
            }
        }
    }
}

impl Drop for Confirmation {
    fn drop(&mut self) {
        let asking = self.asking.get_mut().unwrap_or_else(PoisonError::into_inner);
        asking.values().for_each(|asking| asking.task.abort());
    }
}

impl Answers {
    fn newest(&self) -> MutexGuard<'_, BTreeMap<NodeId, ConfirmLeaderResponse>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, node_id: NodeId, answer: ConfirmLeaderResponse) {
        self.newest().insert(node_id, answer);
        self.changed.notify_waiters();
    }
}

fn count(
    answers: &BTreeMap<NodeId, ConfirmLeaderResponse>,
    round: u64,
    term: u64,
    membership: &Membership,
    own: NodeId,
) -> Count {
    let answered = |node: &NodeId| answers.get(node).filter(|answer| answer.round >= round);
    let mut confirmed = true;
    for voters in membership.get_joint_config() {
        if voters.iter().filter_map(answered).any(|answer| answer.term > term) {
            return Count::Superseded;
        }
        let agree = voters.iter().filter(|node| **node == own || answered(node).is_some()).count();
        confirmed &= agree * 2 > voters.len();
    }
    if confirmed { Count::Confirmed } else { Count::Pending }
}

/// Sends each new round to one peer, over one stream for as long as the stream lives.
async fn ask(peer: Arc<Peer>, mut rounds: watch::Receiver<Round>, answers: Arc<Answers>) {
    // The round that this task was started for counts as new.
    rounds.mark_changed();
    while rounds.changed().await.is_ok() {
        if let Err(error) = ask_on_stream(&peer, rounds.clone(), &answers).await {
            tracing::debug!(%error, node = peer.node_id, "a peer does not confirm the leader");
        }
        sleep(RETRY_INTERVAL).await;
        // An idle leader does not call a peer that is down.
        let round = *rounds.borrow_and_update();
        let answered = answers.newest().get(&peer.node_id).map_or(0, |answer| answer.round);
        if answered < round.number && round.begun.elapsed() < ROUND_TIMEOUT {
            rounds.mark_changed();
        }
    }
}

/// Sends rounds over one stream, beginning with the newest.
async fn ask_on_stream(
    peer: &Peer,
    mut rounds: watch::Receiver<Round>,
    answers: &Answers,
) -> Result<(), PeerError> {
    rounds.mark_changed();
    let mut client = peer.client(ConnectionClass::Control).await?;
    let requests = stream::unfold(rounds, |mut rounds| async {
        rounds.changed().await.ok()?;
        let round = rounds.borrow_and_update().number;
        Some((ConfirmLeaderRequest { round }, rounds))
    });
    let failed = |status| peer.failed(ConnectionClass::Control, status);
    let answered = client.confirm_leader(Request::new(requests)).await;
    let mut answered = answered.map_err(failed)?.into_inner();
    // A stream to a host that has vanished stays silent for a long time.
    let mut replaced = pin!(peer.replaced());
    loop {
        let answer = tokio::select! {
            answer = answered.message() => answer.map_err(failed)?,
            () = &mut replaced => None,
        };
        let Some(answer) = answer else { return Ok(()) };
        answers.record(peer.node_id, answer);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::BTreeSet;

    use super::*;
    use conclave_storage::raft_types::Member;

    fn membership(configs: &[&[NodeId]]) -> Membership {
        let voters: Vec<BTreeSet<NodeId>> =
            configs.iter().map(|config| config.iter().copied().collect()).collect();
        let nodes = voters.iter().flatten().map(|id| (*id, Member::default()));
        let nodes: BTreeMap<NodeId, Member> = nodes.collect();
        Membership::new(voters, nodes).unwrap()
    }

    fn counted(answers: &[(NodeId, u64, u64)], configs: &[&[NodeId]]) -> Count {
        let answers = answers.iter().map(|(node, round, term)| {
            (*node, ConfirmLeaderResponse { round: *round, term: *term })
        });
        count(&answers.collect(), 7, 3, &membership(configs), 1)
    }

    #[test]
    fn a_majority_with_the_leader_itself_confirms() {
        assert_eq!(counted(&[], &[&[1]]), Count::Confirmed);
        assert_eq!(counted(&[], &[&[1, 2, 3]]), Count::Pending);
        assert_eq!(counted(&[(2, 7, 3)], &[&[1, 2, 3]]), Count::Confirmed);
        assert_eq!(counted(&[(2, 7, 3)], &[&[1, 2, 3, 4, 5]]), Count::Pending);
        assert_eq!(counted(&[(2, 7, 3), (5, 9, 3)], &[&[1, 2, 3, 4, 5]]), Count::Confirmed);
        assert_eq!(counted(&[(9, 7, 3)], &[&[1, 2, 3]]), Count::Pending, "9 is not a voter");
    }

    #[test]
    fn an_answer_to_an_earlier_round_does_not_count() {
        assert_eq!(counted(&[(2, 6, 3), (3, 6, 3)], &[&[1, 2, 3]]), Count::Pending);
    }

    #[test]
    fn a_voter_of_an_earlier_term_has_not_elected_a_later_leader() {
        assert_eq!(counted(&[(2, 7, 2)], &[&[1, 2, 3]]), Count::Confirmed);
    }

    #[test]
    fn one_voter_in_a_later_term_ends_the_round() {
        assert_eq!(counted(&[(2, 7, 3), (3, 8, 4)], &[&[1, 2, 3]]), Count::Superseded);
    }

    #[test]
    fn a_joint_configuration_needs_both_majorities() {
        let joint: &[&[NodeId]] = &[&[1, 2, 3], &[3, 4, 5]];
        assert_eq!(counted(&[(2, 7, 3)], joint), Count::Pending);
        assert_eq!(counted(&[(2, 7, 3), (4, 7, 3)], joint), Count::Pending);
        assert_eq!(counted(&[(2, 7, 3), (4, 7, 3), (5, 7, 3)], joint), Count::Confirmed);
        assert_eq!(counted(&[(3, 7, 3), (4, 7, 3)], joint), Count::Confirmed);
    }
}
