//! Replicas agree: the same log gives the same outcomes and the same snapshot bytes, whether a
//! replica applied all of it, was restored in the middle, or replayed it.

use std::sync::Arc;

use conclave_machine::{Component, Engine, Entry, Work};
use conclave_types::{Call, Digest, Outcome};

use crate::support::{Node, Number, add, call, hostile, limits};
use conclave_testing::wat::Wat;

/// Returns a log with all kinds of entries, whose times go back and forth.
fn log() -> Vec<Entry> {
    let methods = ["Panic", "DivideByZero", "Fail", "Recurse"];
    (1..=400u64)
        .map(|index| {
            let call = match index % 20 {
                7 => call(methods[(index / 20) as usize % methods.len()], Number::default()),
                13 => call("Unknown", Number::default()),
                _ => add(index as i64),
            };
            Entry { index, time_ms: 1000 + index * 7 % 100, work: Work::Call(call) }
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
    let entry_source = Arc::clone(&first.entry_source);
    entry_source.install(saved.clone());
    drop(first);
    let mut second = Node::start_from(hostile(), entry_source, Some(saved.state()));
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
    let entry_source = Arc::clone(&node.entry_source);
    drop(node);

    // With the records, the outcomes of trapped entries come from them.
    let mut again = Node::start_from(hostile(), Arc::clone(&entry_source), None);
    assert_eq!(replay(&mut again, &log).await, outcomes);
    assert_eq!(again.snapshot().await, saved);
    let metrics = again.worker.metrics();
    assert_eq!(
        (metrics.promotions.get(), metrics.traps_replayed.get()),
        (0, entry_source.traps().len() as u64)
    );
    drop(again);

    // Without the records, as after a crash that lost them, the entries trap again, with the
    // same messages.
    let recorded = entry_source.traps();
    entry_source.forget_traps();
    let mut again = Node::start_from(hostile(), Arc::clone(&entry_source), None);
    assert_eq!(replay(&mut again, &log).await, outcomes);
    assert_eq!(again.snapshot().await, saved);
    assert_eq!(entry_source.traps(), recorded);
    assert_eq!(entry_source.all().len(), log.len());
}

/// Returns a state machine that answers with its context, and traps on request.
fn mirror() -> Component {
    let wat = Wat {
        apply: "(if (local.get 8) (then unreachable))
            (i64.store (i32.const 700) (local.get 0)) (i64.store (i32.const 708) (local.get 1))
            (i64.store (i32.const 716) (local.get 2))
            (i32.store (i32.const 264) (i32.const 700)) (i32.store (i32.const 268) (i32.const 24)) (i32.const 256)",
        query: "(i64.store (i32.const 700) (local.get 0)) (i64.store (i32.const 708) (local.get 1))
            (i64.store (i32.const 716) (local.get 2)) (i32.store8 (i32.const 512) (i32.const 0))
            (i32.store (i32.const 516) (i32.const 700)) (i32.store (i32.const 520) (i32.const 24)) (i32.const 512)",
        ..Wat::default()
    };
    Component::load(&Engine::new(&limits()).unwrap(), wat.component()).unwrap()
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

#[tokio::test]
async fn time_never_goes_back_and_a_query_sees_that_of_the_last_entry() {
    // The times that leaders stamp, and those that the state machine gets. The third entry traps,
    // but its time counts.
    let stamped = [100, 90, 300, 200, 301];
    let seen = [100, 100, 300, 300, 301];
    let mut node = Node::start_with(mirror());
    let mut seeds = Vec::new();
    for (position, (time_ms, seen)) in stamped.into_iter().zip(seen).enumerate() {
        let request = if position == 2 { b"trap".as_slice() } else { b"" };
        let call = Call { method: "any".into(), request: request.into(), principal: "".into() };
        let index = node.index + 3;
        let entry = Entry { index, time_ms, work: Work::Call(call.clone()) };
        let outcome = node.push_entry(entry).await.await.unwrap();
        let answered = node.worker.query(call, index).await.unwrap();
        let answered = words(&answered.result.unwrap());
        assert_eq!(answered[..2], [index, seen]);
        if let Outcome::Reply(reply) = outcome {
            assert_eq!(words(&reply.response), answered);
        } else {
            assert_eq!(position, 2);
        }
        seeds.push(answered[2]);
    }
    seeds.sort_unstable();
    seeds.dedup();
    assert_eq!(seeds.len(), 5);
}

#[tokio::test]
async fn the_digest_tells_replicas_apart_from_the_first_other_outcome_on() {
    let mut one = Node::start();
    let mut other = Node::start();
    assert_eq!(one.digest().await, Digest::default(), "no entry has been applied yet");
    for value in [1, 2, 3] {
        one.add(value).await;
        other.add(value).await;
    }
    one.push_blank().await;
    other.push_blank().await;
    let agreed = one.digest().await;
    assert_eq!(agreed, other.digest().await);
    assert_eq!(
        one.worker.digest_at(3).await.unwrap(),
        Some(agreed),
        "a blank entry changes nothing"
    );
    assert_ne!(one.worker.digest_at(2).await.unwrap(), Some(agreed));

    one.add(4).await;
    other.add(5).await;
    assert_ne!(one.digest().await, other.digest().await);
    // The same entries from here on, but the digests stay different.
    one.add(0).await;
    other.add(-1).await;
    assert_eq!(one.total().await, other.total().await);
    assert_ne!(one.digest().await, other.digest().await);
    // Until one continues from the state of the other, whose past is unknown.
    let saved = one.snapshot().await;
    other.worker.restore(saved.state()).await.unwrap();
    assert_eq!(one.digest().await, other.digest().await);
    assert_eq!(other.worker.digest_at(other.index - 1).await.unwrap(), None);
    assert_eq!(one.add(1).await, other.add(1).await);
    assert_eq!(one.digest().await, other.digest().await);
}

/// A snapshot requests the digest at an index whose entries may still wait for the disk.
#[tokio::test]
async fn digest_of_an_entry_that_is_still_to_come_is_waited_for() {
    let mut node = Node::start();
    node.add(1).await;
    let worker = node.worker.clone();
    let later = worker.digest_at(3);
    let mut later = std::pin::pin!(later);
    assert!(futures::poll!(&mut later).is_pending());
    assert_eq!(node.add(1).await, 2);
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    assert!(futures::poll!(&mut later).is_pending(), "the primary stands before it");
    node.push_blank().await;
    node.add(1).await;
    let third = later.await.unwrap().unwrap();
    assert_eq!(node.worker.digest_at(2).await.unwrap(), Some(third), "a blank entry leaves it");
    assert_ne!(node.digest().await, third);
}

/// A node was upgraded to another algorithm of the digest, so its snapshot's digest is meaningless.
#[tokio::test]
async fn a_state_without_a_digest_has_none_until_one_begins() {
    let mut lived = Node::start();
    let mut restored = Node::start();
    lived.add(1).await;
    restored.add(1).await;
    let mut saved = lived.snapshot().await;
    saved.digest = None;
    restored.worker.restore(saved.state()).await.unwrap();
    assert!(lived.worker.keeps_digest() && !restored.worker.keeps_digest());
    for node in [&mut lived, &mut restored] {
        node.add(2).await;
    }
    assert_eq!(restored.worker.digest_at(restored.index).await.unwrap(), None);
    for node in [&mut lived, &mut restored] {
        node.push_blank().await;
        node.worker.begin_digest(node.index, Digest([7; 32])).await.unwrap();
        assert_eq!((node.digest().await, node.worker.keeps_digest()), (Digest([7; 32]), true));
        assert_eq!(node.worker.digest_at(node.index - 1).await.unwrap(), None);
        node.add(3).await;
    }
    assert_ne!(lived.digest().await, Digest([7; 32]));
    assert_eq!(lived.digest().await, restored.digest().await);
}
