//! Snapshots are exact, entries continue beside them, and restoring one is atomic.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use conclave_machine::{Component, Engine, EntrySourceError, Limits, SavedState, SnapshotError};
use conclave_types::{Call, Outcome};

use crate::{
    entry_source::{MemorySource, Saved},
    support::{HOSTILE, Node, Number, add, call, hostile, limits, read, with},
};
use conclave_testing::wat::Wat;

/// Returns the hostile state machine's number from its snapshot.
fn saved_number(saved: &Saved) -> i64 {
    i64::from_be_bytes(saved.bytes.clone().try_into().unwrap())
}

#[tokio::test]
async fn a_snapshot_is_exactly_at_its_index_while_entries_go_on() {
    let mut node = Node::start();
    for round in 1..=50 {
        drop(node.push(add(1)).await);
        let snapshot = node.worker.snapshot(node.index);
        let index = node.index;
        for _ in 0..20 {
            drop(node.push(add(1)).await);
        }
        let stream = snapshot.await.unwrap();
        node.push_blank().await;
        drop(node.push(add(1)).await);
        let saved = read(stream).await.unwrap();
        assert_eq!((saved.index, saved.time_ms), (index, index * 10));
        assert_eq!(saved_number(&saved), (round - 1) * 22 + 1);
    }
    assert_eq!(node.total().await, 50 * 22);
}

/// A standby that catches up reads the log in large steps, but stops at the index of a snapshot request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_exact_while_its_reader_is_being_rebuilt() {
    let limits = Limits { queue_bytes_max: 1 << 20, ..limits() };
    let component = Component::load(&Engine::new(&limits).unwrap(), HOSTILE.clone()).unwrap();
    let mut entry_source = MemorySource::new();
    entry_source.batch = 7_000;
    let mut node = Node::start_from(component, Arc::new(entry_source), None);
    for _ in 0..30_000 {
        drop(node.push(add(1)).await);
    }
    node.query("QueryPanic").await.unwrap_err();
    let (snapshot, index) = (node.worker.snapshot(node.index), node.index);
    // More than fits into the queue of the standby, so that it has to read these entries as well.
    for _ in 0..10_000 {
        drop(node.push(add(1)).await);
    }
    let saved = read(snapshot.await.unwrap()).await.unwrap();
    assert_eq!((saved.index, saved_number(&saved)), (index, 30_000));
    assert_eq!(node.total().await, 40_000);
}

#[tokio::test]
async fn a_snapshot_of_the_past_is_refused() {
    let mut node = Node::start();
    node.add(1).await;
    node.add(1).await;
    node.total().await;
    let error = node.worker.snapshot(1).await.err().unwrap();
    assert_eq!(error, SnapshotError::Passed { index: 1, applied: 2 });
}

#[tokio::test]
async fn a_snapshot_is_lost_with_its_reader_and_the_next_one_is_whole() {
    let mut node = Node::start();
    node.add(5).await;
    let stream = node.worker.snapshot(node.index).await.unwrap();
    node.apply(call("Panic", Number::default())).await;
    assert_eq!(read(stream).await.unwrap_err(), SnapshotError::Lost);
    assert_eq!(saved_number(&node.snapshot().await), 5);

    let stream = node.worker.snapshot(node.index).await.unwrap();
    node.query("QueryPanic").await.unwrap_err();
    assert_eq!(read(stream).await.unwrap_err(), SnapshotError::Lost);
    assert_eq!(saved_number(&node.snapshot().await), 5);
}

/// The standby holds data for the snapshot that the primary does not. If that is too much, the
/// snapshot is lost, but not the node.
#[tokio::test]
async fn an_entry_that_exhausts_the_reader_beside_a_snapshot_costs_the_snapshot_alone() {
    // After a snapshot was taken, the next entry needs more than the limit.
    for exhausts in ["(drop (memory.grow (i32.const 8000))) unreachable", "(loop (br 0))"] {
        let apply = format!(
            "(if (i32.load (i32.const 16)) (then {exhausts}))
             (i64.store (i32.const 8) (i64.add (i64.load (i32.const 8)) (i64.const 1)))
             (i32.store8 (i32.const 256) (i32.const 0)) (i32.const 256)"
        );
        let wat = Wat {
            apply: apply.leak(),
            snapshot: "(i32.store (i32.const 16) (i32.const 1)) (call $new_reader (i32.const 1))",
            ..Wat::default()
        };
        let limits = with(|limits| limits.fuel_per_call = 1_000_000);
        let component = Component::load(&Engine::new(&limits).unwrap(), wat.component()).unwrap();
        let mut node = Node::start_with(component);
        let raw = || Call { method: "any".into(), request: Bytes::new(), principal: "".into() };
        assert!(matches!(node.apply(raw()).await, Outcome::Reply(_)));
        let stream = node.worker.snapshot(node.index).await.unwrap();
        for _ in 0..3 {
            assert!(matches!(node.apply(raw()).await, Outcome::Reply(_)));
        }
        let answered = node.worker.query(raw(), node.index).await.unwrap();
        assert_eq!(answered.result.unwrap(), 4u64.to_le_bytes()[..]);
        assert_eq!(read(stream).await.unwrap_err(), SnapshotError::Lost);
        assert_eq!(
            (node.worker.metrics().standby_builds.get(), node.worker.fatal_error()),
            (1, None)
        );
    }
}

