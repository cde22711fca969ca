//! Goal: an expired key is never visible, whether or not it is deleted yet, and is deleted in time.

use conclave_sdk::Code;
use guest_kv::{
    limits::SWEPT_PER_TICK,
    pb::{
        Compare, PutRequest, RangeRequest, TxnRequest,
        compare::{Operator, Target},
    },
};

use crate::store::{Store, compare, put, put_text};

fn put_for(store: &mut Store, key: &str, ttl_ms: i64) {
    store.put(PutRequest { ttl_ms, ..put_text(key, "x") }).unwrap();
}

#[test]
fn an_expired_key_is_invisible_before_anything_deletes_it() {
    let mut store = Store { time_ms: 1_000, ..Store::default() };
    put_for(&mut store, "a", 500);
    store.time_ms = 1_499;
    assert_eq!(store.get("a").unwrap().kv.unwrap().expires_at_ms, 1_500);

    store.time_ms = 1_500;
    assert_eq!(store.get("a").unwrap_err().code, Code::NotFound);
    assert_eq!(store.range(&RangeRequest::default()).unwrap().count, 0);
    assert_eq!(store.held(), 1, "it is not deleted yet");
    let absent: Compare = compare("a", Operator::Equal, Target::Exists(false));
    let txn = TxnRequest { compares: vec![absent], ..Default::default() };
    assert!(store.txn(&txn).unwrap().succeeded);
    assert_eq!(store.held(), 0, "the command deleted it");
}

#[test]
fn a_put_after_expiry_makes_a_new_key_and_a_put_without_ttl_keeps_it_for_good() {
    let mut store = Store::default();
    put_for(&mut store, "a", 10);
    store.time_ms = 10;
    let again = store.put(PutRequest { ttl_ms: 10, ..put_text("a", "y") }).unwrap();
    assert_eq!((again.version, again.create_revision), (1, again.revision));
    assert_eq!(store.wake_at_ms, Some(20));

    store.put_text("a", "z");
    assert_eq!(store.wake_at_ms, None, "nothing expires any more");
    store.time_ms = 1_000_000;
    assert_eq!(store.text("a").as_deref(), Some("z"));
}

#[test]
fn each_reply_asks_to_be_woken_for_the_next_key_to_expire() {
    let mut store = Store { time_ms: 100, ..Store::default() };
    put_for(&mut store, "later", 50);
    assert_eq!(store.wake_at_ms, Some(150));
    put_for(&mut store, "sooner", 20);
    assert_eq!(store.wake_at_ms, Some(120));
    store.put_text("other", "x");
    assert_eq!(store.wake_at_ms, Some(120), "every reply repeats the wake-up time");
    store.batch(vec![put("sooner", "for good")]).unwrap();
    assert_eq!(store.wake_at_ms, Some(150));

    store.time_ms = 150;
    let revision = store.get("other").unwrap().revision;
    store.tick();
    assert_eq!((store.wake_at_ms, store.held()), (None, 2));
    assert_eq!(store.get("other").unwrap().revision, revision, "expiry creates no revision");
}

#[test]
fn a_tick_is_bounded_and_asks_for_another() {
    let mut store = Store::default();
    for number in 0..SWEPT_PER_TICK + 1 {
        put_for(&mut store, &format!("{number}"), 5);
    }
    store.time_ms = 5;
    store.tick();
    assert_eq!((store.held(), store.wake_at_ms), (1, Some(5)));
    store.tick();
    assert_eq!((store.held(), store.wake_at_ms), (0, None));
}

#[test]
fn a_ttl_beyond_the_end_of_time_means_the_end_of_time() {
    let mut store = Store { time_ms: u64::MAX - 5, ..Store::default() };
    put_for(&mut store, "a", i64::MAX);
    assert_eq!(store.get("a").unwrap().kv.unwrap().expires_at_ms, u64::MAX);
}
