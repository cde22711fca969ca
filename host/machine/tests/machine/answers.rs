//! Answers that break the component ABI. No compiler produces them, and no state machine may stop a
//! node with them. Each is an outcome, with the same message on every node.

use conclave_machine::{Component, Engine, SnapshotError};
use conclave_types::{Call, Outcome, TrapKind};

use crate::support::{Node, limits, read, with};
use conclave_testing::wat::Wat;

fn load(wat: &Wat) -> Component {
    Component::load(&Engine::new(&limits()).unwrap(), wat.component()).unwrap()
}

fn raw(request: &'static [u8]) -> Call {
    Call { method: "any".into(), request: request.into(), principal: "".into() }
}

/// Bodies of `apply` that return an invalid answer, with the class of the trap.
const BAD: [(&str, TrapKind, &str); 12] = [
    ("an answer outside of memory", TrapKind::BadAnswer, "(i32.const 0x7ffffff0)"),
    ("an answer at an odd address", TrapKind::BadAnswer, "(i32.const 257)"),
    ("no such case of the result", TrapKind::BadAnswer, "(i32.store8 (i32.const 256) (i32.const 9)) (i32.const 256)"),
    (
        "a response outside of memory",
        TrapKind::BadAnswer,
        "(i32.store (i32.const 264) (i32.const 131000)) (i32.store (i32.const 268) (i32.const 1000)) (i32.const 256)",
    ),
    (
        "a response that wraps around",
        TrapKind::BadAnswer,
        "(i32.store (i32.const 264) (i32.const -1)) (i32.store (i32.const 268) (i32.const -1)) (i32.const 256)",
    ),
    (
        "events at an odd address",
        TrapKind::BadAnswer,
        "(i32.store (i32.const 272) (i32.const 3)) (i32.store (i32.const 276) (i32.const 1)) (i32.const 256)",
    ),
    (
        "no such case of an option",
        TrapKind::BadAnswer,
        "(i32.store8 (i32.const 280) (i32.const 7)) (i32.const 256)",
    ),
    (
        "no such code of a failure",
        TrapKind::BadAnswer,
        "(i32.store8 (i32.const 256) (i32.const 1)) (i32.store8 (i32.const 264) (i32.const 99)) (i32.const 256)",
    ),
    (
        "a message that is not Unicode",
        TrapKind::BadAnswer,
        "(i32.store8 (i32.const 256) (i32.const 1)) (i32.store8 (i32.const 600) (i32.const 255))
         (i32.store (i32.const 268) (i32.const 600)) (i32.store (i32.const 272) (i32.const 1)) (i32.const 256)",
    ),
    (
        "a message outside of memory",
        TrapKind::BadAnswer,
        "(i32.store8 (i32.const 256) (i32.const 1))
         (i32.store (i32.const 268) (i32.const 131072)) (i32.store (i32.const 272) (i32.const 1)) (i32.const 256)",
    ),
    ("the engine's own stack", TrapKind::StackExhausted, "(call $recurse (i32.const 0))"),
    (
        "memory past what 32 bits reach",
        TrapKind::MemoryExhausted,
        "(drop (memory.grow (i32.const 65535))) unreachable",
    ),
];

#[tokio::test]
async fn an_answer_that_breaks_the_abi_is_an_outcome() {
    for (what, kind, apply) in BAD {
        let mut node = Node::start_with(load(&Wat { apply, ..Wat::default() }));
        let outcome = node.apply(raw(b"request")).await;
        eprintln!("{what}: {outcome:?}");
        assert!(
            matches!(&outcome, Outcome::Trap(trap) if trap.kind == kind),
            "{what}: {outcome:?}"
        );
        // A worker continues after it: the same entry traps again.
        assert_eq!(node.apply(raw(b"request")).await, outcome);
        assert_eq!(node.worker.fatal_error(), None);
    }
}

#[tokio::test]
async fn memory_that_is_denied_and_coped_with_is_no_trap() {
    let apply = "(drop (memory.grow (i32.const 60000))) (i32.const 256)";
    let mut node = Node::start_with(load(&Wat { apply, ..Wat::default() }));
    assert!(matches!(node.apply(raw(b"")).await, Outcome::Reply(_)));
    // A panic in a later call is not attributed to memory exhaustion of this call.
    let apply = "(if (i64.eq (local.get 0) (i64.const 2)) (then unreachable)) (drop (memory.grow (i32.const 60000))) \
                 (i32.const 256)";
    let mut node = Node::start_with(load(&Wat { apply, ..Wat::default() }));
    assert!(matches!(node.apply(raw(b"")).await, Outcome::Reply(_)));
    let outcome = node.apply(raw(b"")).await;
    assert!(matches!(&outcome, Outcome::Trap(trap) if trap.kind == TrapKind::Panic), "{outcome:?}");
}

#[tokio::test]
async fn an_answer_just_above_the_limit_is_rolled_back() {
    // Counts, then answers with as many bytes as the request has.
    let apply = "(i64.store (i32.const 8) (i64.add (i64.load (i32.const 8)) (i64.const 1)))
        (i32.store8 (i32.const 256) (i32.const 0))
        (i32.store (i32.const 264) (local.get 7)) (i32.store (i32.const 268) (local.get 8)) (i32.const 256)";
    let limits = with(|limits| limits.response_bytes_max = 64 << 10);
    let wat = Wat { apply, memory: "16", ..Wat::default() };
    let component = Component::load(&Engine::new(&limits).unwrap(), wat.component()).unwrap();
    let mut node = Node::start_with(component);
    let request = |bytes: usize| Call { request: vec![7; bytes].into(), ..raw(b"") };
    assert!(
        matches!(node.apply(request(64 << 10)).await, Outcome::Reply(reply) if reply.response.len() == 64 << 10)
    );
    let outcome = node.apply(request((64 << 10) + 1)).await;
    assert!(
        matches!(&outcome, Outcome::Trap(trap) if trap.kind == TrapKind::BadAnswer),
        "{outcome:?}"
    );
    assert!(matches!(node.apply(request(1)).await, Outcome::Reply(_)));
    let answered = node.worker.query(raw(b""), node.index).await.unwrap();
    assert_eq!(
        answered.result.unwrap()[..],
        2u64.to_le_bytes(),
        "the rejected call changed the state"
    );
}

#[tokio::test]
async fn a_snapshot_that_traps_costs_the_reader_alone() {
    let node = Node::start_with(load(&Wat { read: "unreachable", ..Wat::default() }));
    for _ in 0..3 {
        let stream = node.worker.snapshot(0).await.unwrap();
        let error = read(stream).await.unwrap_err();
        assert!(
            matches!(&error, SnapshotError::Trap(trap) if trap.kind == TrapKind::Panic),
            "{error:?}"
        );
        node.worker.query(raw(b""), 0).await.unwrap();
    }
    assert_eq!(node.worker.fatal_error(), None);
}

#[tokio::test]
async fn a_piece_of_a_snapshot_above_the_limit_is_refused() {
    let read_two_mebibytes =
        "(i32.store (i32.const 48) (i32.const 0)) (i32.store (i32.const 52) (i32.const 0x200000))
        (i32.const 48)";
    let node =
        Node::start_with(load(&Wat { read: read_two_mebibytes, memory: "64", ..Wat::default() }));
    let stream = node.worker.snapshot(0).await.unwrap();
    let error = read(stream).await.unwrap_err();
    assert!(
        matches!(&error, SnapshotError::Trap(trap) if trap.kind == TrapKind::BadAnswer),
        "{error:?}"
    );
}