#[tokio::test]
async fn snapshots_that_nobody_reads_are_let_go() {
    let mut node = Node::start();
    node.add(5).await;
    for _ in 0..50 {
        drop(node.worker.snapshot(node.index).await.unwrap());
        drop(node.worker.snapshot(node.index));
    }
    assert_eq!(saved_number(&node.snapshot().await), 5);
}

/// The standby may have answered when the caller gives up.
#[tokio::test]
async fn snapshots_whose_answer_is_not_received_are_released() {
    let mut node = Node::start();
    node.add(5).await;
    for begun in 1..=10 {
        let snapshot = node.worker.snapshot(node.index);
        node.until("the snapshot has begun", |node| node.worker.metrics().snapshots.get() == begun)
            .await;
        drop(snapshot);
    }
    assert_eq!(saved_number(&node.snapshot().await), 5);
}

#[tokio::test]
async fn a_restore_replaces_head_and_standby() {
    let mut old = Node::start();
    old.add(41).await;
    let saved = old.snapshot().await;

    let mut node = Node::start();
    node.add(7).await;
    let later = Saved { index: 100, ..saved };
    node.entry_source.install(later.clone());
    node.worker.restore(later.state()).await.unwrap();
    node.index = 100;
    assert_eq!(node.worker.applied(), 100);
    // Dropping a worker must interrupt only the calls of its own instances, although the engine is shared.
    drop(old);
    assert_eq!(node.total().await, 41);
    assert_eq!(node.add(1).await, 42);
    // The rebuilt standby also begins at the restored state.
    node.apply(call("Panic", Number::default())).await;
    assert_eq!(node.add(1).await, 43);
    assert_eq!(node.total().await, 43);
}

#[tokio::test]
async fn a_restore_that_fails_changes_nothing() {
    let mut node = Node::start();
    node.add(7).await;
    let whole = Saved { index: 100, ..node.snapshot().await };

    // The cases: too short, a version that the state machine does not support, unreadable in the
    // middle, too old.
    let short = Saved { bytes: whole.bytes[..5].to_vec(), ..whole.clone() };
    assert!(
        node.worker.restore(short.state()).await.unwrap_err().to_string().contains("eight bytes")
    );
    let foreign = Saved { state_version: 9, ..whole.clone() };
    assert!(
        node.worker.restore(foreign.state()).await.unwrap_err().to_string().contains("version 9")
    );
    let chunks = vec![
        Ok(Bytes::from_static(b"1234")),
        Err(EntrySourceError::Unreadable("a bad disk".to_owned())),
    ];
    let unreadable = SavedState { chunks: Box::new(chunks.into_iter()), ..whole.state() };
    assert!(node.worker.restore(unreadable).await.unwrap_err().to_string().contains("a bad disk"));
    let old = Saved { index: 0, ..whole };
    assert!(node.worker.restore(old.state()).await.unwrap_err().to_string().contains("older"));

    assert_eq!(node.worker.fatal_error(), None);
    assert_eq!(node.total().await, 7);
    assert_eq!(node.add(1).await, 8);
}

#[tokio::test]
async fn a_reader_is_rebuilt_from_a_snapshot_and_the_log_after_it() {
    let mut node = Node::start();
    for _ in 0..30 {
        node.add(1).await;
    }
    node.entry_source.install(node.snapshot().await);
    for _ in 0..30 {
        node.add(1).await;
    }
    node.apply(call("Panic", Number::default())).await;
    assert_eq!(node.add(1).await, 61);
    node.query("QueryPanic").await.unwrap_err();
    assert_eq!(node.total().await, 61);
}

#[tokio::test]
async fn a_log_that_is_purged_under_a_build_sends_it_to_the_newer_snapshot() {
    let mut node = Node::start();
    for _ in 0..10 {
        node.add(1).await;
    }
    node.entry_source.install(node.snapshot().await);
    for _ in 0..10 {
        node.add(1).await;
    }
    node.entry_source.install_after_next_read(node.snapshot().await);
    node.query("QueryPanic").await.unwrap_err();
    // Until the standby has been built, the primary answers.
    let reads = |node: &Node| node.entry_source.snapshot_reads.load(Ordering::Relaxed);
    node.until("the newer snapshot is read", |node| reads(node) == 2).await;
    assert_eq!(node.total().await, 20);
}

