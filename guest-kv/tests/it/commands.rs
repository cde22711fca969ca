//! Goal: Put, Get and Delete work as documented, and refuse requests beyond a limit without
//! changing anything.

use conclave_sdk::{Call, Code, Machine};
use guest_kv::{
    Kv,
    limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX},
    pb::{PutRequest, key_value::Content},
};

use crate::store::{Store, put_text, put_value};

#[test]
fn revisions_count_changes_and_versions_count_puts() {
    let mut store = Store::default();
    let first = store.put_text("a", "1");
    assert_eq!((first.revision, first.create_revision, first.version), (1, 1, 1));
    store.put_text("b", "1");
    let again = store.put_text("a", "2");
    assert_eq!((again.revision, again.create_revision, again.version), (3, 1, 2));

    let found = store.get("a").unwrap();
    assert_eq!(found.revision, 3);
    let kv = found.kv.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (1, 3, 2));

    // A key that is put after its deletion is a new key.
    assert_eq!(store.delete("a").unwrap().revision, 4);
    let again = store.put_text("a", "3");
    assert_eq!((again.revision, again.create_revision, again.version), (5, 5, 1));
}

#[test]
fn a_value_comes_back_as_the_kind_that_was_put() {
    let mut store = Store::default();
    store.put_text("text", "grüß");
    store.put(put_value("value", [0, 255])).unwrap();
    store.put(PutRequest { key: "empty".into(), ..Default::default() }).unwrap();
    for (key, content) in [
        ("text", Content::Text("grüß".into())),
        ("value", Content::Value(vec![0, 255])),
        ("empty", Content::Value(vec![])),
    ] {
        assert_eq!(store.get(key).unwrap().kv.unwrap().content, Some(content), "{key}");
    }
}

#[test]
fn a_missing_key_is_not_found_by_name_and_deleting_it_changes_nothing() {
    let mut store = Store::default();
    store.put_text("a", "1");
    let failure = store.get("config/nope").unwrap_err();
    assert_eq!(failure.code, Code::NotFound);
    assert!(failure.message.contains("\"config/nope\""), "{}", failure.message);

    let before = store.kv.save();
    let deleted = store.delete("config/nope").unwrap();
    assert_eq!((deleted.deleted, deleted.revision), (false, 1));
    assert_eq!(store.kv.save(), before);
}

#[test]
fn what_is_beyond_a_limit_is_refused_with_both_sizes_and_changes_nothing() {
    let long = "k".repeat(KEY_BYTES_MAX);
    let large = vec![7; VALUE_BYTES_MAX];
    let mut store = Store::default();
    store.put(put_value(&long, large.clone())).unwrap();

    let before = store.kv.save();
    for (request, says) in [
        (put_text("", "x"), vec!["the key is empty"]),
        (put_text(&format!("{long}k"), "x"), vec!["the key", "4097 bytes", "4096"]),
        (put_value("k", [large, vec![7]].concat()), vec!["the value", "1048577", "1048576"]),
        (PutRequest { ttl_ms: -1, ..put_text("k", "x") }, vec!["ttl_ms is -1"]),
    ] {
        let failure = store.put(request).unwrap_err();
        assert_eq!(failure.code, Code::InvalidArgument);
        for part in says {
            assert!(failure.message.contains(part), "{part:?} is not in {:?}", failure.message);
        }
    }
    assert_eq!(store.get("").unwrap_err().code, Code::InvalidArgument);
    assert_eq!(store.delete("").unwrap_err().code, Code::InvalidArgument);
    assert!(store.kv.save() == before, "a refused put changed the state");
}

#[test]
fn what_is_not_a_call_of_the_service_is_refused() {
    let mut store = Store::default();
    let context = store.context();
    for (method, request, code) in [
        ("kv.v1.KV/Watch", &b""[..], Code::Unimplemented),
        ("kv.v1.KV/Get", b"", Code::Unimplemented),
        ("kv.v1.KV/Put", b"\xff", Code::InvalidArgument),
        // A key that is not UTF-8.
        ("kv.v1.KV/Put", b"\x0a\x01\xff", Code::InvalidArgument),
    ] {
        let failure = store.kv.apply(&context, &Call::new(method, request)).unwrap_err();
        assert_eq!(failure.code, code, "{method}");
        assert!(failure.message.contains(method), "{}", failure.message);
    }
}

#[test]
fn the_descriptor_set_says_which_methods_are_queries() {
    // A search for the names is enough here: the host's tests serve the set.
    let set = String::from_utf8_lossy(Kv::descriptor_set()).into_owned();
    for name in ["kv.v1", "Put", "Get", "Delete", "Range", "Batch", "Txn"] {
        assert!(set.contains(name), "{name}");
    }
}
