//! Goal: a watcher that gets every change can reconstruct the content of the store.

use std::collections::BTreeMap;

use conclave_sdk::{Call, Code, Machine, Subscription, prost::Message, testing::Log};
use guest_kv::{
    Kv,
    limits::{SWEPT_BYTES_PER_COMMAND, SWEPT_BYTES_PER_TICK, VALUE_BYTES_MAX},
    pb::{PutRequest, RangeRequest, WatchRequest, WatchResponse, watch_response::Kind},
};

use crate::store::{Store, delete, get, put, put_text, put_value, text};

fn prefix(prefix: &str) -> WatchRequest {
    WatchRequest { prefix: prefix.into(), ..WatchRequest::default() }
}

/// Returns the kinds and keys of all events, from the beginning.
fn told(store: &Store) -> Vec<(Kind, &str)> {
    store.told.iter().map(|(key, message)| (message.kind(), key.as_str())).collect()
}

#[test]
fn every_change_is_told_once_with_what_it_left() {
    let mut store = Store { time_ms: 1_000, ..Store::default() };
    let response = store.put(PutRequest { ttl_ms: 500, ..put_text("a", "x") }).unwrap();
    let message = &store.told[0].1;
    let kv = message.kv.as_ref().unwrap();
    assert_eq!((message.kind(), text(kv).as_deref()), (Kind::Put, Some("x")));
    assert_eq!((message.revision, message.index), (response.revision, 1));
    assert_eq!(Some(kv), store.get("a").unwrap().kv.as_ref());

    let batch = store.batch(vec![put("b", "1"), get("a"), put("b", "2"), delete("a")]).unwrap();
    assert_eq!(told(&store)[1..], [(Kind::Put, "b"), (Kind::Put, "b"), (Kind::Delete, "a")]);
    let gone = store.told[3].1.kv.as_ref().unwrap();
    assert_eq!((gone.mod_revision, &gone.content), (batch.revision, &None));

    // Commands that change nothing emit no events.
    store.told.clear();
    assert!(store.batch(vec![put("c", "1"), put("", "x")]).is_err());
    assert!(!store.delete("none").unwrap().deleted);
    assert_eq!(told(&store), []);
}

#[test]
fn an_expired_key_is_told_when_it_is_deleted_and_a_failure_leaves_it_for_later() {
    let mut store = Store::default();
    for key in ["a", "b", "c"] {
        store.put(PutRequest { ttl_ms: 5, ..put_text(key, "x") }).unwrap();
    }
    store.told.clear();
    store.time_ms = 5;
    // A failure has no events.
    assert!(store.put(put_text("", "x")).is_err());
    assert_eq!((told(&store).len(), store.held()), (0, 3));
    // A command that puts one of the expired keys: first the key expires, then it exists again.
    store.put_text("b", "new");
    assert_eq!(
        told(&store),
        [(Kind::Expire, "a"), (Kind::Expire, "b"), (Kind::Expire, "c"), (Kind::Put, "b")]
    );
    store.put(PutRequest { ttl_ms: 5, ..put_text("d", "x") }).unwrap();
    store.told.clear();
    store.time_ms = 10;
    store.tick();
    assert_eq!(told(&store), [(Kind::Expire, "d")]);
}

/// The events of a sweep are part of one reply, which has a limit.
#[test]
fn a_sweep_of_long_keys_is_bounded_in_bytes() {
    let mut store = Store::default();
    let count = 1000;
    for number in 0..count {
        let key = format!("{number:04}{}", "k".repeat(4000));
        store.put(PutRequest { ttl_ms: 5, ..put_text(&key, "x") }).unwrap();
    }
    let bytes = |store: &Store| {
        let messages = store.told.iter().map(|(key, message)| key.len() + message.encoded_len());
        messages.sum::<usize>()
    };
    store.time_ms = 5;
    store.told.clear();
    store.delete("none").unwrap();
    assert!((1..SWEPT_BYTES_PER_COMMAND + 20_000).contains(&bytes(&store)));
    store.told.clear();
    store.tick();
    assert!((SWEPT_BYTES_PER_TICK / 2..SWEPT_BYTES_PER_TICK + 50_000).contains(&bytes(&store)));
    while store.wake_at_ms.is_some() {
        store.tick();
    }
    assert_eq!(store.held(), 0);
}

