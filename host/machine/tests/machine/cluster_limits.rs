//! Limits that decide outcomes: each entry is applied with the limits of its index, in every instance.

use bytes::Bytes;
use conclave_machine::{Component, Engine, Work, rehearse};
use conclave_types::{Call, Outcome, TrapKind, limits::ClusterLimits};

use crate::{
    entry_source::Saved,
    support::{Node, SEED, trap_kind, with},
};
use conclave_testing::wat::Wat;

/// Uses about 2×10⁶ units of fuel and 4 MiB of memory, then counts.
const COSTLY: &str = "(local.set 9 (i32.const 400000))
    (loop (local.set 9 (i32.sub (local.get 9) (i32.const 1))) (br_if 0 (local.get 9)))
    (if (i32.eq (memory.grow (i32.const 64)) (i32.const -1)) (then unreachable))
    (i64.store (i32.const 8) (i64.add (i64.load (i32.const 8)) (i64.const 1))) (i32.const 256)";

fn costly(name: &'static str, limits: ClusterLimits) -> Component {
    load(costly_wat(name), limits)
}

fn costly_wat(name: &'static str) -> Wat {
    Wat {
        apply: COSTLY,
        name,
        query: "(if (i32.eqz (local.get 6)) (then unreachable))
                (i32.store8 (i32.const 512) (i32.const 0)) (i32.store (i32.const 516) (i32.const 8))
                (i32.store (i32.const 520) (i32.const 8)) (i32.const 512)",
        // Eight bytes once, then the end.
        snapshot: "(i32.store (i32.const 24) (i32.const 0)) (call $new_reader (i32.const 1))",
        read: "(i32.store (i32.const 48) (i32.const 8))
               (i32.store (i32.const 52) (select (i32.const 0) (i32.const 8) (i32.load (i32.const 24))))
               (i32.store (i32.const 24) (i32.const 1)) (i32.const 48)",
        write: "(i64.store (i32.const 8) (i64.load (local.get 1))) (i32.const 256)",
        ..Wat::default()
    }
}

fn load(wat: Wat, limits: ClusterLimits) -> Component {
    let limits = with(|cluster| *cluster = limits);
    Component::load(&Engine::new(&limits).unwrap(), wat.component()).unwrap()
}

fn fuel(fuel_per_call: u64) -> ClusterLimits {
    ClusterLimits { fuel_per_call, memory_bytes_max: 64 << 20, ..ClusterLimits::DEFAULT }
}

/// Less fuel than a call needs, and more.
const LITTLE: u64 = 1_000_000;
const PLENTY: u64 = 10_000_000;

fn raw(method: &str) -> Call {
    Call { method: method.into(), request: Bytes::new(), principal: "".into() }
}

async fn apply(node: &mut Node) -> Outcome {
    node.apply(raw("any")).await
}

async fn count(node: &Node) -> u64 {
    let answered = node.worker.query(raw("any"), node.index).await.unwrap();
    u64::from_le_bytes(answered.result.unwrap().as_ref().try_into().unwrap())
}

/// Loses the standby and waits for the next one.
async fn rebuild_standby(node: &Node) {
    let builds = node.worker.metrics().standby_builds.get();
    node.worker.query(raw(""), node.index).await.unwrap_err();
    node.until("a standby is built", |node| node.worker.metrics().standby_builds.get() > builds)
        .await;
    count(node).await;
}

#[tokio::test]
async fn entry_is_applied_under_the_limits_of_its_index_also_in_a_replay() {
    let mut node = Node::start_with(costly("costly", fuel(LITTLE)));
    assert_eq!(trap_kind(&apply(&mut node).await), TrapKind::FuelExhausted);
    let set = node.set_limits(fuel(PLENTY)).await;
    assert!(matches!(set, Outcome::Reply(ref reply) if reply.response == fuel(PLENTY).to_bytes()));
    assert!(matches!(apply(&mut node).await, Outcome::Reply(_)));
    node.set_limits(fuel(LITTLE)).await;
    assert_eq!(trap_kind(&apply(&mut node).await), TrapKind::FuelExhausted);
    assert_eq!(count(&node).await, 1);
    let digest = node.digest().await;

    // Without the records of the traps, everything is computed again.
    let mut replay = Node::start_with(costly("costly", fuel(LITTLE)));
    for entry in node.entry_source.all() {
        replay.push_entry(entry).await.await.unwrap();
    }
    assert_eq!((replay.digest().await, count(&replay).await), (digest, 1));

    // The limits themselves are part of the digest.
    let mut other = Node::start_with(costly("costly", fuel(LITTLE)));
    for mut entry in node.entry_source.all() {
        if entry.work == Work::SetLimits(fuel(PLENTY)) {
            entry.work = Work::SetLimits(fuel(PLENTY + 1));
        }
        other.push_entry(entry).await.await.unwrap();
    }
    assert_ne!(other.digest().await, digest);
}

