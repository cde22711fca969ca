//! Upgrades while nodes are down, come back, or die.

use std::{fs, time::Duration};

use conclave_client::{Client, Consistency, Permissions};
use conclave_types::ComponentId;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc::unbounded_channel;

use super::{load::Load, machines::*};
use crate::harness::{Cluster, eventually};
use conclave_testing::{counters::version, wat::Wat};

/// A node that is down could come back without the component. The activation is refused, and the
/// error names the node.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_down_keeps_a_component_from_being_activated() {
    let (mut cluster, _dir) = cluster_of(&first(), &[]).await;
    let client = cluster.client();
    let initial_component = active(&client).await;
    let away = cluster.leader().await % 3 + 1;
    cluster.kill(away);
    // A majority is enough for a push.
    let component = push(&client, second().component()).await.unwrap().id;
    count(&client).await.unwrap();
    let refused = eventually("the others are ready", async || {
        let refused = client.activate_component(&component, false).await.unwrap_err();
        let text = refused.message().to_owned();
        if text.contains("rehearsed") || text.contains("arrive") { Err(text) } else { Ok(refused) }
    })
    .await;
    assert_eq!(refused.code_name(), "FAILED_PRECONDITION");
    assert!(refused.message().contains(&format!("node {away}: not reached")), "{refused}");
    assert_eq!(active(&client).await, initial_component);
    let rehearsed = client.rehearse_component(&component).await.unwrap();
    assert!(!rehearsed.ready);

    cluster.start_node(away);
    ready(&client, &component).await;
    client.activate_component(&component, false).await.unwrap();
    count(&client).await.unwrap();
    assert_eq!(all_agree(&cluster, &component).await, 2);
}

