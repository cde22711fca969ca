//! One state machine in several versions. Each counts by its own step, and its answers name the step.

use std::sync::LazyLock;

use bytes::Bytes;
use conclave_machine::{Component, Engine};
use conclave_types::{Call, Outcome};

use crate::support::{Node, limits};
pub(crate) use conclave_testing::counters::{FAILS, FAILS_WITH, version};
use conclave_testing::wat::Wat;

/// All versions of one test run share an engine, as those of a node do.
pub(crate) static ENGINE: LazyLock<Engine> = LazyLock::new(|| Engine::new(&limits()).unwrap());

pub(crate) fn load(wat: &Wat) -> Component {
    Component::load(&ENGINE, wat.component()).unwrap()
}

/// Counts by one.
pub(crate) static ONE: LazyLock<Component> = LazyLock::new(|| load(&version("one", 1, 1, &[1])));
/// Counts by ten, in the same format.
pub(crate) static TEN: LazyLock<Component> = LazyLock::new(|| load(&version("ten", 10, 1, &[1])));
/// Counts by a hundred, in another format, and restores the old one.
pub(crate) static HUNDRED: LazyLock<Component> =
    LazyLock::new(|| load(&version("hundred", 100, 2, &[1, 2])));

/// Returns a call that counts. As a query, it returns the count.
pub(crate) fn count() -> Call {
    Call { method: "any".into(), request: Bytes::new(), principal: "".into() }
}

/// Returns a call, or a query, that traps.
pub(crate) fn trap() -> Call {
    Call { request: Bytes::from_static(b"trap"), ..count() }
}

/// Returns the number in an outcome.
pub(crate) fn counted(outcome: &Outcome) -> i64 {
    match outcome {
        Outcome::Reply(reply) => i64::from_le_bytes(reply.response[..].try_into().unwrap()),
        other => panic!("no reply: {other:?}"),
    }
}

pub(crate) fn is_activated(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Reply(reply) if reply.response.is_empty())
}

/// Queries the standby: the index, the number, and the step of the version that answers.
pub(crate) async fn seen_at(node: &Node, index_min: u64) -> (u64, i64, i64) {
    let answered = node.worker.query(count(), index_min).await.unwrap();
    let words = answered.result.unwrap();
    let word = |at: usize| i64::from_le_bytes(words[at..at + 8].try_into().unwrap());
    (answered.index, word(0), word(8))
}

/// Returns the number and the step after all queued entries.
pub(crate) async fn seen(node: &Node) -> (i64, i64) {
    let (_, number, step) = seen_at(node, node.index).await;
    (number, step)
}
