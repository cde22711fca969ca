//! An activation that fails has an outcome, the same on every node and in every replay. The
//! previous component continues with its state unchanged.

use std::{sync::Arc, time::Duration};

use conclave_machine::{Component, Engine};
use conclave_types::{Code, Outcome};

use crate::{
    entry_source::MemorySource,
    printed::{printed, saying},
    support::{Node, limits, read, with},
    versions::{
        FAILS, FAILS_WITH, HUNDRED, ONE, TEN, count, counted, is_activated, load, seen, trap,
        version,
    },
};
use conclave_testing::wat::Wat;

/// A case: its name, the change that breaks a working component, and the expected message.
type Way = (&'static str, fn(Wat) -> Wat, &'static str);

/// The ways in which a new component fails to accept a state, and the expected messages.
const REFUSALS: [Way; 7] = [
    (
        "restore traps",
        |wat| Wat { restore: "unreachable", ..wat },
        "restore: the state machine panicked",
    ),
    (
        "restore fails",
        |wat| Wat { restore: FAILS, ..wat },
        "restore: the state machine rejects the state: not this one",
    ),
    (
        "write traps",
        |wat| Wat { write: "(i32.load (i32.const -4))", ..wat },
        "restore-writer.write: the state machine is faulty",
    ),
    (
        "write fails",
        |wat| Wat { write: FAILS, ..wat },
        "restore-writer.write: the state machine rejects the state: not this one",
    ),
    (
        "finish traps",
        |wat| Wat { finish: "unreachable", ..wat },
        "restore-writer.finish: the state machine panicked",
    ),
    (
        "finish fails",
        |wat| Wat { finish: FAILS, ..wat },
        "restore-writer.finish: the state machine rejects the state: not this one",
    ),
    (
        "finish fills the memory",
        |wat| Wat { finish: "(drop (memory.grow (i32.const 60000))) unreachable", ..wat },
        "restore-writer.finish: the state machine reached its memory limit",
    ),
];

fn not_activated(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Failure(failure) if failure.code == Code::FailedPrecondition => &failure.message,
        other => panic!("no refusal: {other:?}"),
    }
}

/// Counts to three, tries the component twice, and continues. Then does everything again in a
/// replay of the log. Returns the message.
async fn tried(old: &Component, new: &Component) -> String {
    let mut node = Node::start_with(old.clone());
    for number in 1..=3 {
        assert_eq!(counted(&node.apply(count()).await), number);
    }
    let saved = node.snapshot_unless_it_breaks().await;
    let components = node.worker.components();
    let refused = node.activate(new).await;
    let said = not_activated(&refused).to_owned();
    assert_eq!(node.activate(new).await, refused);
    // Nothing changed for any observer.
    assert!(!components.has_changed().unwrap());
    assert_eq!(node.worker.component(), *old);
    assert_eq!(*node.worker.wake_at().borrow(), None);
    assert_eq!(seen(&node).await, (3, 1));
    assert_eq!(counted(&node.apply(count()).await), 4);
    assert_eq!(seen(&node).await, (4, 1));
    let metrics = node.worker.metrics();
    assert_eq!(
        (metrics.activations.get(), metrics.activations_failed.get(), metrics.failures.get()),
        (0, 2, 2)
    );
    // A rebuilt standby skips the activation as well, and so does one that becomes the primary.
    node.worker.query(trap(), 0).await.unwrap_err();
    assert_eq!(seen(&node).await, (4, 1));
    assert!(matches!(node.apply(trap()).await, Outcome::Trap(_)));
    assert_eq!(counted(&node.apply(count()).await), 5);
    assert_eq!(node.worker.fatal_error(), None);

    let log = node.entry_source.all();
    let remembering = Arc::clone(&node.entry_source);
    drop(node);
    for (entry_source, start) in [
        (Arc::clone(&remembering), None),
        (Arc::new(MemorySource::new()), None),
        (Arc::new(MemorySource::new()), saved),
    ] {
        if let Some(saved) = &start {
            entry_source.install(saved.clone());
        }
        let at = start.as_ref().map(|saved| saved.state());
        let mut node = Node::start_from(old.clone(), entry_source, at);
        let from = node.index;
        let mut refusals = 0;
        for entry in log.iter().filter(|entry| entry.index > from) {
            let outcome = node.push_entry(entry.clone()).await.await.unwrap();
            if matches!(outcome, Outcome::Failure(_)) {
                assert_eq!(outcome, refused);
                refusals += 1;
            }
        }
        assert_eq!((refusals, seen(&node).await, node.worker.fatal_error()), (2, (5, 1), None));
    }
    assert_eq!(remembering.all().len(), log.len());
    said
}

