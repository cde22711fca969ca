//! Goal: the pages together are the range. Each page is bounded and reports whether more keys follow.

use conclave_sdk::{Code, prost::Message};
use guest_kv::{
    limits::{PAGE_KEYS_DEFAULT, PAGE_KEYS_MAX, RESPONSE_BYTES_MAX, VALUE_BYTES_MAX},
    pb::RangeRequest,
};

use crate::store::{Store, put_value};

fn store(keys: &[&str]) -> Store {
    let mut store = Store::default();
    for key in keys {
        store.put_text(key, key);
    }
    store
}

/// Returns the keys of all pages.
fn pages(store: &Store, mut request: RangeRequest) -> Vec<String> {
    let mut keys = Vec::new();
    loop {
        let page = store.range(&request).unwrap();
        assert_eq!(page.count as usize, page.kvs.len());
        assert_eq!(page.more, !page.next_page_token.is_empty());
        keys.extend(page.kvs.into_iter().map(|kv| kv.key));
        if !page.more {
            return keys;
        }
        request.page_token = page.next_page_token;
    }
}

#[test]
fn prefixes_and_ranges_select_what_they_say() {
    let store = store(&["a", "a/1", "a/2", "a0", "b", "b/1", "ä"]);
    let range = |prefix: &str, from: &str, to: &str| RangeRequest {
        prefix: prefix.into(),
        from: from.into(),
        to: to.into(),
        ..Default::default()
    };
    for (request, expected) in [
        (range("", "", ""), "a a/1 a/2 a0 b b/1 ä"),
        (range("a/", "", ""), "a/1 a/2"),
        (range("a", "", ""), "a a/1 a/2 a0"),
        (range("c", "", ""), ""),
        (range("", "a/2", "b"), "a/2 a0"),
        (range("", "b", ""), "b b/1 ä"),
        (range("", "", "a/2"), "a a/1"),
        (range("", "a", "a"), ""),
    ] {
        for limit in [0, 1, 2, 100] {
            let keys = pages(&store, RangeRequest { limit, ..request.clone() });
            assert_eq!(keys.join(" "), expected, "{request:?} by {limit}");
        }
    }
}

#[test]
fn keys_only_leaves_the_values_out() {
    let store = store(&["a"]);
    let page = store.range(&RangeRequest { keys_only: true, ..Default::default() }).unwrap();
    assert_eq!(page.kvs[0].content, None);
    assert_eq!(page.kvs[0].version, 1);
}

#[test]
fn a_page_has_a_default_length_and_a_bound_in_bytes() {
    let mut store = Store::default();
    for number in 0..PAGE_KEYS_DEFAULT + 1 {
        store.put_text(&format!("small/{number:05}"), "x");
    }
    let page = store.range(&RangeRequest::default()).unwrap();
    assert_eq!((page.kvs.len(), page.more), (PAGE_KEYS_DEFAULT, true));

    for number in 0..5 {
        store.put(put_value(&format!("large/{number}"), vec![0; VALUE_BYTES_MAX])).unwrap();
    }
    let request = RangeRequest { prefix: "large/".into(), ..Default::default() };
    let page = store.range(&request).unwrap();
    assert!(page.encoded_len() <= RESPONSE_BYTES_MAX + 1024, "{}", page.encoded_len());
    assert!(page.more);
    assert_eq!(pages(&store, request).len(), 5);
}

#[test]
fn a_page_token_outlives_its_key() {
    let mut store = store(&["a", "b", "c"]);
    let page = store.range(&RangeRequest { limit: 2, ..Default::default() }).unwrap();
    store.delete("b").unwrap();
    let request = RangeRequest { page_token: page.next_page_token, ..Default::default() };
    assert_eq!(pages(&store, request), ["c"]);
}

#[test]
fn a_request_that_makes_no_sense_is_refused() {
    let store = store(&["a"]);
    let request = RangeRequest::default;
    for (request, says) in [
        (RangeRequest { prefix: "a".into(), from: "a".into(), ..request() }, "not both"),
        (RangeRequest { from: "b".into(), to: "a".into(), ..request() }, "to < from"),
        (RangeRequest { limit: PAGE_KEYS_MAX as u32 + 1, ..request() }, "at most 10000"),
        (RangeRequest { prefix: "a".into(), page_token: "b".into(), ..request() }, "page token"),
        (RangeRequest { from: "b".into(), page_token: "a".into(), ..request() }, "page token"),
        (RangeRequest { prefix: "x".repeat(5000), ..request() }, "5000 bytes"),
    ] {
        let failure = store.range(&request).unwrap_err();
        assert_eq!(failure.code, Code::InvalidArgument);
        assert!(failure.message.contains(says), "{says:?} is not in {:?}", failure.message);
    }
}
