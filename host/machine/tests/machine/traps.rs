//! A trap is an outcome: reported in bounded time, rolled back, the same on every node. The next
//! entry is applied.

use std::time::{Duration, Instant};

use conclave_machine::{Entry, Work};
use conclave_types::{Outcome, TrapKind};

use crate::{
    printed::{printed, saying},
    support::{MARK, Node, Number, add, call, number, trap_kind},
    versions::{count, load},
};
use conclave_testing::wat::Wat;

/// The ways to trap, with the possible kinds of the trap. The Rust guest's own stack overflows into
/// the guard below its memory before the engine's stack is full.
const WAYS: [(&str, &[TrapKind]); 6] = [
    ("Panic", &[TrapKind::Panic]),
    ("DivideByZero", &[TrapKind::Invalid]),
    ("Loop", &[TrapKind::FuelExhausted]),
    ("Allocate", &[TrapKind::MemoryExhausted]),
    ("Recurse", &[TrapKind::StackExhausted, TrapKind::Invalid]),
    ("Huge", &[TrapKind::BadAnswer]),
];

/// The maximum time of a call here. Includes debug assertions, two cores and other tests.
const BOUND: Duration = Duration::from_secs(12);

#[tokio::test]
async fn every_class_of_trap_is_rolled_back_and_the_next_entry_is_applied() {
    let mut node = Node::start();
    let mut total = node.add(7).await;
    for (method, kinds) in WAYS {
        let started = Instant::now();
        let outcome = node.apply(call(method, Number::default())).await;
        let took = started.elapsed();
        let Outcome::Trap(trap) = &outcome else { panic!("{method}: {outcome:?}") };
        eprintln!("{method}: {} in {took:?}: {}", trap.kind.name(), trap.message);
        assert!(kinds.contains(&trap.kind), "{method}: {trap:?}");
        assert!(trap.message.starts_with(&format!("hostile.v1.Hostile/{method}: ")), "{trap:?}");
        assert!(took < BOUND, "{method} took {took:?}");
        assert_eq!(node.total().await, total, "{method} changed the state");
        total = node.add(1).await;
        assert_eq!(node.total().await, total);
    }
    let metrics = node.worker.metrics();
    assert_eq!(metrics.traps.iter().map(|count| count.get()).sum::<u64>(), WAYS.len() as u64);
    assert_eq!(metrics.promotions.get(), WAYS.len() as u64);
    assert_eq!(node.worker.fatal_error(), None);
    assert_eq!(node.entry_source.traps().len(), WAYS.len());
}

#[tokio::test]
async fn a_failure_is_an_answer_and_its_changes_stay() {
    let mut node = Node::start();
    let outcome = node.apply(call("Fail", Number::default())).await;
    assert!(
        matches!(&outcome, Outcome::Failure(failure) if failure.message == "failed as asked"),
        "{outcome:?}"
    );
    assert_eq!(node.total().await, MARK);
}

#[tokio::test]
async fn the_first_entry_may_trap() {
    let mut node = Node::start();
    assert_eq!(trap_kind(&node.apply(call("Panic", Number::default())).await), TrapKind::Panic);
    assert_eq!(node.total().await, 0);
    assert_eq!(node.add(3).await, 3);
}

#[tokio::test]
async fn a_second_trap_waits_for_the_reader_that_is_being_built() {
    let mut node = Node::start();
    // Enough entries that the new standby is not ready when the next one traps.
    for value in 0..2000 {
        drop(node.push(add(value)).await);
    }
    let first = node.push(call("Panic", Number::default())).await;
    let second = node.push(call("DivideByZero", Number::default())).await;
    let third = node.push(add(0)).await;
    assert_eq!(trap_kind(&first.await.unwrap()), TrapKind::Panic);
    assert_eq!(trap_kind(&second.await.unwrap()), TrapKind::Invalid);
    assert_eq!(number(&third.await.unwrap()), 1999 * 1000);
    assert_eq!(node.total().await, 1999 * 1000);
}

#[tokio::test]
async fn many_traps_in_a_row_between_entries_that_count() {
    let mut node = Node::start();
    let mut outcomes = Vec::new();
    for round in 0..50 {
        outcomes.push(
            node.push(call(
                if round % 2 == 0 { "Panic" } else { "DivideByZero" },
                Number::default(),
            ))
            .await,
        );
        if round % 5 == 0 {
            outcomes.push(node.push(add(1)).await);
            node.push_blank().await;
        }
    }
    let mut traps = 0;
    for outcome in outcomes {
        traps += usize::from(matches!(outcome.await.unwrap(), Outcome::Trap(_)));
    }
    assert_eq!(traps, 50);
    assert_eq!(node.total().await, 10);
}

#[tokio::test]
async fn the_machine_writes_a_limited_number_of_lines() {
    let mut node = Node::start();
    let started = Instant::now();
    // Ends by itself: a line costs fuel, and the fuel is enough for this many.
    let outcome = node.apply(call("Chatter", Number::default())).await;
    eprintln!(
        "Chatter: {outcome:?} in {:?}, fuel {}",
        started.elapsed(),
        node.worker.metrics().fuel.get()
    );
    assert!(matches!(outcome, Outcome::Reply(_)), "{outcome:?}");
    assert!(started.elapsed() < BOUND);
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_long_call() {
    const BEGUN: &str = "it is called, and will be for long";
    let wat = Wat { apply: "(call $say) (loop (br 0)) unreachable", ..Wat::default() };
    let mut node = Node::start_with(load(&saying(BEGUN, wat)));
    let outcome = node.push(count()).await;
    node.until(BEGUN, |_| printed().contains(BEGUN)).await;
    let started = Instant::now();
    node.worker.shutdown();
    let took = started.elapsed();
    eprintln!("shutdown amid a long call: {took:?}");
    assert!(took < Duration::from_millis(500), "{took:?}");
    assert!(outcome.await.is_err(), "an interrupted entry has no outcome");
    assert_eq!(node.worker.fatal_error(), None);
    assert!(node.worker.apply(vec![(9, None, None)]).await.is_err());
}

/// A tick that traps is rolled back like a call. The wake-up time stays due: the leader decides
/// when to retry.
#[tokio::test]
async fn a_tick_that_traps_is_rolled_back_and_stays_due() {
    let mut node = Node::start();
    assert_eq!(*node.worker.wake_at().borrow(), None);
    node.add(5).await;
    let outcome = node.apply(call("Wake", Number::default())).await;
    assert!(matches!(outcome, Outcome::Reply(_)), "{outcome:?}");
    let wake_at = Some(node.index * 10);
    assert_eq!(*node.worker.wake_at().borrow(), wake_at);
    let (index, time_ms) = (node.index + 1, (node.index + 1) * 10);
    let tick = Entry { index, time_ms, work: Work::Tick };
    let outcome = node.push_entry(tick).await.await.unwrap();
    assert!(matches!(&outcome, Outcome::Trap(trap) if trap.kind == TrapKind::Panic), "{outcome:?}");
    assert_eq!(*node.worker.wake_at().borrow(), wake_at);
    assert_eq!(node.add(1).await, 6);
    assert_eq!(node.total().await, 6);
}