/// An operator can exclude the node explicitly. It activates the component when it reaches the
/// entry in its log.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_down_can_be_left_out_of_an_activation() {
    let (mut cluster, _dir) = cluster_of(&first(), &[]).await;
    let client = cluster.client();
    let initial_component = active(&client).await;
    let away = cluster.leader().await % 3 + 1;
    cluster.kill(away);
    let component = push(&client, second().component()).await.unwrap().id;
    count(&client).await.unwrap();
    let without = |nodes: &[u64]| Permissions { without: nodes.to_vec(), ..Permissions::default() };
    eventually("the component is activated", async || {
        let activated = client.activate_component_with(&component, &without(&[away])).await;
        activated.map(drop).map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(active(&client).await, component);
    count(&client).await.unwrap();
    // A rollback is an activation too.
    eventually("the first component is active again", async || {
        let rolled_back = client.rollback_component_with(&component, &without(&[away])).await;
        rolled_back.map(drop).map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(active(&client).await, initial_component);
    count(&client).await.unwrap();
    // Too few voters would be left.
    let others: Vec<u64> = (1..=3).filter(|id| *id != away).take(1).chain([away]).collect();
    let refused = client.activate_component_with(&component, &without(&others)).await.unwrap_err();
    assert!(refused.message().contains("1 of 3 voters are left"), "{refused}");
    cluster.start_node(away);
    cluster.serving().await;
    assert_eq!(all_agree(&cluster, &initial_component).await, 3);
}

/// Activates these components in turn until a node was ready and then paused before it had applied
/// the activation. Only so can it miss an activation. The node stays paused.
async fn activated_without(
    cluster: &Cluster,
    client: &Client,
    away: u64,
    components: [&str; 2],
) -> String {
    let signal = |signal| {
        let pid = Pid::from_raw(cluster.pid(away) as i32).unwrap();
        kill_process(pid, signal).unwrap();
    };
    for round in 0..40_usize {
        let component = components[round % 2];
        if active(client).await == component {
            continue;
        }
        ready(client, component).await;
        let activating = tokio::spawn({
            let (client, component) = (client.clone(), component.to_owned());
            async move { client.activate_component(&component, false).await }
        });
        tokio::time::sleep(Duration::from_micros(500 * (1 + round as u64 / 2 % 12))).await;
        signal(Signal::STOP);
        // Refused if the node was paused before its readiness was checked.
        let activated = activating.await.unwrap();
        let log = fs::read_to_string(&cluster.node(away).log).unwrap();
        match activated {
            Ok(activated) if !log.contains(&format!("is active index={} ", activated.index)) => {
                return component.to_owned();
            }
            _ => signal(Signal::CONT),
        }
    }
    panic!("the node was never away at the right time");
}

/// A ready node is lost before the activation reaches it. It comes back with the others' log, or
/// with their snapshot alone.
async fn comes_back(flags: &[&str], calls: usize) {
    let (mut cluster, _dir) = cluster_of(&first(), flags).await;
    let client = cluster.client();
    let initial_component = active(&client).await;
    count(&client).await.unwrap();
    let second = push_ready(&client, padded(&second().component(), 2 << 20)).await;
    let away = cluster.leader().await % 3 + 1;
    let component = activated_without(&cluster, &client, away, [&second, &initial_component]).await;
    cluster.kill(away);
    for _ in 0..calls {
        count(&client).await.unwrap();
    }
    cluster.start_node(away);
    assert_eq!(all_agree(&cluster, &component).await, calls as i64 + 1);
    // The node takes part in the next upgrade.
    let next = push_ready(&client, version("third", 1, 2, &[1, 2]).component()).await;
    client.activate_component(&next, false).await.unwrap();
    count(&client).await.unwrap();
    assert_eq!(all_agree(&cluster, &next).await, calls as i64 + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_comes_back_by_the_log() {
    comes_back(&["--snapshot-entries=100000", "--keep-entries=100000"], 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_comes_back_by_a_snapshot() {
    comes_back(&["--snapshot-entries=100", "--keep-entries=0"], 400).await;
}

/// Kills the leader in the middle of each step, with clients at work. Each step completes, or was
/// refused and can be repeated.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_may_die_in_each_phase() {
    let (mut cluster, _dir) = cluster_of(&first(), &["--snapshot-entries=3000"]).await;
    let client = cluster.client();
    let load = Load::start(8, || cluster.client());
    load.runs(200).await;

    // During the push: the client restarts the push with the next leader, which has no part of it.
    let component = padded(&second().component(), 24 << 20);
    let half = component.len() as u64 / 2;
    let (sent, mut progress) = unbounded_channel();
    let died = cluster.leader().await;
    let pushing = tokio::spawn({
        let client = client.clone();
        let id = ComponentId::of(&component).0;
        async move { client.push_component(id, component, |bytes| _ = sent.send(bytes)).await }
    });
    while progress.recv().await.expect("it is being pushed") < half {}
    cluster.kill(died);
    let component = pushing.await.unwrap().unwrap().id;
    let again = std::iter::from_fn(|| progress.try_recv().ok()).any(|bytes| bytes < half);
    assert!(again, "the leader died when the component was in the log already");
    cluster.start_node(died);
    load.runs(200).await;

    // During the rehearsal.
    let rehearsing = tokio::spawn({
        let (client, component) = (client.clone(), component.clone());
        async move { client.rehearse_component(&component).await }
    });
    let died = kill_leader(&mut cluster).await;
    let rehearsed = rehearsing.await.unwrap();
    cluster.start_node(died);
    eprintln!("rehearsed while the leader died: {:?}", rehearsed.map(|answer| answer.ready));
    ready(&client, &component).await;
    load.runs(200).await;

    // During the activation: immediately, and a little later.
    let initial_component = active(&client).await;
    for (round, target) in
        [&component, &initial_component, &component, &initial_component, &component]
            .into_iter()
            .enumerate()
    {
        if active(&client).await != *target {
            ready(&client, target).await;
        }
        let activating = tokio::spawn({
            let (client, target) = (client.clone(), target.clone());
            async move { client.activate_component(&target, true).await }
        });
        tokio::time::sleep(Duration::from_millis(4 * round as u64)).await;
        let died = kill_leader(&mut cluster).await;
        let activated = activating.await.unwrap().map(|activated| activated.index);
        eprintln!("activated while the leader died: {activated:?}");
        if let Err(error) = &activated {
            let expected = ["FAILED_PRECONDITION", "UNAVAILABLE", "UNKNOWN", "DEADLINE_EXCEEDED"];
            assert!(expected.contains(&error.code_name()), "{error}");
        }
        cluster.start_node(died);
        load.runs(200).await;
        if active(&client).await != *target {
            ready(&client, target).await;
            client.activate_component(target, true).await.unwrap();
        }
    }
    let counts = load.stop().await;
    let total = all_agree(&cluster, &component).await;
    let possible = counts.acknowledged..=counts.acknowledged + counts.unknown;
    assert!(possible.contains(&total), "{total} of {counts:?}");
    assert_eq!(counted(&client, Consistency::Linearizable).await, total);
}

async fn kill_leader(cluster: &mut Cluster) -> u64 {
    let leader = cluster.leader().await;
    cluster.kill(leader);
    leader
}

/// A component that accepts only small numbers. It is ready while the number is small, and
/// cannot continue once it is not. Every node reports that, and the old component stays active
/// on every node.
#[tokio::test(flavor = "multi_thread")]
async fn a_component_that_traps_over_the_state_is_activated_nowhere() {
    let picky = second();
    let finish = format!(
        "(if (i64.gt_s (i64.load (i32.const 4000)) (i64.const 50)) (then unreachable)) {}",
        picky.finish
    );
    let picky = Wat { name: "picky", finish: finish.leak(), ..picky };
    let (mut cluster, _dir) = cluster_of(&first(), &[]).await;
    let client = cluster.client();
    let initial_component = active(&client).await;
    for _ in 0..10 {
        count(&client).await.unwrap();
    }
    let component = push_ready(&client, picky.component()).await;
    for _ in 0..50 {
        count(&client).await.unwrap();
    }
    let refused = client.activate_component(&component, false).await.unwrap_err();
    assert_eq!(refused.code_name(), "FAILED_PRECONDITION", "{refused}");
    count(&client).await.unwrap();
    assert_eq!(all_agree(&cluster, &initial_component).await, 61);
    for id in 1..=3 {
        let log = fs::read_to_string(&cluster.node(id).log).unwrap();
        assert!(!log.contains("a component is active"), "node {id}");
    }
    // The next rehearsal detects and reports it before an activation is proposed.
    let rehearsed = client.rehearse_component(&component).await.unwrap();
    assert!(!rehearsed.ready, "{rehearsed:?}");
    let refused = client.activate_component(&component, false).await.unwrap_err();
    assert!(refused.message().contains("not every voter is ready"), "{refused}");
    // A replay of the log has the same result.
    for id in 1..=3 {
        cluster.kill(id);
        cluster.start_node(id);
        cluster.serving().await;
    }
    count(&client).await.unwrap();
    assert_eq!(all_agree(&cluster, &initial_component).await, 62);
}
