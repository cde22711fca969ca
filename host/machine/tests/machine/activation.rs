//! Another component continues with the state from one entry on: in primary and standby, at the
//! same index on every replica and in every replay.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use conclave_machine::{Component, Entry, SnapshotError, Work};
use conclave_types::Outcome;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::{
    entry_source::{MemorySource, Saved},
    support::{Node, read},
    versions::{
        HUNDRED, ONE, TEN, count, counted, is_activated, load, seen, seen_at, trap, version,
    },
};

fn saved_number(saved: &Saved) -> i64 {
    i64::from_le_bytes(saved.bytes.clone().try_into().unwrap())
}

/// Returns a node that has counted to three.
async fn at_three() -> Node {
    let mut node = Node::start_with(ONE.clone());
    for number in 1..=3 {
        assert_eq!(counted(&node.apply(count()).await), number);
    }
    node
}

#[tokio::test]
async fn a_component_goes_on_with_the_state_and_everybody_learns_of_it() {
    let mut node = at_three().await;
    let mut components = node.worker.components();
    let wake_at = node.worker.wake_at();
    assert_eq!(seen(&node).await, (3, 1));
    assert!(!components.has_changed().unwrap());

    let activated = node.activate(&TEN).await;
    assert!(is_activated(&activated), "{activated:?}");
    // Once the outcome is reported, the new component is visible.
    assert_eq!(node.worker.component(), *TEN);
    assert!(components.has_changed().unwrap());
    assert_eq!(*components.borrow_and_update(), *TEN);
    // The new component has not had a call in which it could request a wake-up time.
    assert_eq!(*wake_at.borrow(), Some(0));

    assert_eq!(seen(&node).await, (3, 10));
    assert_eq!(counted(&node.apply(count()).await), 13);
    assert_eq!(*wake_at.borrow(), None);
    assert_eq!(seen(&node).await, (13, 10));
    let metrics = node.worker.metrics();
    assert_eq!((metrics.activations.get(), metrics.activations_failed.get()), (1, 0));
    assert_eq!(
        (metrics.promotions.get(), metrics.standby_builds.get(), node.worker.fatal_error()),
        (0, 0, None)
    );
}

#[tokio::test]
async fn a_component_with_another_format_goes_on_and_writes_it() {
    let mut node = at_three().await;
    let before = node.snapshot().await;
    assert_eq!((&before.component, before.state_version, saved_number(&before)), (&*ONE, 1, 3));
    assert!(is_activated(&node.activate(&HUNDRED).await));
    assert_eq!(counted(&node.apply(count()).await), 103);
    let after = node.snapshot().await;
    assert_eq!((&after.component, after.state_version, saved_number(&after)), (&*HUNDRED, 2, 1103));

    // A node that receives that state continues with its component.
    let mut other = at_three().await;
    let later = Saved { index: 100, ..after };
    other.entry_source.install(later.clone());
    other.worker.restore(later.state()).await.unwrap();
    other.index = 100;
    assert_eq!(other.worker.component(), *HUNDRED);
    assert_eq!(seen(&other).await, (103, 100));
    assert_eq!(counted(&other.apply(count()).await), 203);
    // A standby that is rebuilt from it does so too.
    other.worker.query(trap(), 0).await.unwrap_err();
    assert_eq!(seen(&other).await, (203, 100));
}

#[tokio::test]
async fn the_component_before_may_be_activated_again() {
    let mut node = at_three().await;
    for round in 1..=5 {
        assert!(is_activated(&node.activate(&TEN).await));
        assert_eq!(counted(&node.apply(count()).await), 3 + 11 * round - 1);
        assert!(is_activated(&node.activate(&ONE).await));
        assert_eq!(counted(&node.apply(count()).await), 3 + 11 * round);
    }
    // Back over a change of the format, with a component that supports both formats.
    let back = load(&version("back", 1, 1, &[1, 2]));
    assert!(is_activated(&node.activate(&HUNDRED).await));
    assert!(is_activated(&node.activate(&back).await));
    assert_eq!(counted(&node.apply(count()).await), 59);
    assert_eq!(seen(&node).await, (59, 1));
    // Then the same component again.
    assert!(is_activated(&node.activate(&back).await));
    assert_eq!(seen(&node).await, (59, 1));
}

