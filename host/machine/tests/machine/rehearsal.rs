//! A component is rehearsed on a saved state and entries of the log, without an effect on the worker.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use conclave_machine::{Entry, EntrySourceError, NotReady, Rehearsal, Work, rehearse};
use conclave_types::TrapKind;

use crate::{
    entry_source::Saved,
    support::{Node, SEED},
    versions::{FAILS, HUNDRED, ONE, TEN, count, counted, is_activated, load, seen, trap, version},
};
use conclave_testing::wat::Wat;

/// Returns a node that has counted to twenty, its state at five, and the entries after it.
async fn counted_to_twenty() -> (Node, Saved, Vec<Entry>) {
    let mut node = Node::start_with(ONE.clone());
    for _ in 0..5 {
        node.apply(count()).await;
    }
    let saved = node.snapshot().await;
    for _ in 0..15 {
        node.apply(count()).await;
    }
    let entries = node.entry_source.all().split_off(5);
    (node, saved, entries)
}

fn all(entries: &[Entry]) -> impl Iterator<Item = Result<Entry, EntrySourceError>> + Send {
    entries.iter().cloned().map(Ok)
}

#[tokio::test]
async fn a_component_that_copes_is_ready_and_says_what_it_took() {
    let (mut node, saved, entries) = counted_to_twenty().await;
    let Rehearsal { index, entries: applied, failures, memory_bytes, fuel, snapshot_bytes, .. } =
        rehearse(&HUNDRED, SEED, saved.state(), all(&entries), || false).unwrap();
    assert_eq!((index, applied, failures, snapshot_bytes), (20, 15, 0, 8));
    assert!(memory_bytes >= 2 << 16 && fuel >= 15, "{memory_bytes} {fuel}");
    // The worker is unchanged, and the component can be activated.
    assert_eq!(seen(&node).await, (20, 1));
    assert!(is_activated(&node.activate(&HUNDRED).await));
    assert_eq!(counted(&node.apply(count()).await), 120);
}

#[tokio::test]
async fn whoever_is_not_ready_says_why() {
    let (_node, saved, entries) = counted_to_twenty().await;
    let try_it =
        |wat: Wat| rehearse(&load(&wat), SEED, saved.state(), all(&entries), || false).unwrap_err();
    let error = try_it(version("three", 1, 3, &[3]));
    assert_eq!(error.to_string(), "the state has version 1, and three restores [3] only");
    let error = try_it(Wat { finish: FAILS, ..version("x", 1, 1, &[1]) });
    assert!(
        matches!(&error, NotReady::Restore { index: 5, trap } if trap.message.contains("not this one")),
        "{error}"
    );
    // An entry in the middle traps.
    let apply = "(if (i64.eq (local.get 0) (i64.const 12)) (then unreachable)) (i32.const 256)";
    let error = try_it(Wat { apply, ..version("x", 1, 1, &[1]) });
    assert!(
        matches!(&error, NotReady::Entry { index: 12, trap } if trap.kind == TrapKind::Panic),
        "{error}"
    );
    assert_eq!(error.to_string(), "entry 12 traps: any: the state machine panicked (panic)");
    let error = try_it(Wat { read: "unreachable", ..version("x", 1, 1, &[1]) });
    assert!(matches!(&error, NotReady::Snapshot { index: 20, .. }), "{error}");
}

#[tokio::test]
async fn what_cannot_be_rehearsed_is_said() {
    let (mut node, saved, entries) = counted_to_twenty().await;
    let unreadable = vec![Ok(entries[0].clone()), Err(EntrySourceError::Gap(7))];
    let error = rehearse(&TEN, SEED, saved.state(), unreadable.into_iter(), || false).unwrap_err();
    assert_eq!(error, NotReady::EntrySource(EntrySourceError::Gap(7)));

    assert!(is_activated(&node.activate(&TEN).await));
    let entries = node.entry_source.all().split_off(5);
    assert!(matches!(entries[15].work, Work::Activate(_)));
    let error = rehearse(&HUNDRED, SEED, saved.state(), all(&entries), || false).unwrap_err();
    assert_eq!(error, NotReady::Activation(21));

    let error =
        rehearse(&TEN, SEED, saved.state(), all(&entries[..1]).chain(all(&entries[..1])), || false);
    assert!(matches!(error, Err(NotReady::Fatal(_))), "{error:?}");
}

/// A stop ends a call that would take minutes, and the worker beside it continues.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rehearsal_ends_when_it_is_told() {
    let (mut node, saved, entries) = counted_to_twenty().await;
    let slow = load(&Wat { finish: "(loop (br 0)) unreachable", ..version("slow", 1, 1, &[1]) });
    let stop = Arc::new(AtomicBool::new(false));
    let rehearsing = tokio::task::spawn_blocking({
        let (saved, entries, stop) = (saved.clone(), entries.clone(), Arc::clone(&stop));
        move || {
            let stop = || stop.load(Ordering::Relaxed);
            rehearse(&slow, SEED, saved.state(), all(&entries), stop)
        }
    });
    for number in 21..=120 {
        assert_eq!(counted(&node.apply(count()).await), number);
    }
    assert!(!rehearsing.is_finished());
    let started = Instant::now();
    stop.store(true, Ordering::Relaxed);
    assert_eq!(rehearsing.await.unwrap(), Err(NotReady::Stopped));
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    // It also ends a rehearsal between two entries.
    let endless = std::iter::repeat_with(|| entries[0].clone()).zip(6..);
    let endless = endless.map(|(entry, index)| Ok(Entry { index, ..entry }));
    let started = Instant::now();
    let stop = || started.elapsed() > Duration::from_millis(100);
    assert_eq!(rehearse(&TEN, SEED, saved.state(), endless, stop), Err(NotReady::Stopped));
    assert_eq!(seen(&node).await, (120, 1));
    assert!(matches!(node.apply(trap()).await, conclave_types::Outcome::Trap(_)));
    assert_eq!(seen(&node).await, (120, 1));
}
