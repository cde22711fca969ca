//! Queries go to the standby: at an index, while entries continue. A trap costs only the standby.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use conclave_machine::{Component, Engine, Limits, QueryError};
use conclave_types::{Call, Outcome, TrapKind};
use prost::Message;

use crate::{
    printed::{printed, saying},
    support::{HOSTILE, Node, Number, add, call, limits, number, with},
    versions::{count, counted, load, seen, trap, version},
};
use conclave_testing::wat::Wat;

#[tokio::test]
async fn a_query_waits_until_its_index_is_applied() {
    let mut node = Node::start();
    let worker = node.worker.clone();
    let waiting =
        tokio::spawn(async move { worker.query(call("Get", Number::default()), 3).await.unwrap() });
    node.add(1).await;
    node.push_blank().await;
    assert!(!waiting.is_finished());
    node.add(1).await;
    let answered = waiting.await.unwrap();
    assert_eq!(answered.index, 3);
    assert_eq!(Number::decode(answered.result.unwrap()).unwrap().value, 2);
}

/// The standby naps for 5 ms after entries, so that more of them gather.
#[tokio::test]
async fn a_query_does_not_wait_for_the_standbys_nap() {
    let mut node = Node::start();
    let mut times = Vec::new();
    for total in 1..=101 {
        node.add(1).await;
        let begun = Instant::now();
        assert_eq!(node.total().await, total);
        times.push(begun.elapsed());
    }
    times.sort();
    assert!(times[50] < Duration::from_millis(2), "half of the queries took longer: {times:?}");
}

#[tokio::test]
async fn a_query_that_traps_costs_the_reader_alone_while_entries_go_on() {
    let mut node = Node::start();
    for round in 1..=20 {
        let applying = node.push(add(1)).await;
        let error = node.query("QueryPanic").await.unwrap_err();
        assert!(
            matches!(&error, QueryError::Trap(trap) if trap.kind == TrapKind::Panic),
            "{error:?}"
        );
        assert_eq!(number(&applying.await.unwrap()), round);
        assert_eq!(node.total().await, round);
    }
    let metrics = node.worker.metrics();
    assert_eq!((metrics.query_traps.get(), metrics.promotions.get()), (20, 0));
    assert!(node.entry_source.traps().is_empty(), "a query is not an entry");
}

#[tokio::test]
async fn an_endless_query_ends_and_the_head_goes_on_meanwhile() {
    const BEGUN: &str = "it is queried, and will be for long";
    let wat = version("endless", 1, 1, &[1]);
    let query = wat.query.replace("unreachable", "(call $say) (loop (br 0))").leak();
    let mut node = Node::start_with(load(&saying(BEGUN, Wat { query, ..wat })));
    let worker = node.worker.clone();
    let endless = tokio::spawn(async move { worker.query(trap(), 0).await });
    node.until(BEGUN, |_| printed().contains(BEGUN)).await;
    for round in 1..=100 {
        assert_eq!(counted(&node.apply(count()).await), round);
    }
    let error = endless.await.unwrap().unwrap_err();
    assert!(
        matches!(&error, QueryError::Trap(trap) if trap.kind == TrapKind::FuelExhausted),
        "{error:?}"
    );
    assert_eq!(seen(&node).await, (100, 1));
}

#[tokio::test]
async fn a_trap_of_an_entry_right_after_a_trap_of_a_query() {
    let mut node = Node::start();
    for _ in 0..500 {
        drop(node.push(add(1)).await);
    }
    let worker = node.worker.clone();
    let query =
        tokio::spawn(async move { worker.query(call("QueryPanic", Number::default()), 0).await });
    let outcome = node.push(call("Panic", Number::default())).await;
    assert!(matches!(outcome.await.unwrap(), Outcome::Trap(_)));
    assert!(query.await.unwrap().is_err());
    assert_eq!(node.total().await, 500);
}