#[tokio::test]
async fn two_activations_in_one_batch_and_calls_between_them() {
    let mut node = at_three().await;
    let work = [
        Work::Activate(TEN.clone()),
        Work::Call(count()),
        Work::Activate(HUNDRED.clone()),
        Work::Activate(HUNDRED.clone()),
        Work::Call(count()),
    ];
    let mut batch = Vec::new();
    let mut outcomes = Vec::new();
    for (index, work) in (4..).zip(work) {
        let entry = Entry { index, time_ms: index, work };
        node.entry_source.append(entry.clone());
        let (send, receive) = tokio::sync::oneshot::channel();
        let done: conclave_machine::Done = Box::new(move |outcome| _ = send.send(outcome));
        batch.push((index, Some(entry), Some(done)));
        outcomes.push(receive);
        node.index = index;
    }
    node.worker.apply(batch).await.unwrap();
    assert_eq!(seen(&node).await, (113, 100));
    let mut finished = Vec::new();
    for outcome in outcomes {
        finished.push(outcome.await.unwrap());
    }
    assert_eq!((counted(&finished[1]), counted(&finished[4])), (13, 113));
    assert!([0, 2, 3].iter().all(|activation| is_activated(&finished[*activation])));
}

/// Every answer comes from the component and the state at the index that it names, and no answer is
/// older than requested.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_are_answered_by_the_component_of_their_index() {
    let mut node = Node::start_with(ONE.clone());
    let mut at_index = BTreeMap::from([(0, (0, 1))]);
    let (mut number, mut step) = (0, 1);
    let mut queries = Vec::new();
    for round in 0..40 {
        for _ in 0..50 {
            drop(node.push(count()).await);
            number += step;
            at_index.insert(node.index, (number, step));
            let (worker, index_min) = (node.worker.clone(), node.index);
            queries.push(tokio::spawn(async move {
                (index_min, worker.query(count(), index_min).await.unwrap())
            }));
        }
        let (component, next) = if round % 2 == 0 { (&*TEN, 10) } else { (&*ONE, 1) };
        drop(node.push_component(component).await);
        step = next;
        at_index.insert(node.index, (number, step));
        assert_eq!(seen_at(&node, node.index).await, (node.index, number, step));
        let (index, number, step) = seen_at(&node, 0).await;
        assert_eq!(at_index[&index], (number, step));
    }
    for query in queries {
        let (index_min, answered) = query.await.unwrap();
        let words = answered.result.unwrap();
        let word = |at: usize| i64::from_le_bytes(words[at..at + 8].try_into().unwrap());
        assert!(answered.index >= index_min);
        assert_eq!(at_index[&answered.index], (word(0), word(8)), "at {}", answered.index);
    }
}

#[tokio::test]
async fn an_entry_that_traps_right_before_or_after_an_activation_is_rolled_back() {
    let mut node = at_three().await;
    let outcomes = [
        node.push(trap()).await,
        node.push_component(&TEN).await,
        node.push(trap()).await,
        node.push(count()).await,
        node.push_component(&HUNDRED).await,
        node.push(trap()).await,
        node.push(trap()).await,
        node.push(count()).await,
    ];
    let mut finished = Vec::new();
    for outcome in outcomes {
        finished.push(outcome.await.unwrap());
    }
    for trapped in [0, 2, 5, 6] {
        assert!(matches!(&finished[trapped], Outcome::Trap(_)), "{:?}", finished[trapped]);
    }
    assert!(is_activated(&finished[1]) && is_activated(&finished[4]));
    assert_eq!((counted(&finished[3]), counted(&finished[7])), (13, 113));
    assert_eq!(seen(&node).await, (113, 100));
    assert_eq!(node.worker.metrics().promotions.get(), 4);
    assert_eq!(node.worker.component(), *HUNDRED);
}