#[tokio::test]
async fn a_worker_starts_from_a_saved_state() {
    let mut old = Node::start();
    old.add(12).await;
    let saved = old.snapshot().await;
    let entry_source = Arc::new(MemorySource::new());
    entry_source.install(saved.clone());
    let mut node = Node::start_from(hostile(), entry_source, Some(saved.state()));
    assert_eq!(node.worker.applied(), saved.index);
    // A snapshot does not contain the wake-up time, so the state machine is ticked at once.
    assert_eq!(*node.worker.wake_at().borrow(), Some(0));
    assert_eq!(node.total().await, 12);
    assert_eq!(node.add(1).await, 13);
}

/// A restore that takes seconds must not delay the running instances, and nothing of a state may be
/// visible before the state machine has accepted all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_go_on_while_a_state_is_restored() {
    let spin = "(func $spin (local i64) (local.set 0 (i64.const 1500000000))
        (loop (br_if 0 (i64.ne (i64.const 0)
          (local.tee 0 (i64.sub (local.get 0) (i64.const 1)))))))";
    let wat =
        Wat { finish: "(call $spin) (i32.const 256)", more: spin.to_owned(), ..Wat::default() };
    let engine = Engine::new(&limits()).unwrap();
    let component = Component::load(&engine, wat.component()).unwrap();
    let mut node = Node::start_with(component);
    let raw = || Call { method: "any".into(), request: Bytes::new(), principal: "".into() };
    node.apply(raw()).await;
    let saved = Saved { index: 10_000_000, bytes: Vec::new(), ..node.snapshot().await };
    let preparing = tokio::spawn({
        let (worker, state) = (node.worker.clone(), saved.state());
        async move { worker.prepare(state).await }
    });
    let mut applied = 0;
    while !preparing.is_finished() {
        node.apply(raw()).await;
        applied += 1;
    }
    assert!(applied > 1_000, "{applied} entries");
    let restored = preparing.await.unwrap().unwrap();
    let (refused, before) = (Err(std::io::Error::other("a full disk")), node.worker.applied());
    let error = node.worker.adopt(restored, || refused).await.unwrap_err();
    assert!(error.to_string().contains("a full disk"), "{error}");
    assert_eq!((node.worker.applied(), node.worker.fatal_error()), (before, None));
    node.apply(raw()).await;

    // A cancelled restore ends, also inside of a call. Its bytes are held until then.
    let wat = Wat { write: wat.finish, finish: Wat::default().finish, ..wat };
    let component = Component::load(&engine, wat.component()).unwrap();
    let held = Arc::new(());
    let (kept, mut bytes) = (held.clone(), Some(Bytes::from_static(b"state")));
    let chunks = std::iter::from_fn(move || {
        let _kept = &kept;
        bytes.take().map(Ok)
    });
    let state = SavedState { component, chunks: Box::new(chunks), ..saved.state() };
    let abandoned = node.worker.prepare(state);
    assert!(tokio::time::timeout(Duration::from_millis(100), abandoned).await.is_err());
    assert_eq!(Arc::strong_count(&held), 2, "it runs");
    let since = Instant::now();
    node.until("it ends", |_| Arc::strong_count(&held) == 1).await;
    assert!(since.elapsed() < Duration::from_millis(500), "{:?}", since.elapsed());
}

/// A bug in a component must not fill the disk.
#[tokio::test]
async fn a_snapshot_without_an_end_ends_at_the_limit_of_memory() {
    let wat = Wat {
        read: "(i32.store (i32.const 48) (i32.const 8)) (i32.store (i32.const 52) (i32.const 65536)) (i32.const 48)",
        ..Wat::default()
    };
    let limits = with(|limits| limits.memory_bytes_max = 1 << 20);
    let component = Component::load(&Engine::new(&limits).unwrap(), wat.component()).unwrap();
    let mut node = Node::start_with(component);
    let raw = || Call { method: "any".into(), request: Bytes::new(), principal: "".into() };
    node.apply(raw()).await;
    let mut stream = node.worker.snapshot(node.index).await.unwrap();
    let mut bytes = 0;
    let error = loop {
        match stream.next().await.unwrap() {
            Ok(chunk) => bytes += chunk.len(),
            Err(error) => break error,
        }
    };
    assert!(bytes <= 1 << 20, "{bytes}");
    assert!(error.to_string().contains("more than 1048576 bytes"), "{error}");
    // The instance is intact.
    assert!(matches!(node.apply(raw()).await, Outcome::Reply(_)));
    node.worker.query(raw(), node.index).await.unwrap();
    assert_eq!((node.worker.metrics().standby_builds.get(), node.worker.fatal_error()), (0, None));
}
