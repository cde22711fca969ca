//! A leader that is deposed while the answers of its followers are in transit.
//!
//! The interleaving of `docs/upstream/openraft-drain-acked.md`:
//!
//! 1. A write is in flight when the links to the leader begin to hold their bytes. The followers
//!    have stored its entry.
//! 2. Another node is elected and acknowledges a write.
//! 3. Reads reach the old leader, which has not yet learned of the new one.
//! 4. The late answers of one follower arrive, and then those of the next. They belong to the old
//!    leader's term, so they may commit the entry of step 1. They do not confirm anything that the
//!    leader sent afterwards.
//!
//! A read that is answered from the old leader's state is stale. All operations are recorded, and
//! the checks of [`invariants`](crate::invariants) detect stale reads.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use conclave_client::Client;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    cluster::{Cluster, PATIENCE},
    history::{Kind, Operation, Outcome, Recorder, Request, Step},
    proxy::{Part, Shape},
    workload,
};

/// Number of reads per connection to the old leader.
const READS_PER_CONNECTION: usize = 4;
/// Number of connections that read.
const CONNECTIONS: usize = 4;
/// Time for a write to reach the followers.
const IN_FLIGHT: Duration = Duration::from_millis(60);
/// Time for reads to reach the old leader.
const ARRIVAL: Duration = Duration::from_millis(20);
/// Deadline of a write at a node that may lead.
const ATTEMPT: Duration = Duration::from_millis(250);
/// Deadline of the reads, and of the write in flight.
const DEADLINE: Duration = Duration::from_secs(3);
/// The first value. No workload puts values this large.
const FIRST_VALUE: u64 = 1 << 62;
/// The number of these clients in the history. They have several operations in flight at the same time.
const CLIENT: u32 = u32::MAX - 1;

/// Settings of a round.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Whether the old leader is paused until the reads have been sent. Otherwise only its links
    /// hold their bytes.
    pub paused: bool,
    /// The time between the answers of one follower and those of the next.
    pub between: Duration,
}

/// Runs one round against the current leader. Returns the ids of the old leader and of a node that
/// has acknowledged a write since.
///
/// # Errors
/// Fails if the round could not be completed: for example, if no other node was elected in time.
/// The links are repaired in any case.
pub async fn happen(
    cluster: &Arc<Cluster>,
    recorder: &Arc<Recorder>,
    plan: Plan,
) -> Result<(u64, u64)> {
    static ROUNDS: AtomicU64 = AtomicU64::new(0);
    let number = ROUNDS.fetch_add(1, Ordering::Relaxed);
    let leader = cluster.leader_within(DEADLINE).await?;
    let (cluster, recorder) = (Arc::clone(cluster), Arc::clone(recorder));
    let round = Arc::new(Round { cluster, recorder, leader, number });
    let happened = timeout(PATIENCE, round.run(plan)).await;
    round.cluster.spare(leader, false);
    round.cluster.resume(leader)?;
    round.cluster.network()?.around(leader).for_each(|link| link.repair());
    Ok((leader, happened??))
}

struct Round {
    cluster: Arc<Cluster>,
    recorder: Arc<Recorder>,
    leader: u64,
    number: u64,
}

impl Round {
    async fn run(self: &Arc<Self>, plan: Plan) -> Result<u64> {
        let (cluster, leader) = (&self.cluster, self.leader);
        let network = cluster.network()?;
        let followers: Vec<u64> = cluster.ids().filter(|id| *id != leader).collect();
        let writer = cluster.client_of(leader)?;
        ensure!(self.put(leader, &writer, DEADLINE).await, "node {leader} does not lead");
        // No read waits at the leader when its links are held, and the connections are already open.
        let mut readers = Vec::new();
        for _ in 0..CONNECTIONS {
            let reader = cluster.client_of(leader)?;
            self.operate(leader, &reader, Kind::Read, self.get(), DEADLINE).await;
            readers.push(reader);
        }

        // A later write at this node would replace the notice that is credited incorrectly.
        cluster.spare(leader, true);
        network.into(leader).for_each(|link| link.hold());
        let in_flight = {
            let round = Arc::clone(self);
            tokio::spawn(async move { round.put(leader, &writer, DEADLINE).await })
        };
        sleep(IN_FLIGHT).await;
        network.out_of(leader).for_each(|link| link.hold());
        if plan.paused {
            cluster.pause(leader)?;
        }
        let successor = self.acknowledged_by_another(&followers).await?;

        let mut reads = JoinSet::new();
        for number in 0..CONNECTIONS * READS_PER_CONNECTION {
            let (round, reader) = (Arc::clone(self), readers[number % CONNECTIONS].clone());
            let kind = if number / CONNECTIONS == 0 { Kind::LeaseRead } else { Kind::Read };
            reads.spawn(async move {
                round.operate(leader, &reader, kind, round.get(), DEADLINE).await;
            });
        }
        sleep(ARRIVAL).await;
        if plan.paused {
            cluster.resume(leader)?;
            sleep(ARRIVAL).await;
        }
        for follower in followers {
            let link = network.link(follower, leader);
            link.set_part(Part::Responses, |shape| *shape = Shape::default());
            sleep(plan.between).await;
        }
        sleep(ARRIVAL).await;
        network.around(leader).for_each(|link| link.repair());
        while let Some(read) = reads.join_next().await {
            read?;
        }
        in_flight.await?;
        Ok(successor)
    }

    /// Waits until one of these nodes acknowledges a write. Returns its id.
    async fn acknowledged_by_another(&self, nodes: &[u64]) -> Result<u64> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            for id in nodes {
                if self.put(*id, &self.cluster.client_of(*id)?, ATTEMPT).await {
                    return Ok(*id);
                }
            }
            ensure!(Instant::now() < deadline, "no other node leads within {DEADLINE:?}");
        }
    }

    fn key(&self) -> String {
        format!("late-answers/{}", self.number)
    }

    fn get(&self) -> Step {
        Step::Get(self.key())
    }

    /// Puts a new value. Returns whether it was acknowledged.
    async fn put(&self, node: u64, client: &Client, deadline: Duration) -> bool {
        static VALUES: AtomicU64 = AtomicU64::new(FIRST_VALUE);
        let step = Step::Put(self.key(), VALUES.fetch_add(1, Ordering::Relaxed));
        self.operate(node, client, Kind::Write, step, deadline).await
    }

    /// Makes a call and records the operation. Returns whether there was an answer.
    async fn operate(
        &self,
        id: u64,
        client: &Client,
        kind: Kind,
        step: Step,
        deadline: Duration,
    ) -> bool {
        let starts = || Some((id, self.cluster.node(id).starts()));
        let before = starts();
        let (request, begun) = (Request::of(step), self.recorder.now());
        let outcome = workload::call(client, kind, &request, deadline).await;
        let ended = self.recorder.now();
        let node = if starts() == before { before } else { None };
        let done = matches!(outcome, Outcome::Done(_));
        let client = CLIENT;
        self.recorder.add(Operation { client, node, kind, request, begun, ended, outcome });
        done
    }
}
