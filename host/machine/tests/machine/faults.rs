//! A fatal error stops the worker with a reason: nothing is applied or answered any more.

use std::sync::Arc;

use conclave_machine::{
    Component, Engine, Entry, EntrySource, EntrySourceError, QueryError, SavedState, SnapshotError,
    Work, Worker,
};
use conclave_types::{Call, Outcome, Trap};

use crate::support::{Node, Number, SEED, add, call, hostile, limits};
use conclave_testing::wat::Wat;

fn raw() -> Call {
    Call { method: "any".into(), request: Default::default(), principal: "".into() }
}

/// Checks that the node has stopped, and that every call returns the reason.
async fn stopped_with(node: &mut Node, words: &str) {
    node.until("a fatal error", |node| node.worker.fatal_error().is_some()).await;
    let fatal_error = node.worker.fatal_error().unwrap();
    eprintln!("{fatal_error}");
    assert!(fatal_error.contains(words), "{fatal_error}");
    let refused = node.worker.apply(vec![(node.index + 1, None, None)]).await.unwrap_err();
    assert!(refused.to_string().contains(words), "{refused}");
    let query = node.worker.query(raw(), 0).await;
    assert!(
        matches!(&query, Err(QueryError::Fatal(fatal_error)) if fatal_error.to_string().contains(words)),
        "{query:?}"
    );
    assert!(matches!(node.worker.snapshot(node.index).await, Err(SnapshotError::Fatal(_))));
}

#[tokio::test]
async fn a_query_that_changes_the_state_is_found_out() {
    // `query` changes the count, and an entry answers with the count.
    let wat = Wat {
        apply: "(i64.store (i32.const 8) (i64.add (i64.load (i32.const 8)) (i64.const 1)))
                (i32.store8 (i32.const 256) (i32.const 0)) (i32.store (i32.const 264) (i32.const 8))
                (i32.store (i32.const 268) (i32.const 8)) (i32.const 256)",
        query: "(i64.store (i32.const 8) (i64.const 77))
                (i32.store8 (i32.const 512) (i32.const 0)) (i32.store (i32.const 516) (i32.const 8))
                (i32.store (i32.const 520) (i32.const 8)) (i32.const 512)",
        ..Wat::default()
    };
    let component = Component::load(&Engine::new(&limits()).unwrap(), wat.component()).unwrap();
    let mut node = Node::start_with(component);
    let outcome = node.apply(raw()).await;
    assert!(
        matches!(&outcome, Outcome::Reply(reply) if reply.response == 1u64.to_le_bytes()[..]),
        "{outcome:?}"
    );
    node.worker.query(raw(), 1).await.unwrap();
    assert!(matches!(node.apply(raw()).await, Outcome::Reply(_)));
    assert_disagreement(&mut node, "the standby answered otherwise").await;
}

/// Checks that a disagreement of the standby with the primary is reported, that the standby is
/// replaced, and that the node continues to work.
async fn assert_disagreement(node: &mut Node, words: &str) {
    node.until("a disagreement", |node| node.worker.standby_problem().is_some()).await;
    let problem = node.worker.standby_problem().unwrap();
    assert!(problem.contains("not deterministic") && problem.contains(words), "{problem}");
    node.worker.standby().wait_for(|present| *present).await.unwrap();
    assert!(matches!(node.apply(raw()).await, Outcome::Reply(_)));
    assert_eq!(node.worker.query(raw(), node.index).await.unwrap().index, node.index);
    assert_eq!((node.worker.fatal_error(), node.worker.metrics().promotions.get()), (None, 0));
    assert_eq!(node.worker.standby_problem(), Some(problem), "an operator must see it");
}