#[tokio::test]
async fn a_reader_is_rebuilt_across_activations() {
    let mut node = at_three().await;
    // A standby rebuilt from the beginning of the log.
    assert!(is_activated(&node.activate(&TEN).await));
    assert_eq!(counted(&node.apply(count()).await), 13);
    node.worker.query(trap(), 0).await.unwrap_err();
    assert_eq!(seen(&node).await, (13, 10));
    // From a snapshot before the activation, written by the previous component.
    node.entry_source.install(node.snapshot().await);
    assert!(is_activated(&node.activate(&HUNDRED).await));
    assert_eq!(counted(&node.apply(count()).await), 113);
    node.worker.query(trap(), 0).await.unwrap_err();
    assert_eq!(seen(&node).await, (113, 100));
    // From a snapshot after the activation.
    node.entry_source.install(node.snapshot().await);
    node.worker.query(trap(), 0).await.unwrap_err();
    assert_eq!(seen(&node).await, (113, 100));
    assert_eq!(node.entry_source.snapshot_reads.load(Ordering::Relaxed), 3);
    assert_eq!((node.worker.metrics().standby_builds.get(), node.worker.fatal_error()), (3, None));
    // Such a standby becomes the primary.
    assert!(matches!(node.apply(trap()).await, Outcome::Trap(_)));
    assert_eq!(counted(&node.apply(count()).await), 213);
}

/// A snapshot in progress is lost with its instance, and the next one is complete.
#[tokio::test]
async fn a_snapshot_under_way_does_not_survive_and_the_next_one_is_the_new_components() {
    let mut node = at_three().await;
    let stream = node.worker.snapshot(node.index).await.unwrap();
    let snapshot = node.worker.snapshot(node.index);
    assert!(is_activated(&node.activate(&HUNDRED).await));
    assert_eq!(seen(&node).await, (3, 100));
    assert_eq!(stream.component(), &*ONE);
    assert_eq!(read(stream).await.unwrap_err(), SnapshotError::Lost);
    // A snapshot requested earlier either has the earlier index or is lost.
    match read(snapshot.await.unwrap()).await {
        Ok(saved) => assert_eq!((saved.component, saved.index), (ONE.clone(), 3)),
        Err(error) => assert_eq!(error, SnapshotError::Lost),
    }
    let saved = node.snapshot().await;
    assert_eq!(
        (saved.component.clone(), saved.index, saved_number(&saved)),
        (HUNDRED.clone(), 4, 1003)
    );
}

/// Restarts as a node does: from the newest snapshot, with its component, and the log after it.
#[tokio::test]
async fn a_worker_restarts_with_activations_behind_and_before_its_snapshot() {
    let mut first = at_three().await;
    let initial = first.snapshot().await;
    assert!(is_activated(&first.activate(&TEN).await));
    assert_eq!(counted(&first.apply(count()).await), 13);
    let between = first.snapshot().await;
    assert!(is_activated(&first.activate(&HUNDRED).await));
    assert_eq!(counted(&first.apply(count()).await), 113);
    let last = first.snapshot().await;
    let log = first.entry_source.all();
    drop(first);

    for at in [None, Some(initial), Some(between), Some(last.clone())] {
        let entry_source = Arc::new(MemorySource::new());
        if let Some(saved) = &at {
            entry_source.install(saved.clone());
        }
        let started_with = at.as_ref().map_or(&*ONE, |saved| &saved.component).clone();
        let mut node = Node::start_from(ONE.clone(), entry_source, at.as_ref().map(Saved::state));
        assert_eq!(node.worker.component(), started_with);
        let from = node.index;
        for entry in log.iter().filter(|entry| entry.index > from) {
            assert!(matches!(node.push_entry(entry.clone()).await.await, Ok(Outcome::Reply(_))));
        }
        assert_eq!(node.worker.component(), *HUNDRED);
        assert_eq!(node.snapshot().await, last);
        assert_eq!(seen(&node).await, (113, 100));
    }
}

