//! Links that fail in one direction only: a node receives messages from another one that receives
//! none from it.

use std::time::{Duration, Instant};

use conclave_testing::{
    cluster::{self, Cluster, Options, PATIENCE, eventually},
    history::{Gave, Kind, Outcome, Request, Step},
    workload,
};

use crate::harness::conclave;

/// `election_max` by default.
const ELECTION_MAX: Duration = Duration::from_millis(1000);
/// Duration of a cut, long enough for several elections.
const CUT: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(3);

fn results(outcome: &Outcome) -> Option<&Vec<Gave>> {
    match outcome {
        Outcome::Done(answer) => Some(&answer.results),
        _ => None,
    }
}

async fn call(cluster: &Cluster, id: u64, kind: Kind, step: Step) -> Outcome {
    let client = cluster.client_of(id).unwrap();
    workload::call(&client, kind, &Request::of(step), DEADLINE).await
}

/// Writes at a node for as long as the link is cut. Returns the longest time between two acknowledgements.
async fn written_at(cluster: &Cluster, id: u64, values: &mut u64) -> Duration {
    let (begun, mut last) = (Instant::now(), Instant::now());
    let mut longest = Duration::ZERO;
    while begun.elapsed() < CUT {
        *values += 1;
        let outcome = call(cluster, id, Kind::Write, Step::Put("key".into(), *values)).await;
        if let Outcome::Done(_) = outcome {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
    }
    longest.max(last.elapsed())
}

async fn readiness(cluster: &Cluster, id: u64, ready: bool) {
    let client = cluster.client_of(id).unwrap();
    eventually(if ready { "ready" } else { "not ready" }, PATIENCE, async || {
        match client.is_serving().await {
            Ok(serves) if serves == ready => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .unwrap();
}

/// Cuts one link between the leader and a follower in one direction. The other follower receives
/// the leader's messages, so it votes for no other node. The leader keeps its term, and writes are
/// acknowledged without the pause of an election.
async fn leader_continues_to_lead(from_leader: bool) {
    let _turn = cluster::turn();
    let cluster = Cluster::start(Options::new(conclave().get_program()).proxied()).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let (follower, witness) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    let term = cluster.status_of(witness).await.unwrap().term;
    // The first write waits for the members' clocks.
    let mut values = 1;
    let put = call(&cluster, leader, Kind::Write, Step::Put("key".into(), values)).await;
    assert!(matches!(put, Outcome::Done(_)), "{put}");
    let (from, to) = if from_leader { (leader, follower) } else { (follower, leader) };
    let link = cluster.network().unwrap().link(from, to);
    link.cut();
    let longest = written_at(&cluster, leader, &mut values).await;
    assert!(longest < ELECTION_MAX / 2, "no acknowledged write for {longest:?}");
    let status = cluster.status_of(witness).await.unwrap();
    assert_eq!((status.leader, status.term), (leader, term), "the witness follows the same leader");
    if from_leader {
        readiness(&cluster, follower, false).await;
    }
    // The follower gives no response or a current one, never a stale one.
    let read = call(&cluster, follower, Kind::Read, Step::Get("key".into())).await;
    if let Outcome::Done(answer) = &read {
        let newest = call(&cluster, leader, Kind::Read, Step::Get("key".into())).await;
        assert_eq!(results(&newest), Some(&answer.results));
    }

    link.repair();
    cluster.caught_up(&[1, 2, 3], PATIENCE).await.unwrap();
    readiness(&cluster, follower, true).await;
    values += 1;
    let put = call(&cluster, follower, Kind::Write, Step::Put("key".into(), values)).await;
    assert!(matches!(put, Outcome::Done(_)), "{put}");
    let status = cluster.status_of(witness).await.unwrap();
    assert_eq!((status.leader, status.term), (leader, term), "the follower disturbs no leader");
    for id in cluster.ids() {
        cluster.check_running(id).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn follower_that_does_not_hear_its_leader_deposes_no_leader() {
    leader_continues_to_lead(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leader_that_does_not_hear_one_follower_continues_to_lead() {
    leader_continues_to_lead(false).await;
}

/// A leader whose messages reach no follower learns that another node was elected.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_not_heard_is_replaced_and_follows() {
    let _turn = cluster::turn();
    let cluster = Cluster::start(Options::new(conclave().get_program()).proxied()).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let others: Vec<u64> = cluster.ids().filter(|id| *id != leader).collect();
    let mute = || cluster.network().unwrap().out_of(leader);
    mute().for_each(|link| link.cut());
    let begun = Instant::now();
    let successor = cluster.leads(&others).await.unwrap();
    assert!(begun.elapsed() < ELECTION_MAX * 4, "another leads after {:?}", begun.elapsed());
    let put = call(&cluster, successor, Kind::Write, Step::Put("key".into(), 1)).await;
    assert!(matches!(put, Outcome::Done(_)), "{put}");
    readiness(&cluster, leader, false).await;
    // The old leader may learn of the write, and confirms no read that it cannot.
    for kind in [Kind::Read, Kind::LeaseRead] {
        let read = call(&cluster, leader, kind, Step::Get("key".into())).await;
        let Outcome::Done(answer) = &read else { continue };
        let newest = call(&cluster, successor, Kind::Read, Step::Get("key".into())).await;
        assert_eq!(results(&newest), Some(&answer.results));
    }
    mute().for_each(|link| link.repair());
    readiness(&cluster, leader, true).await;
    cluster.caught_up(&[1, 2, 3], PATIENCE).await.unwrap();
}