impl Node {
    /// Returns `None` for a state machine whose snapshot traps.
    async fn snapshot_unless_it_breaks(&self) -> Option<crate::entry_source::Saved> {
        let stream = self.worker.snapshot(self.index).await.ok()?;
        read(stream).await.ok()
    }
}

#[tokio::test]
async fn a_version_that_is_not_restored_is_refused() {
    // Version 2 becomes active first, so that nothing here begins only at the log's start.
    let two = load(&version("two", 1, 2, &[1, 2]));
    let said = tried(&two, &TEN).await;
    let all = "ten was not activated, and two continues: the state has version 2, and ten restores [1] only";
    assert_eq!(said, all);
}

#[tokio::test]
async fn a_component_that_does_not_take_the_state_is_not_activated() {
    for (what, make, words) in REFUSALS {
        let stubborn = load(&make(version("stubborn", 10, 1, &[1])));
        let said = tried(&ONE, &stubborn).await;
        eprintln!("{what}: {said}");
        assert!(said.contains(words), "{what}: {said}");
        assert!(said.starts_with("stubborn was not activated, and one continues: "), "{said}");
        assert!(!said.contains(FAILS_WITH) || what.ends_with("fails"));
    }
}

/// The old component traps over its snapshot: the primary's instance is lost, and the standby's continues.
#[tokio::test]
async fn a_component_that_breaks_over_its_snapshot_goes_on() {
    let ways: [Way; 3] = [
        (
            "snapshot",
            |wat| Wat { snapshot: "unreachable", ..wat },
            "snapshot: the state machine panicked",
        ),
        (
            "read",
            |wat| Wat { read: "unreachable", ..wat },
            "snapshot-reader.read: the state machine panicked",
        ),
        (
            "a large piece",
            |wat| Wat {
                read: "(i32.store (i32.const 52) (i32.const 0x50000)) (i32.const 48)",
                memory: "16",
                ..wat
            },
            "snapshot-reader.read: the piece is larger than requested",
        ),
    ];
    for (what, make, words) in ways {
        let brittle = load(&make(version("brittle", 1, 1, &[1])));
        let said = tried(&brittle, &TEN).await;
        eprintln!("{what}: {said}");
        assert!(said.contains(words), "{what}: {said}");
    }
}

/// If both components would trap, the reason is the one that comes first in the order of the bytes,
/// independent of the timing of the two threads of a migration.
#[tokio::test]
async fn the_reason_does_not_depend_on_who_is_faster() {
    // Two pieces of 256 KiB, and a trap where the third would begin.
    let read = "(if (i32.ge_u (global.get $version) (i32.const 2)) (then unreachable))
                (global.set $version (i32.add (global.get $version) (i32.const 1)))
                (i32.store (i32.const 48) (i32.const 0)) (i32.store (i32.const 52) (i32.const 0x40000))
                (i32.const 48)";
    let brittle = load(&Wat { read, memory: "16", ..version("brittle", 1, 1, &[1]) });
    let takes_all = Wat { write: "(i32.const 640)", memory: "16", ..version("x", 10, 1, &[1]) };
    let new: [(Wat, &str); 4] = [
        (takes_all.clone(), "snapshot-reader.read: the state machine panicked"),
        (
            Wat { write: FAILS, ..takes_all.clone() },
            "restore-writer.write: the state machine rejects",
        ),
        (
            Wat { finish: FAILS, ..takes_all.clone() },
            "snapshot-reader.read: the state machine panicked",
        ),
        (Wat { restore: FAILS, ..takes_all.clone() }, "restore: the state machine rejects"),
    ];
    for (new, words) in new {
        let new = load(&new);
        for _ in 0..20 {
            let mut node = Node::start_with(brittle.clone());
            assert_eq!(counted(&node.apply(count()).await), 1);
            let outcome = node.activate(&new).await;
            assert!(not_activated(&outcome).contains(words), "{words}: {outcome:?}");
            assert_eq!(counted(&node.apply(count()).await), 2);
            assert_eq!((seen(&node).await, node.worker.fatal_error()), ((2, 1), None));
        }
    }
}

