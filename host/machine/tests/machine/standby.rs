//! The time without a standby: the primary answers queries until another instance has been built.

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use conclave_machine::{Entry, EntrySource, EntrySourceError, QueryError, SavedState, Worker};
use conclave_types::{Outcome, Trap};
use tokio::time::timeout;

use crate::{
    entry_source::MemorySource,
    support::{Node, Number, SEED, add, call, hostile, number},
};

/// An entry source with a gate: while it is closed, no standby can be built.
struct Gated {
    entry_source: Arc<MemorySource>,
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Gated {
    fn close(&self) {
        *self.closed.lock().unwrap() = true;
    }

    fn open(&self) {
        *self.closed.lock().unwrap() = false;
        self.opened.notify_all();
    }
}

impl EntrySource for Gated {
    fn snapshot(&self) -> Result<Option<SavedState>, EntrySourceError> {
        let closed = self.closed.lock().unwrap();
        let long = Duration::from_secs(60);
        drop(self.opened.wait_timeout_while(closed, long, |closed| *closed).unwrap());
        self.entry_source.snapshot()
    }
    fn entries(&self, from: u64, to: u64) -> Result<Vec<Entry>, EntrySourceError> {
        self.entry_source.entries(from, to)
    }
    fn record_trap(&self, index: u64, trap: &Trap) {
        self.entry_source.record_trap(index, trap);
    }
    fn trapped(&self, index: u64) -> Option<Trap> {
        self.entry_source.trapped(index)
    }
}

/// Returns a node with such an entry source, whose gate is open at first.
fn start() -> (Node, Arc<Gated>) {
    let source = Arc::new(Gated {
        entry_source: Arc::new(MemorySource::new()),
        closed: Mutex::default(),
        opened: Condvar::default(),
    });
    let worker = Worker::start(hostile(), SEED, source.clone(), None, Arc::default()).unwrap();
    (Node { worker, entry_source: source.entry_source.clone(), index: 0 }, source)
}

async fn trap(node: &mut Node) {
    let outcome = node.apply(call("Panic", Number::default())).await;
    assert!(matches!(outcome, Outcome::Trap(_)), "{outcome:?}");
}

#[tokio::test]
async fn the_primary_answers_queries_while_a_standby_is_built() {
    let (mut node, source) = start();
    node.add(5).await;
    source.close();
    trap(&mut node).await;
    assert!(!*node.worker.standby().borrow());
    for value in 6..=500 {
        assert_eq!(node.add(1).await, value);
        assert_eq!(node.total().await, value);
    }
    assert_eq!(node.worker.metrics().queries.get(), 495);
    // An idle primary answers too.
    for _ in 0..100 {
        assert_eq!(node.total().await, 500);
    }
    assert!(!*node.worker.standby().borrow());
    source.open();
    node.worker.standby().wait_for(|present| *present).await.unwrap();
    assert_eq!(node.total().await, 500);
    assert_eq!(node.add(1).await, 501);
    assert_eq!(node.total().await, 501);
    let metrics = node.worker.metrics();
    assert_eq!((metrics.promotions.get(), metrics.standby_builds.get()), (1, 1));
    assert_eq!(node.worker.fatal_error(), None);
}

/// No caller observes an older state than was served before, whichever instance answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_never_go_back_in_time_across_losses_of_the_standby() {
    let (mut node, source) = start();
    let ends = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (worker, ends) = (node.worker.clone(), ends.clone());
            tokio::spawn(async move {
                let (mut last, mut count) = (0, 0_u64);
                while !ends.load(Ordering::Relaxed) {
                    let query = worker.query(call("Get", Number::default()), last);
                    let answered = timeout(Duration::from_secs(30), query).await.unwrap().unwrap();
                    assert!(answered.index >= last, "{} after {last}", answered.index);
                    last = answered.index;
                    count += 1;
                }
                count
            })
        })
        .collect();
    for round in 0..50 {
        if round % 2 == 0 {
            // Without a standby, the trap would wait for one.
            node.worker.standby().wait_for(|present| *present).await.unwrap();
            source.close();
        }
        trap(&mut node).await;
        for _ in 0..20 {
            drop(node.push(add(1)).await);
        }
        source.open();
    }
    ends.store(true, Ordering::Relaxed);
    for standby in readers {
        assert!(standby.await.unwrap() > 50);
    }
    assert_eq!(node.total().await, 1000);
    assert_eq!((node.worker.fatal_error(), node.worker.standby_problem()), (None, None));
}

#[tokio::test]
async fn a_query_that_traps_on_the_primary_is_not_an_outage() {
    let (mut node, source) = start();
    node.add(5).await;
    source.close();
    trap(&mut node).await;
    // The method is not yet known to trap, so the primary runs the query. Then it needs a standby itself.
    let error = node.query("QueryPanic").await.unwrap_err();
    assert!(matches!(error, QueryError::Trap(_)), "{error:?}");
    let adding = node.push(add(1)).await;
    source.open();
    assert_eq!(number(&adding.await.unwrap()), 6);
    assert_eq!(node.total().await, 6);
    // Now the method is known to trap, so the primary leaves the query to the standby.
    node.worker.standby().wait_for(|present| *present).await.unwrap();
    source.close();
    trap(&mut node).await;
    let (worker, index) = (node.worker.clone(), node.index);
    let query =
        tokio::spawn(
            async move { worker.query(call("QueryPanic", Number::default()), index).await },
        );
    assert_eq!(node.total().await, 6);
    assert_eq!(node.add(1).await, 7);
    assert!(!query.is_finished());
    source.open();
    assert!(matches!(query.await.unwrap(), Err(QueryError::Trap(_))));
    assert_eq!(node.worker.metrics().promotions.get(), 3);
    assert_eq!(node.total().await, 7);
}

#[tokio::test]
async fn a_snapshot_waits_for_the_standby_that_is_being_built() {
    let (mut node, source) = start();
    node.add(5).await;
    source.close();
    trap(&mut node).await;
    let snapshot = node.worker.snapshot(node.index);
    // Later entries are not part of the snapshot.
    node.add(1).await;
    source.open();
    let saved = crate::support::read(snapshot.await.unwrap()).await.unwrap();
    assert_eq!(saved.index, 2);
    assert_eq!(node.total().await, 6);
}
