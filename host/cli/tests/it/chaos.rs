//! Clients under faults: a fixed set of short schedules, checked for linearizability and the
//! other invariants.
//!
//! `cargo xtask chaos` runs random schedules. A schedule that has found a bug belongs here, with
//! its story in `host/testing/README.md`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use conclave_testing::{
    chaos::{self, Happened, Setup},
    cluster::{self, Cluster, Options},
    history::{Kind, Outcome, Recorder, Request, Step},
    invariants,
    late_answers::{self, Plan},
    linearizability, timeline, workload,
};

use crate::harness::conclave;

/// Runs a schedule. A failure names the file with its timeline.
async fn holds(name: &str, seed: u64, schedule: &str) -> Vec<Happened> {
    let _turn = cluster::turn();
    let mut setup = Setup::new(conclave().get_program());
    setup.replays = seed.is_multiple_of(2);
    let run = chaos::run(&setup, &schedule.parse().unwrap(), seed).await.unwrap();
    eprintln!("{name}: {}", run.figures);
    if !run.violations.is_empty() {
        let path = std::env::temp_dir().join(format!("conclave-chaos-{name}.html"));
        std::fs::write(&path, timeline::page(&run)).unwrap();
        panic!("{}\nschedule:\n{schedule}\ntimeline: {}", run.violations, path.display());
    }
    assert!(run.figures.answered > 200, "too few answers to mean much: {}", run.figures);
    run.faults
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_stay_linearizable_while_nodes_are_paused_and_killed() {
    let schedule = "nodes 3 length 9000\n\
         500+1100 pause leader\n\
         2500+900 pause follower-1\n\
         4200+300 kill leader\n\
         6200+500 stop leader\n\
         7500+700 trap";
    holds("processes", 2, schedule).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_stay_linearizable_while_links_fail() {
    let schedule = "nodes 3 length 9000 snapshots\n\
         500+1500 isolate leader\n\
         2800+1000 mute leader\n\
         4500+1000 hold-inbound leader\n\
         6300+800 cut-one-way leader follower-1\n\
         7500+900 delay-all 30";
    holds("links", 3, schedule).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_stay_linearizable_with_five_nodes() {
    let schedule = "nodes 5 length 6000\n\
         500+1200 isolate leader\n\
         700+900 pause follower-2\n\
         2600+300 kill-all\n\
         4500+700 refuse leader";
    holds("five", 4, schedule).await;
}

/// A diverged node is detected, repaired and serves again, even if commands trap meanwhile and the
/// leader is killed.
#[tokio::test(flavor = "multi_thread")]
async fn answers_stay_linearizable_while_a_node_diverges_and_is_repaired() {
    let schedule = "nodes 3 length 12000 snapshots\n\
         300+6000 diverge follower-1\n\
         2500+800 trap\n\
         8000+300 kill leader";
    let faults = holds("diverged", 2, schedule).await;
    assert!(faults[0].happened, "{faults:?}");
}

/// Regression: reads relied on openraft's clock of acknowledgements. It credits a follower with a
/// response to a request that the follower has not received
/// (`docs/upstream/openraft-drain-acked.md`). 11 to 16 of the 16 reads of each round were stale,
/// including lease reads.
#[tokio::test(flavor = "multi_thread")]
async fn late_answers_of_followers_confirm_no_reads() {
    let _turn = cluster::turn();
    let cluster = Cluster::start(Options::new(conclave().get_program()).proxied()).await.unwrap();
    let (cluster, all) = (Arc::new(cluster), [1, 2, 3]);
    for (paused, between_ms) in [(true, 3), (false, 3), (true, 10), (false, 10)] {
        let recorder = Arc::new(Recorder::default());
        let plan = Plan { paused, between: Duration::from_millis(between_ms) };
        let (old, new) = late_answers::happen(&cluster, &recorder, plan).await.unwrap();
        assert_ne!(old, new);
        let history = recorder.operations();
        let violations = invariants::check_answers(&history);
        assert!(violations.is_empty(), "{plan:?}: {violations}");
        let violations = linearizability::check(&history).violations;
        assert!(violations.is_empty(), "{plan:?}: {violations:?}");
        let answered = |kind| {
            let reads = history.iter().filter(|operation| operation.kind == kind);
            reads.filter(|read| read.answer().is_some()).count()
        };
        assert!(answered(Kind::Read) > 10 && answered(Kind::LeaseRead) > 0, "{history:?}");
        cluster.caught_up(&all, cluster::PATIENCE).await.unwrap();
    }
}

/// Checks that the proxies have the effect of their names: otherwise the schedules above
/// test nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_link_is_silent_and_a_held_link_delivers_late() {
    let _turn = cluster::turn();
    let cluster = Cluster::start(Options::new(conclave().get_program()).proxied()).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let network = cluster.network().unwrap();
    for link in network.around(leader) {
        assert!(link.given() > 0, "each link carries something");
    }
    let put = async |id: u64, value: u64| {
        let client = cluster.client_of(id).unwrap();
        let request = Request::of(Step::Put("key".into(), value));
        workload::call(&client, Kind::Write, &request, Duration::from_millis(1500)).await
    };
    assert!(matches!(put(leader, 1).await, Outcome::Done(_)));

    // No message reaches the leader any more, so it commits nothing, and the others elect a
    // new leader.
    network.into(leader).for_each(|link| link.cut());
    let given: u64 = network.into(leader).map(|link| link.given()).sum();
    assert!(!matches!(put(leader, 2).await, Outcome::Done(_)));
    let others: Vec<u64> = cluster.ids().filter(|id| *id != leader).collect();
    let successor = cluster.leads(&others).await.unwrap();
    assert!(matches!(put(successor, 3).await, Outcome::Done(_)));
    assert_eq!(network.into(leader).map(|link| link.given()).sum::<u64>(), given);
    network.repair();
    let all: Vec<u64> = cluster.ids().collect();
    cluster.caught_up(&all, cluster::PATIENCE).await.unwrap();

    // The messages that a link holds arrive later.
    let leader = cluster.leader().await.unwrap();
    let follower = leader % 3 + 1;
    let link = network.link(leader, follower);
    link.hold();
    assert!(matches!(put(leader, 4).await, Outcome::Done(_)), "the other follower is enough");
    assert!(link.waiting() > 0);
    link.repair();
    cluster.caught_up(&all, cluster::PATIENCE).await.unwrap();
    cluster::eventually("nothing is held any more", cluster::PATIENCE, async || {
        match link.waiting() {
            0 => Ok(()),
            bytes => Err(format!("{bytes} bytes")),
        }
    })
    .await
    .unwrap();

    // A paused node is silent but alive. It follows when it is resumed.
    cluster.pause(leader).unwrap();
    assert!(cluster.status_of(leader).await.is_err());
    let others: Vec<u64> = cluster.ids().filter(|id| *id != leader).collect();
    cluster.leads(&others).await.unwrap();
    cluster.resume(leader).unwrap();
    cluster.caught_up(&all, cluster::PATIENCE).await.unwrap();
    cluster.check_running(leader).unwrap();
}

/// A leader sends read confirmations to as many voters as it needs, and to the others if those do
/// not answer. One of the two followers is the first choice.
#[tokio::test(flavor = "multi_thread")]
async fn reads_do_not_wait_for_a_paused_follower() {
    let _turn = cluster::turn();
    let cluster = Cluster::start(Options::new(conclave().get_program())).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let client = cluster.client_of(leader).unwrap();
    let get = async || {
        let request = Request::of(Step::Get("key".into()));
        workload::call(&client, Kind::Read, &request, Duration::from_secs(5)).await
    };
    assert!(matches!(get().await, Outcome::Done(_)));
    for follower in cluster.ids().filter(|id| *id != leader) {
        cluster.pause(follower).unwrap();
        let begun = Instant::now();
        let answered = get().await;
        let took = begun.elapsed();
        cluster.resume(follower).unwrap();
        assert!(matches!(answered, Outcome::Done(_)), "node {follower} is paused: {answered:?}");
        assert!(took < Duration::from_millis(500), "node {follower} is paused: {took:?}");
        cluster.caught_up(&[follower], cluster::PATIENCE).await.unwrap();
    }
}