#[tokio::test]
async fn memory_follows_the_limits_in_both_instances() {
    let memory = |memory_bytes_max| ClusterLimits { memory_bytes_max, ..fuel(PLENTY) };
    let mut node = Node::start_with(costly("costly", memory(64 << 20)));
    assert!(matches!(apply(&mut node).await, Outcome::Reply(_)));
    node.set_limits(memory(6 << 20)).await;
    assert_eq!(trap_kind(&apply(&mut node).await), TrapKind::MemoryExhausted);
    // The standby was promoted.
    assert_eq!(trap_kind(&apply(&mut node).await), TrapKind::MemoryExhausted);
    node.set_limits(memory(64 << 20)).await;
    assert!(matches!(apply(&mut node).await, Outcome::Reply(_)));
    assert_eq!((count(&node).await, node.worker.fatal_error()), (2, None));
}

#[tokio::test]
async fn standby_that_is_built_from_the_log_gets_its_limits() {
    let mut node = Node::start_with(costly("costly", fuel(LITTLE)));
    node.set_limits(fuel(PLENTY)).await;
    assert!(matches!(apply(&mut node).await, Outcome::Reply(_)));
    rebuild_standby(&node).await;
    assert_eq!((count(&node).await, node.worker.fatal_error()), (1, None));
    // The standby becomes the primary.
    let mut trapping = fuel(PLENTY);
    trapping.memory_bytes_max = 5 << 20;
    node.set_limits(trapping).await;
    assert_eq!(trap_kind(&apply(&mut node).await), TrapKind::MemoryExhausted);
    node.set_limits(fuel(PLENTY)).await;
    assert!(matches!(apply(&mut node).await, Outcome::Reply(_)));
    rebuild_standby(&node).await;
    assert_eq!((count(&node).await, node.worker.fatal_error()), (2, None));
}

#[tokio::test]
async fn state_is_restored_with_its_limits() {
    let mut node = Node::start_with(costly("costly", fuel(LITTLE)));
    node.set_limits(fuel(PLENTY)).await;
    apply(&mut node).await;
    let saved = Saved { limits: fuel(PLENTY), ..node.snapshot().await };
    let mut next = Node::start_from(
        node.worker.component(),
        node.entry_source.clone(),
        Some(saved.clone().state()),
    );
    assert!(matches!(apply(&mut next).await, Outcome::Reply(_)));
    // The same when it is restored beside a running state.
    let later = Saved { index: 100, ..saved };
    let mut running = Node::start_with(node.worker.component());
    running.worker.restore(later.state_in(8)).await.unwrap();
    running.index = 100;
    assert!(matches!(apply(&mut running).await, Outcome::Reply(_)));
    assert_eq!(count(&running).await, 2);
}

/// Regression: a state that had grown to half of the memory could no longer be saved, and a node
/// with it did not start.
#[tokio::test]
async fn state_that_has_grown_to_the_limit_is_saved_and_restored() {
    // Saving needs a buffer as large as the state; restoring needs both the state and the buffer.
    const GROW: &str =
        "(if (i32.eq (memory.grow (i32.mul (i32.const 64) (i32.wrap_i64 (i64.load (i32.const 8)))))
        (i32.const -1)) (then unreachable))";
    let snapshot =
        format!("{GROW} (i32.store (i32.const 24) (i32.const 0)) (call $new_reader (i32.const 1))");
    let finish = format!("{GROW} {GROW} {}", Wat::default().finish);
    let wat = Wat { snapshot: snapshot.leak(), finish: finish.leak(), ..costly_wat("growing") };
    let limits = ClusterLimits { memory_bytes_max: 16 << 20, ..fuel(PLENTY) };
    let component = load(wat, limits);
    let mut node = Node::start_with(component.clone());
    let mut grown = 0;
    while matches!(apply(&mut node).await, Outcome::Reply(_)) {
        grown += 1;
    }
    assert_eq!((grown, trap_kind(&apply(&mut node).await)), (3, TrapKind::MemoryExhausted));
    let saved = Saved { limits, ..node.snapshot().await };
    let mut restored =
        Node::start_from(component, node.entry_source.clone(), Some(saved.state_in(8)));
    assert_eq!((count(&restored).await, restored.worker.fatal_error()), (3, None));
    // The memory above the limit of the state is only for moving the state.
    assert_eq!(trap_kind(&apply(&mut restored).await), TrapKind::MemoryExhausted);
}

#[tokio::test]
async fn component_that_is_activated_or_rehearsed_has_the_limits() {
    let mut node = Node::start_with(costly("costly", fuel(LITTLE)));
    let engine = node.worker.component().engine().clone();
    let next = Wat { apply: COSTLY, name: "next", ..Wat::default() }.component();
    let next = Component::load(&engine, next).unwrap();
    let before = node.snapshot().await;
    node.set_limits(fuel(PLENTY)).await;
    apply(&mut node).await;
    let entries = || node.entry_source.all().into_iter().map(Ok);
    let rehearsed = rehearse(&next, SEED, before.state(), entries(), || false).unwrap();
    assert_eq!((rehearsed.entries, rehearsed.index), (1, node.index));
    assert!(matches!(node.activate(&next).await, Outcome::Reply(_)));
    assert!(matches!(apply(&mut node).await, Outcome::Reply(_)));
    assert_eq!(node.worker.fatal_error(), None);
}