/// An endless snapshot, and an endless restore.
#[tokio::test]
async fn what_never_ends_is_ended() {
    let limits = with(|limits| {
        (limits.memory_bytes_max, limits.fuel_per_state_call) = (1 << 20, 50_000_000);
    });
    let engine = Engine::new(&limits).unwrap();
    let load = |wat: &Wat| Component::load(&engine, wat.component()).unwrap();
    let one = load(&version("one", 1, 1, &[1]));
    let slow = load(&Wat { finish: "(loop (br 0)) unreachable", ..version("slow", 10, 1, &[1]) });
    let said = tried(&one, &slow).await;
    assert!(
        said.contains("restore-writer.finish: the call used up its fuel of 50000000"),
        "{said}"
    );

    let read = "(i32.store (i32.const 48) (i32.const 0)) (i32.store (i32.const 52) (i32.const 50000)) (i32.const 48)";
    let mut node = Node::start_with(load(&Wat { read, ..version("endless", 1, 1, &[1]) }));
    assert_eq!(counted(&node.apply(count()).await), 1);
    let takes_all =
        load(&Wat { write: "(i32.const 640)", memory: "8", ..version("all", 10, 1, &[1]) });
    let outcome = node.activate(&takes_all).await;
    let said = not_activated(&outcome);
    assert!(said.contains("the snapshot has more than 1048576 bytes"), "{said}");
    // The instance was not lost.
    assert_eq!(counted(&node.apply(count()).await), 2);
    assert_eq!(node.worker.metrics().promotions.get(), 0);
}

/// A failed activation does not prevent the next one.
#[tokio::test]
async fn a_component_is_activated_after_one_that_was_not() {
    let mut node = Node::start_with(ONE.clone());
    assert_eq!(counted(&node.apply(count()).await), 1);
    let stubborn = load(&Wat { finish: "unreachable", ..version("stubborn", 10, 1, &[1]) });
    let outcomes = [
        node.push_component(&stubborn).await,
        node.push_component(&HUNDRED).await,
        node.push_component(&TEN).await,
        node.push(count()).await,
    ];
    let mut finished = Vec::new();
    for outcome in outcomes {
        finished.push(outcome.await.unwrap());
    }
    not_activated(&finished[0]);
    assert!(is_activated(&finished[1]));
    assert!(not_activated(&finished[2]).contains("the state has version 2"));
    assert_eq!(counted(&finished[3]), 101);
    assert_eq!(seen(&node).await, (101, 100));
}

/// A recorded failure is final, even if another attempt would succeed. For example, a host that was
/// upgraded meanwhile does not decide otherwise.
#[tokio::test]
async fn a_recorded_failure_is_not_tried_again() {
    let mut node = Node::start_with(ONE.clone());
    assert_eq!(counted(&node.apply(count()).await), 1);
    let stubborn = load(&Wat { finish: "unreachable", ..version("stubborn", 10, 1, &[1]) });
    let refused = node.activate(&stubborn).await;
    let mut log = node.entry_source.all();
    let entry_source = Arc::clone(&node.entry_source);
    drop(node);
    // The component that is in its place now would accept the state.
    let willing = load(&version("stubborn", 10, 1, &[1]));
    log[1].work = conclave_machine::Work::Activate(willing);
    let mut node = Node::start_from(ONE.clone(), entry_source, None);
    let mut last = None;
    for entry in log {
        last = Some(node.push_entry(entry).await.await.unwrap());
    }
    assert_eq!(last.unwrap(), refused);
    assert_eq!(node.worker.metrics().traps_replayed.get(), 1);
    assert_eq!(seen(&node).await, (1, 1));
    node.worker.query(trap(), 0).await.unwrap_err();
    assert_eq!(seen(&node).await, (1, 1));
}

/// A fatal error is not caused by the state machine, and is not an outcome.
#[tokio::test]
async fn a_component_of_another_engine_is_a_fault() {
    let mut node = Node::start_with(ONE.clone());
    assert_eq!(counted(&node.apply(count()).await), 1);
    let engine = Engine::new(&limits()).unwrap();
    let stranger = Component::load(&engine, version("ten", 10, 1, &[1]).component()).unwrap();
    assert!(node.push_component(&stranger).await.await.is_err());
    node.until("a fatal error", |node| node.worker.fatal_error().is_some()).await;
    let fatal_error = node.worker.fatal_error().unwrap();
    assert!(fatal_error.contains("compiled by another engine"), "{fatal_error}");
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_long_restore() {
    let mut node = Node::start_with(ONE.clone());
    assert_eq!(counted(&node.apply(count()).await), 1);
    const BEGUN: &str = "it restores, and will for long";
    let slow = version("slow", 10, 1, &[1]);
    let slow = saying(BEGUN, Wat { finish: "(call $say) (loop (br 0)) unreachable", ..slow });
    let outcome = node.push_component(&load(&slow)).await;
    node.until(BEGUN, |_| printed().contains(BEGUN)).await;
    let started = std::time::Instant::now();
    node.worker.shutdown();
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    assert!(outcome.await.is_err(), "an interrupted activation has no outcome");
    assert_eq!((node.worker.fatal_error(), node.worker.component()), (None, ONE.clone()));
    assert_eq!(node.entry_source.traps().len(), 0);
}
