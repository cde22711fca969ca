//! Goal: no reply exceeds the limits that every host accepts. A request whose reply would exceed
//! them is refused and changes nothing.
//! Method: [`Store`] asserts the limits of every reply. The host's tests check the component's replies.

use conclave_sdk::{Code, Machine, limits::REQUEST_BYTES_DEFAULT, prost::Message};
use guest_kv::{
    limits::{
        EVENT_BYTES_MAX, KEY_BYTES_MAX, OPERATIONS_MAX, SWEPT_BYTES_PER_COMMAND, VALUE_BYTES_MAX,
    },
    pb::{BatchRequest, Operation, PutRequest, operation, watch_response::Kind},
};
use proptest::prelude::*;

use crate::store::{Store, delete, get, put_text, put_value};

fn put(key: &str, bytes: usize, ttl_ms: i64) -> Operation {
    let put = PutRequest { ttl_ms, ..put_value(key, vec![7; bytes]) };
    Operation { operation: Some(operation::Operation::Put(put)) }
}

fn key(number: usize, bytes: usize) -> String {
    format!("{number:0bytes$}")
}

/// As many puts of this shape as a batch may contain.
fn puts(key_bytes: usize, value_bytes: usize, request_bytes_max: usize) -> Vec<Operation> {
    let mut operations = Vec::new();
    let mut bytes = 0;
    for number in 0..OPERATIONS_MAX {
        let operation = put(&key(number, key_bytes), value_bytes, 0);
        bytes += operation.encoded_len() + 5;
        if bytes > request_bytes_max {
            break;
        }
        operations.push(operation);
    }
    operations
}

#[test]
fn every_batch_within_the_default_limit_of_requests_is_answered() {
    let shapes =
        [(3, 900 << 10), (KEY_BYTES_MAX, 28_600), (3, 1_048_540), (3, 0), (KEY_BYTES_MAX, 0)];
    for (key_bytes, value_bytes) in shapes {
        let mut store = Store::default();
        // Expired keys, whose events are added to those of the batch.
        for number in 0..2 * OPERATIONS_MAX {
            let expires = PutRequest { ttl_ms: 1, ..put_text(&key(number, KEY_BYTES_MAX - 1), "") };
            store.put(expires).unwrap();
        }
        store.time_ms = 1;
        store.told.clear();
        let operations = puts(key_bytes, value_bytes, REQUEST_BYTES_DEFAULT);
        assert!(
            BatchRequest { operations: operations.clone() }.encoded_len() <= REQUEST_BYTES_DEFAULT
        );
        let count = operations.len();
        let answer = store.batch(operations);
        assert_eq!(
            answer.unwrap().results.len(),
            count,
            "keys of {key_bytes}, values of {value_bytes}"
        );
        let expired = store.told.iter().filter(|(_, told)| told.kind() == Kind::Expire).count();
        assert!(
            expired * 2 * (KEY_BYTES_MAX - 1) + 3 * KEY_BYTES_MAX > SWEPT_BYTES_PER_COMMAND,
            "{expired}"
        );
        assert!(
            expired * 2 * (KEY_BYTES_MAX - 1) < SWEPT_BYTES_PER_COMMAND + 3 * KEY_BYTES_MAX,
            "{expired}"
        );
    }
}

/// Possible only if the operator has raised the limit of requests.
#[test]
fn a_batch_whose_events_exceed_the_limit_is_refused_whole() {
    let mut store = Store::default();
    store.put_text("a", "x");
    let before = store.kv.save();
    let batch = puts(3, VALUE_BYTES_MAX, EVENT_BYTES_MAX + VALUE_BYTES_MAX);
    let failure = store.batch(batch).unwrap_err();
    assert_eq!(failure.code, Code::ResourceExhausted);
    assert!(failure.message.contains("divide the request"), "{}", failure.message);
    assert_eq!(store.kv.save(), before);
    assert_eq!(store.told.len(), 1, "no watcher gets an event");
}

/// The shape of an operation, which stays readable in a failed test, unlike a batch of megabytes:
/// the key's number and length, the value's length, and the kind.
type Shape = (usize, usize, usize, u8);

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    // Few keys, so that operations often concern the same key.
    let key_bytes = prop::sample::select(vec![3, 100, KEY_BYTES_MAX]);
    let value_bytes =
        prop::sample::select(vec![0, 1000, 28_600, 500_000, 900 << 10, VALUE_BYTES_MAX]);
    prop::collection::vec((0..4_usize, key_bytes, value_bytes, 0..6_u8), 1..=OPERATIONS_MAX)
}

/// Returns the longest prefix of a batch that fits into a request.
fn fitting(shapes: &[Shape]) -> Vec<Operation> {
    let operation = |&(number, key_bytes, value_bytes, kind): &Shape| {
        let key = key(number, key_bytes);
        match kind {
            0..3 => put(&key, value_bytes, 0),
            3 => put(&key, value_bytes, 5),
            4 => get(&key),
            _ => delete(&key),
        }
    };
    let mut bytes = 0;
    let fits = |operation: &Operation| {
        bytes += operation.encoded_len() + 8;
        bytes <= REQUEST_BYTES_DEFAULT
    };
    shapes.iter().map(operation).take_while(fits).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn batches_at_the_limits_are_answered_or_change_nothing(
        batches in prop::collection::vec((shapes(), 0..8_u64), 1..4)
    ) {
        let mut store = Store::default();
        for (batch, wait_ms) in batches {
            store.time_ms += wait_ms;
            let before = store.kv.save();
            let told = store.told.len();
            if let Err(failure) = store.batch(fitting(&batch)) {
                prop_assert_eq!(failure.code, Code::ResourceExhausted, "{}", failure.message);
                prop_assert!(store.kv.save() == before && store.told.len() == told);
            }
        }
    }
}
