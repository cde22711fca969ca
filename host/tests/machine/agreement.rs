//! Replicas agree: the same log gives the same outcomes and the same snapshot bytes, whether it was
//! lived through, restored in the middle, or replayed.

use std::sync::Arc;

use conclave::{machine::Entry, types::Outcome};

use crate::support::{Node, Number, add, call, hostile};

/// A log with everything in it, and times that go back and forth.
fn log() -> Vec<Entry> {
    let methods = ["Panic", "DivideByZero", "Fail", "Recurse"];
    (1..=400u64)
        .map(|index| {
            let call = match index % 20 {
                7 => call(methods[(index / 20) as usize % methods.len()], Number::default()),
                13 => call("Unknown", Number::default()),
                _ => add(index as i64),
            };
            Entry { index, time_ms: 1000 + index * 7 % 100, call }
        })
        .collect()
}

async fn replay(node: &mut Node, log: &[Entry]) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for entry in log {
        outcomes.push(node.push_entry(entry.clone()).await);
    }
    let mut finished = Vec::new();
    for outcome in outcomes {
        finished.push(outcome.await.unwrap());
    }
    finished
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_restarts_in_the_middle_agrees_with_one_that_does_not() {
    let log = log();
    let mut steady = Node::start();
    let steady_outcomes = replay(&mut steady, &log).await;
    assert!(steady_outcomes.iter().any(|outcome| matches!(outcome, Outcome::Trap(_))));
    assert!(steady_outcomes.iter().any(|outcome| matches!(outcome, Outcome::Failure(_))));

    let mut first = Node::start();
    let mut outcomes = replay(&mut first, &log[..170]).await;
    let saved = first.snapshot().await;
    let history = Arc::clone(&first.history);
    history.install(saved.clone());
    drop(first);
    let mut second = Node::start_from(hostile(), history, Some(saved.state()));
    outcomes.extend(replay(&mut second, &log[170..]).await);

    assert_eq!(outcomes, steady_outcomes);
    assert_eq!(second.snapshot().await, steady.snapshot().await);
    assert_eq!(second.total().await, steady.total().await);
}

#[tokio::test]
async fn a_history_with_recorded_traps_replays_to_the_same_state() {
    let log = log();
    let mut node = Node::start();
    let outcomes = replay(&mut node, &log).await;
    let saved = node.snapshot().await;
    let history = Arc::clone(&node.history);
    drop(node);

    // With the records, trapped entries are answered from them.
    let mut again = Node::start_from(hostile(), Arc::clone(&history), None);
    assert_eq!(replay(&mut again, &log).await, outcomes);
    assert_eq!(again.snapshot().await, saved);
    let stats = again.worker.stats();
    assert_eq!((stats.promotions, stats.traps_replayed), (0, history.traps().len() as u64));
    drop(again);

    // Without, as after a crash that lost them, they trap again, with the same words.
    let recorded = history.traps();
    history.forget_traps();
    let mut again = Node::start_from(hostile(), Arc::clone(&history), None);
    assert_eq!(replay(&mut again, &log).await, outcomes);
    assert_eq!(again.snapshot().await, saved);
    assert_eq!(history.traps(), recorded);
    assert_eq!(history.all().len(), log.len());
}