#[test]
fn a_watcher_is_told_its_key_or_prefix_and_what_is_there_at_first() {
    let mut store = Store::default();
    for key in ["app/a", "app/b", "apple", "b"] {
        store.put_text(key, key);
    }
    store.put(PutRequest { ttl_ms: 1, ..put_text("app/c", "gone") }).unwrap();
    store.time_ms = 10;
    let holds = |subscription: &Subscription, topic: &str| {
        *topic.as_bytes() >= *subscription.from_topic
            && (subscription.to_topic.is_empty() || *topic.as_bytes() < *subscription.to_topic)
    };
    let request = WatchRequest { initial: true, ..prefix("app/") };
    let watch = store.watch(&request).unwrap();
    assert!(holds(&watch, "app/x") && !holds(&watch, "apple") && !holds(&watch, "app"));
    let initial: Vec<WatchResponse> =
        watch.initial.iter().map(|message| WatchResponse::decode(&**message).unwrap()).collect();
    let (ready, initial) = initial.split_last().unwrap();
    assert_eq!((ready.kind(), &ready.kv, ready.index), (Kind::Ready, &None, store.index));
    let keys: Vec<_> = initial.iter().map(|message| &*message.kv.as_ref().unwrap().key).collect();
    assert_eq!(keys, ["app/a", "app/b"]);
    assert!(initial.iter().all(|message| message.kind() == Kind::Initial));
    assert!(initial.iter().all(|message| message.index == store.index));

    let one = WatchRequest { key: "app/a".into(), initial: true, ..WatchRequest::default() };
    let watch = store.watch(&one).unwrap();
    assert!(holds(&watch, "app/a") && !holds(&watch, "app/a\0") && !holds(&watch, "app/aa"));
    assert_eq!(watch.initial.len(), 2);
    let all = store.watch(&WatchRequest::default()).unwrap();
    assert!(holds(&all, "") && holds(&all, "\u{10ffff}") && all.initial.is_empty());

    let both = WatchRequest { key: "a".into(), ..prefix("a") };
    assert_eq!(store.watch(&both).unwrap_err().code, Code::InvalidArgument);
    assert_eq!(store.watch(&prefix(&"x".repeat(5000))).unwrap_err().code, Code::InvalidArgument);
}

#[test]
fn too_much_at_first_is_refused_with_another_way() {
    let mut store = Store::default();
    for key in ["a", "b", "c"] {
        store.put(put_value(key, vec![7; VALUE_BYTES_MAX])).unwrap();
    }
    let failure = store.watch(&WatchRequest { initial: true, ..prefix("") }).unwrap_err();
    assert_eq!(failure.code, Code::ResourceExhausted);
    assert!(failure.message.contains("conclave-from-index"), "{failure:?}");
    store.watch(&WatchRequest { initial: true, ..prefix("a") }).unwrap();
}

/// Builds a copy of the store from its events only.
#[test]
fn a_copy_made_of_the_changes_is_the_store() {
    let mut store = Store::default();
    let mut random = 1_u64;
    for round in 0..2000 {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let key = format!("{}", (random >> 33) % 20);
        let _ = match (random >> 60) % 8 {
            0 => store.delete(&key).map(drop),
            1 => store.batch(vec![put(&key, "in a batch"), delete("3"), put("4", &key)]).map(drop),
            2 => store.put(PutRequest { ttl_ms: 7, ..put_text(&key, "for a while") }).map(drop),
            3 => store.batch(vec![put(&key, "never"), put("", "x")]).map(drop),
            _ => store.put(put_text(&key, &format!("{round}"))).map(drop),
        };
        store.time_ms += 1;
        if round % 50 == 0 {
            store.tick();
        }
    }
    store.time_ms += 100;
    store.tick();
    let mut copy = BTreeMap::new();
    for (key, message) in &store.told {
        match message.kind() {
            Kind::Put => _ = copy.insert(key.clone(), message.kv.clone().unwrap()),
            Kind::Delete | Kind::Expire => _ = copy.remove(key),
            Kind::Initial | Kind::Ready | Kind::Relist => panic!("{message:?}"),
        }
    }
    let range = store.range(&RangeRequest::default()).unwrap();
    assert_eq!(copy.into_values().collect::<Vec<_>>(), range.kvs);
    assert!(range.count > 5);
}

#[test]
fn subscribing_keeps_the_contract() {
    let mut log = Log::new();
    for key in ["a", "b", "c"] {
        log.apply(Call::of("kv.v1.KV/Put", &PutRequest { ttl_ms: 5, ..put_text(key, "x") }));
        log.wait_ms(2);
    }
    log.tick();
    log.watch(Call::of("kv.v1.KV/Watch", &WatchRequest { initial: true, ..prefix("") }));
    log.watch(Call::new("kv.v1.KV/None", []));
    conclave_sdk::testing::check::<Kv>(&log);
    let failure = Kv::default().subscribe(&log.query_context(0), &Call::new("kv.v1.KV/Get", []));
    assert_eq!(failure.unwrap_err().code, Code::Unimplemented);
}