/// Writes wait for the promotion, so it must not wait for a queue of long queries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trap_does_not_wait_for_the_queries_that_came_before_it() {
    const QUERIES: usize = 20;
    // Each query takes some hundred milliseconds. The entry traps.
    let wat = Wat {
        apply: "unreachable",
        query: "(local.set 9 (i32.const 20000000))
                (loop (br_if 0 (local.tee 9 (i32.sub (local.get 9) (i32.const 1)))))
                (i32.store8 (i32.const 512) (i32.const 0)) (i32.store (i32.const 516) (i32.const 8))
                (i32.store (i32.const 520) (i32.const 8)) (i32.const 512)",
        ..Wat::default()
    };
    let component = Component::load(&Engine::new(&limits()).unwrap(), wat.component()).unwrap();
    let mut node = Node::start_with(component);
    let raw = || Call { method: "any".into(), request: Default::default(), principal: "".into() };
    let answered = Arc::new(AtomicUsize::new(0));
    let mut queries = Vec::new();
    for _ in 0..QUERIES {
        let (worker, answered) = (node.worker.clone(), answered.clone());
        let mut query = Box::pin(async move {
            worker.query(raw(), 0).await.unwrap();
            answered.fetch_add(1, Ordering::SeqCst);
        });
        // From now on the query is in the queue.
        assert!(futures::poll!(&mut query).is_pending());
        queries.push(tokio::spawn(query));
    }
    // The standby may have taken the first query alone, but the second came with all others.
    node.until("two answers", |_| answered.load(Ordering::SeqCst) >= 2).await;
    let outcome = node.apply(raw()).await;
    assert!(matches!(outcome, Outcome::Trap(_)), "{outcome:?}");
    let before = answered.load(Ordering::SeqCst);
    assert!(before < QUERIES / 2, "{before} of {QUERIES} queries were answered before the entry");
    for query in queries {
        query.await.unwrap();
    }
}

/// A standby that is being rebuilt starts in the past, and no query may observe that.
#[tokio::test]
async fn a_stale_query_never_sees_an_older_state_than_one_before() {
    let mut node = Node::start();
    for _ in 0..2000 {
        drop(node.push(add(1)).await);
    }
    let seen = node.query("Get").await.unwrap().index;
    assert_eq!(seen, 2000);
    for _ in 0..5 {
        node.query("QueryPanic").await.unwrap_err();
        let stale = node.worker.query(call("Get", Number::default()), 0).await.unwrap();
        assert!(stale.index >= seen, "{stale:?}");
    }
}

#[tokio::test]
async fn too_many_queries_are_refused_and_those_given_up_make_room() {
    let limits = Limits { queries_waiting_max: 4, ..limits() };
    let component = Component::load(&Engine::new(&limits).unwrap(), HOSTILE.clone()).unwrap();
    let node = Node::start_with(component);
    let ask = || node.worker.query(call("Get", Number::default()), 1000);
    let mut waiting: Vec<_> = (0..4).map(|_| Box::pin(ask())).collect();
    for query in &mut waiting {
        assert!(futures::poll!(query.as_mut()).is_pending());
    }
    assert_eq!(ask().await, Err(QueryError::Busy));
    waiting.pop();
    assert!(futures::poll!(Box::pin(ask())).is_pending());
}

/// A standby that cannot follow makes the primary wait, instead of the queue growing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_slows_the_head_down() {
    let limits = with(|limits| limits.fuel_per_query = 4_000_000_000);
    let limits = Limits { queue_bytes_max: 1 << 20, ..limits };
    let component = Component::load(&Engine::new(&limits).unwrap(), HOSTILE.clone()).unwrap();
    let mut node = Node::start_with(component);
    let worker = node.worker.clone();
    let slow =
        tokio::spawn(async move { worker.query(call("QueryLoop", Number::default()), 0).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut fullest = 0;
    for _ in 0..20_000 {
        drop(node.push(add(1)).await);
        fullest = fullest.max(node.worker.metrics().standby_queue_bytes.get());
    }
    assert!(slow.await.unwrap().is_err());
    assert_eq!(node.total().await, 20_000);
    eprintln!("fullest: {fullest} bytes");
    assert!(fullest <= (1 << 20) + (64 << 10), "{fullest}");
    assert!(fullest > 1 << 19, "the standby was never behind: {fullest}");
}