#[tokio::test]
async fn an_entry_that_traps_on_the_standby_alone_costs_the_standby() {
    // The query changes the state so that the next entry traps.
    let wat = Wat {
        apply: "(if (i64.eq (i64.load (i32.const 8)) (i64.const 77)) (then unreachable)) (i32.const 256)",
        query: "(i64.store (i32.const 8) (i64.const 77))
                (i32.store8 (i32.const 512) (i32.const 0)) (i32.store (i32.const 516) (i32.const 8))
                (i32.store (i32.const 520) (i32.const 0)) (i32.const 512)",
        ..Wat::default()
    };
    let component = Component::load(&Engine::new(&limits()).unwrap(), wat.component()).unwrap();
    let mut node = Node::start_with(component);
    node.worker.query(raw(), 0).await.unwrap();
    assert!(matches!(node.apply(raw()).await, Outcome::Reply(_)));
    assert_disagreement(&mut node, "the standby trapped").await;
}

#[tokio::test]
async fn an_entry_out_of_order_is_a_fault() {
    let mut node = Node::start();
    node.add(1).await;
    node.add(1).await;
    let (index, time_ms) = (1, 0);
    node.worker
        .apply(vec![(index, Some(Entry { index, time_ms, work: Work::Call(add(1)) }), None)])
        .await
        .unwrap();
    stopped_with(&mut node, "entry 1 reached the state machine after entry 2").await;
}

/// An entry source that cannot be read.
struct Unreadable;

impl EntrySource for Unreadable {
    fn snapshot(&self) -> Result<Option<SavedState>, EntrySourceError> {
        Err(EntrySourceError::Unreadable("the disk is gone".to_owned()))
    }
    fn entries(&self, _: u64, _: u64) -> Result<Vec<Entry>, EntrySourceError> {
        Err(EntrySourceError::Unreadable("the disk is gone".to_owned()))
    }
    fn record_trap(&self, _: u64, _: &Trap) {}
    fn trapped(&self, _: u64) -> Option<Trap> {
        None
    }
}

/// The primary works without a standby until it traps itself.
#[tokio::test]
async fn a_standby_that_cannot_be_rebuilt_leaves_the_primary_working() {
    let worker =
        Worker::start(hostile(), SEED, Arc::new(Unreadable), None, Arc::default()).unwrap();
    let mut node = Node { worker, entry_source: Default::default(), index: 0 };
    // The first trap still has an outcome: the existing standby is promoted.
    assert!(matches!(node.apply(call("Panic", Number::default())).await, Outcome::Trap(_)));
    node.until("a problem", |node| node.worker.standby_problem().is_some()).await;
    assert!(node.worker.standby_problem().unwrap().contains("the disk is gone"));
    assert!(!*node.worker.standby().borrow());
    for value in 1..=1000 {
        assert_eq!(node.add(1).await, value);
        assert_eq!(node.total().await, value);
    }
    let subscribed = node.worker.subscribe(call("Watch", Number::default()), 0, None).await;
    assert!(matches!(subscribed, Err(QueryError::NoStandby(_))), "{subscribed:?}");
    let snapshot = node.worker.snapshot(node.index).await;
    assert!(matches!(snapshot, Err(SnapshotError::NoStandby(_))));
    assert_eq!(node.worker.fatal_error(), None);
    // Now no instance is left.
    node.push(call("Panic", Number::default())).await.await.unwrap_err();
    stopped_with(&mut node, "the disk is gone").await;
}

#[tokio::test]
async fn a_state_that_cannot_be_restored_does_not_start() {
    let chunks = Box::new(std::iter::empty());
    let (component, index, time_ms) = (hostile(), 1, 1);
    let limits = limits().cluster;
    let saved =
        SavedState { component, index, time_ms, limits, state_version: 1, digest: None, chunks };
    let fatal_error =
        Worker::start(hostile(), SEED, Arc::new(Unreadable), Some(saved), Arc::default())
            .err()
            .unwrap();
    assert!(fatal_error.to_string().contains("eight bytes"), "{fatal_error}");
}

#[tokio::test]
async fn a_waiting_query_is_told_that_the_worker_ends() {
    let node = Node::start();
    let worker = node.worker.clone();
    let waiting =
        tokio::spawn(async move { worker.query(call("Get", Number::default()), 100).await });
    tokio::task::yield_now().await;
    node.worker.shutdown();
    assert_eq!(waiting.await.unwrap(), Err(QueryError::Stopped));
    assert!(matches!(node.worker.snapshot(1).await, Err(SnapshotError::Stopped)));
}
