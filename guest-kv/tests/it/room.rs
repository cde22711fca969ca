//! Goal: a full store refuses to grow, at the same count on every replica, and can be emptied.

use conclave_sdk::{Code, Failure};
use guest_kv::{
    limits::{RECORD_OVERHEAD_BYTES, STORE_BYTES_MAX, VALUE_BYTES_MAX},
    pb::{
        PutRequest, RangeRequest, TxnRequest,
        compare::{Operator, Target},
    },
};

use crate::store::{Store, compare, delete, put, put_text, put_value};

/// Returns a store without room for another value of the largest size.
fn full() -> (Store, usize) {
    let mut store = Store::default();
    let each = 4 + VALUE_BYTES_MAX + RECORD_OVERHEAD_BYTES;
    let count = STORE_BYTES_MAX as usize / each;
    for number in 0..count {
        large(&mut store, number).unwrap();
    }
    assert_eq!(store.kv.bytes(), (count * each) as u64);
    (store, count)
}

fn large(store: &mut Store, number: usize) -> Result<(), Failure> {
    store.put(put_value(&format!("{number:04}"), vec![7; VALUE_BYTES_MAX])).map(drop)
}

fn refused(failure: &Failure) {
    assert_eq!(failure.code, Code::ResourceExhausted, "{failure:?}");
    for part in ["the store is full", &STORE_BYTES_MAX.to_string(), "delete keys"] {
        assert!(failure.message.contains(part), "{part:?} is not in {:?}", failure.message);
    }
}

#[test]
fn a_full_store_refuses_to_grow_and_takes_everything_else() {
    let (mut store, count) = full();
    let before = (store.kv.bytes(), store.range(&RangeRequest::default()).unwrap().revision);
    refused(&large(&mut store, count).unwrap_err());
    let large_put = put("more", &"x".repeat(VALUE_BYTES_MAX));
    refused(&store.batch(vec![put("a", "x"), large_put.clone()]).unwrap_err());
    let txn = TxnRequest {
        compares: vec![compare("0000", Operator::Equal, Target::Exists(true))],
        then: vec![delete("none"), large_put.clone()],
        ..Default::default()
    };
    refused(&store.txn(&txn).unwrap_err());
    let after = (store.kv.bytes(), store.range(&RangeRequest::default()).unwrap().revision);
    assert_eq!(after, before, "a refusal changed the state");

    // Existing keys can be overwritten, small values fit, and deletions make room.
    large(&mut store, 0).unwrap();
    store.put(put_text("small", "x")).unwrap();
    store.batch(vec![delete("0001"), large_put]).unwrap();
    refused(&large(&mut store, count).unwrap_err());
    store.put(put_text("0002", "shorter")).unwrap();
    large(&mut store, count).unwrap();
}

/// Without ticks, commands delete expired keys.
#[test]
fn what_expired_makes_room_once_it_is_deleted() {
    let mut store = Store::default();
    store.put(PutRequest { ttl_ms: 5, ..put_text("soon", "gone") }).unwrap();
    store.put_text("stays", "x");
    let stays = (5 + 1 + RECORD_OVERHEAD_BYTES) as u64;
    assert_eq!(store.kv.bytes(), stays + (4 + 4 + RECORD_OVERHEAD_BYTES) as u64);
    store.time_ms = 5;
    store.delete("none").unwrap();
    assert_eq!(store.kv.bytes(), stays);
}
