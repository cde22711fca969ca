//! A snapshot is restored into a new instance, which becomes the standby.

use conclave_types::Outcome;

use crate::{
    support::{Node, Number, add, call},
    versions::load,
};
use conclave_testing::wat::Wat;

#[tokio::test]
async fn a_restored_snapshot_becomes_the_standby_and_catches_up() {
    let mut node = Node::start();
    for round in 1..=5 {
        for _ in 0..200 {
            drop(node.push(add(1)).await);
        }
        let saved = node.snapshot().await;
        // The new standby gets the entries after the snapshot from the log.
        for _ in 0..200 {
            drop(node.push(add(1)).await);
        }
        node.worker.replace_standby(saved.state_in(1024)).await.unwrap();
        node.until("a rotation", |node| node.worker.metrics().rotations.get() == round).await;
        assert_eq!(node.total().await, 400 * round as i64);
        // It can be promoted.
        node.worker.standby().wait_for(|present| *present).await.unwrap();
    }
    let outcome = node.apply(call("Panic", Number::default())).await;
    assert!(matches!(outcome, Outcome::Trap(_)), "{outcome:?}");
    assert_eq!(node.total().await, 2000);
    let metrics = node.worker.metrics();
    assert_eq!((metrics.rotations.get(), metrics.promotions.get()), (5, 1));
    assert_eq!((node.worker.fatal_error(), node.worker.standby_problem()), (None, None));
}

/// A snapshot of the replaced state must not come back.
#[tokio::test]
async fn a_snapshot_from_before_another_nodes_state_was_adopted_is_not_used() {
    let mut node = Node::start();
    node.add(7).await;
    let old = node.snapshot().await;
    let mut other = Node::start();
    for _ in 0..10 {
        other.add(100).await;
    }
    node.worker.restore(other.snapshot().await.state()).await.unwrap();
    node.index = 10;
    node.worker.replace_standby(old.state()).await.unwrap();
    assert_eq!(node.total().await, 1000);
    node.entry_source.install(other.snapshot().await);
    assert_eq!(node.add(1).await, 1001);
    assert_eq!(node.total().await, 1001);
    assert_eq!(node.worker.metrics().rotations.get(), 0);
    assert_eq!(node.worker.standby_problem(), None);
}

/// A snapshot that is being read lives in the standby.
#[tokio::test]
async fn a_standby_with_an_open_snapshot_is_not_replaced() {
    let mut node = Node::start();
    node.add(7).await;
    let saved = node.snapshot().await;
    let mut open = node.worker.snapshot(node.index).await.unwrap();
    node.worker.replace_standby(saved.state()).await.unwrap();
    node.add(1).await;
    assert_eq!(node.total().await, 8);
    assert_eq!(node.worker.metrics().rotations.get(), 0);
    while let Some(piece) = open.next().await {
        piece.unwrap();
    }
    drop(open);
    node.until("a rotation", |node| node.worker.metrics().rotations.get() == 1).await;
    assert_eq!(node.total().await, 8);
}

/// The state machine forgets a part of its state in `restore`, so that it behaves differently afterwards.
#[tokio::test]
async fn a_state_machine_that_behaves_differently_after_a_restore_is_reported() {
    // It counts and answers with the count, but its snapshot is empty.
    let wat = Wat {
        apply: "(i64.store (i32.const 8) (i64.add (i64.load (i32.const 8)) (i64.const 1)))
                (i32.store8 (i32.const 256) (i32.const 0)) (i32.store (i32.const 264) (i32.const 8))
                (i32.store (i32.const 268) (i32.const 8)) (i32.const 256)",
        ..Wat::default()
    };
    let mut node = Node::start_with(load(&wat));
    let count = || crate::versions::count();
    for _ in 0..3 {
        node.apply(count()).await;
    }
    let saved = node.snapshot().await;
    node.worker.replace_standby(saved.state()).await.unwrap();
    node.until("a rotation", |node| node.worker.metrics().rotations.get() == 1).await;
    assert!(matches!(node.apply(count()).await, Outcome::Reply(_)));
    node.until("a disagreement", |node| node.worker.standby_problem().is_some()).await;
    let problem = node.worker.standby_problem().unwrap();
    assert!(problem.contains("at entry 4") && problem.contains("answered otherwise"), "{problem}");
    assert_eq!(node.worker.fatal_error(), None);
}