/// Compares a long random history with a model. A failure prints its seed; `CONCLAVE_SEED=<seed>`
/// runs it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_life_with_activations_agrees_with_a_model() {
    let seed = std::env::var("CONCLAVE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = seed
        .map_or_else(|| (0..6).chain([rand::random()]).collect::<Vec<u64>>(), |seed| vec![seed]);
    for seed in seeds {
        eprintln!("CONCLAVE_SEED={seed}");
        live(seed).await;
    }
}

async fn live(seed: u64) {
    let back = load(&version("back", 7, 1, &[1, 2]));
    let stubborn = load(&conclave_testing::wat::Wat {
        finish: crate::versions::FAILS,
        ..version("stubborn", 1_000_000, 1, &[1, 2])
    });
    // For each component: the state versions that it restores, its own version, and its step. The
    // last one accepts no state.
    let components: [(&Component, &[u32], u32, i64); 5] = [
        (&ONE, &[1], 1, 1),
        (&TEN, &[1], 1, 10),
        (&HUNDRED, &[1, 2], 2, 100),
        (&back, &[1, 2], 1, 7),
        (&stubborn, &[], 1, 1_000_000),
    ];
    let mut random = StdRng::seed_from_u64(seed);
    let mut node = Node::start_with(ONE.clone());
    let (mut number, mut active) = (0, 0);
    // The expected outcomes: the number of a reply, whether an activation succeeds, or a trap.
    let mut pending = Vec::new();
    for _ in 0..500 {
        match random.random_range(0..100) {
            0..50 => {
                number += components[active].3;
                pending.push((node.push(count()).await, Expected::Number(number)));
            }
            50..55 => node.push_blank().await,
            55..62 => pending.push((node.push(trap()).await, Expected::Trap)),
            62..76 => {
                let next = random.random_range(0..components.len());
                let activated = components[next].1.contains(&components[active].2);
                let outcome = node.push_component(components[next].0).await;
                pending.push((outcome, Expected::Activated(activated)));
                if activated {
                    active = next;
                }
            }
            76..80 => assert!(node.worker.query(trap(), 0).await.is_err()),
            80..88 => assert_eq!(seen(&node).await, (number, components[active].3)),
            88..94 => {
                let index = node.index;
                let snapshot = node.worker.snapshot(index);
                if let Ok(stream) = snapshot.await
                    && let Ok(saved) = read(stream).await
                {
                    assert_eq!((&saved.component, saved.index), (components[active].0, index));
                    node.entry_source.install(saved);
                }
            }
            94..97 => {
                settle(&mut pending).await;
                let mut saved = node.snapshot().await;
                saved.index += 10;
                node.entry_source.install(saved.clone());
                node.worker.restore(saved.state()).await.unwrap();
                node.index = saved.index;
            }
            _ => {
                settle(&mut pending).await;
                let saved = node.snapshot().await;
                let entry_source = Arc::clone(&node.entry_source);
                entry_source.install(saved.clone());
                if random.random() {
                    entry_source.forget_traps();
                }
                node = Node::start_from(ONE.clone(), entry_source, Some(saved.state()));
            }
        }
    }
    settle(&mut pending).await;
    assert_eq!(seen(&node).await, (number, components[active].3));
    assert_eq!(node.worker.component(), *components[active].0);
    assert_eq!(node.worker.fatal_error(), None);
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Expected {
    Number(i64),
    Activated(bool),
    Trap,
}

async fn settle(pending: &mut Vec<(tokio::sync::oneshot::Receiver<Outcome>, Expected)>) {
    for (outcome, expected) in pending.drain(..) {
        let outcome = outcome.await.unwrap();
        let found = match &outcome {
            Outcome::Trap(_) => Expected::Trap,
            Outcome::Failure(_) => Expected::Activated(false),
            activated if is_activated(activated) => Expected::Activated(true),
            reply => Expected::Number(counted(reply)),
        };
        assert_eq!(found, expected);
    }
}
