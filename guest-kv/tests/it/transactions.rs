//! Goal: a Batch and a Txn are atomic, and a Txn takes the right branch.

use conclave_sdk::{Code, Machine};
use guest_kv::{
    limits::{OPERATIONS_MAX, VALUE_BYTES_MAX},
    pb::{
        Compare, Operation, TxnRequest,
        compare::{Operator, Target},
        operation_result::Result as Given,
    },
};

use crate::store::{Store, compare, delete, get, put, put_value, text};

#[test]
fn a_batch_is_one_revision_and_sees_its_own_work() {
    let mut store = Store::default();
    store.put_text("old", "1");
    let batch = vec![put("a", "1"), put("a", "2"), get("a"), delete("old"), get("old")];
    let response = store.batch(batch).unwrap();
    assert_eq!((response.revision, response.results.len()), (2, 5));
    let given: Vec<_> = response.results.into_iter().map(|result| result.result.unwrap()).collect();
    match &given[..] {
        [
            Given::Put(_),
            Given::Put(second),
            Given::Get(a),
            Given::Delete(old),
            Given::Get(gone),
        ] => {
            assert_eq!((second.revision, second.version), (2, 2));
            assert_eq!(text(a.kv.as_ref().unwrap()).as_deref(), Some("2"));
            assert!(old.deleted);
            assert_eq!(gone.kv, None);
        }
        other => panic!("{other:?}"),
    }
    // A batch of reads creates no revision.
    assert_eq!(store.batch(vec![get("a")]).unwrap().revision, 2);
}

#[test]
fn a_batch_that_fails_leaves_nothing_behind() {
    let mut store = Store::default();
    for number in 0..3 {
        store.put(put_value(&format!("large/{number}"), vec![0; VALUE_BYTES_MAX])).unwrap();
    }
    let before = store.kv.save();
    let many = |count: usize| (0..count).map(|number| put(&format!("{number}"), "x")).collect();
    let reads = vec![put("a", "x"), get("large/0"), get("large/1"), get("large/2")];
    for (batch, code, says) in [
        (vec![put("a", "x"), put("", "x")], Code::InvalidArgument, "operation 1: the key is empty"),
        (
            vec![put("a", "x"), Operation::default()],
            Code::InvalidArgument,
            "operation 1: it is empty",
        ),
        (many(OPERATIONS_MAX + 1), Code::InvalidArgument, "129 operations"),
        (reads, Code::ResourceExhausted, "get fewer keys"),
    ] {
        let failure = store.batch(batch).unwrap_err();
        assert_eq!(failure.code, code);
        assert!(failure.message.contains(says), "{says:?} is not in {:?}", failure.message);
        assert!(store.kv.save() == before, "{says}: the state changed");
    }
    assert_eq!(store.batch(many(OPERATIONS_MAX)).unwrap().results.len(), OPERATIONS_MAX);
}

#[test]
fn every_comparison_holds_when_it_should() {
    use Operator::{Equal, Greater, Less, NotEqual};
    let mut store = Store::default();
    store.put_text("other", "x");
    store.put_text("k", "m");
    store.put_text("k", "m"); // create revision 2, mod revision 3, version 2
    let value = |text: &str| Target::Value(text.into());
    for (key, operator, target, holds) in [
        ("k", Equal, value("m"), true),
        ("k", Equal, Target::Text("m".into()), true),
        ("k", Equal, value("n"), false),
        ("k", NotEqual, value("n"), true),
        ("k", Less, value("n"), true),
        ("k", Greater, value("n"), false),
        ("k", Greater, value("a"), true),
        ("k", Equal, Target::Version(2), true),
        ("k", Greater, Target::Version(1), true),
        ("k", Equal, Target::CreateRevision(2), true),
        ("k", Equal, Target::ModRevision(3), true),
        ("k", Less, Target::ModRevision(3), false),
        ("k", Equal, Target::Exists(true), true),
        ("k", NotEqual, Target::Exists(true), false),
        // A key that does not exist.
        ("gone", Equal, Target::Exists(false), true),
        ("gone", Equal, Target::Version(0), true),
        ("gone", Equal, Target::CreateRevision(0), true),
        ("gone", Equal, Target::ModRevision(0), true),
        ("gone", Equal, value(""), false),
        ("gone", NotEqual, value("m"), false),
        ("gone", Less, value("m"), false),
    ] {
        let compares = vec![compare(key, operator, target.clone())];
        let txn = TxnRequest { compares, ..Default::default() };
        let response = store.txn(&txn).unwrap();
        assert_eq!(response.succeeded, holds, "{key} {operator:?} {target:?}");
    }
}

#[test]
fn one_compare_that_fails_takes_the_other_branch() {
    let mut store = Store::default();
    let absent = |key: &str| compare(key, Operator::Equal, Target::Exists(false));
    let lock = |owner: &str| TxnRequest {
        compares: vec![absent("unrelated"), absent("lock")],
        then: vec![put("lock", owner)],
        r#else: vec![get("lock")],
    };
    assert!(store.txn(&lock("ann")).unwrap().succeeded);
    let second = store.txn(&lock("ben")).unwrap();
    assert!(!second.succeeded);
    match second.results[0].result.as_ref().unwrap() {
        Given::Get(found) => {
            assert_eq!(text(found.kv.as_ref().unwrap()).as_deref(), Some("ann"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(store.text("lock").as_deref(), Some("ann"));
}

#[test]
fn a_transaction_that_makes_no_sense_is_refused() {
    let mut store = Store::default();
    store.put_text("a", "x");
    let before = store.kv.save();
    let then = vec![put("b", "x")];
    let with = |compare| TxnRequest { compares: vec![compare], then: then.clone(), r#else: vec![] };
    let many = vec![get("a"); OPERATIONS_MAX + 1];
    let unknown = Compare { operator: 9, ..compare("a", Operator::Equal, Target::Version(1)) };
    for (txn, says) in [
        (with(Compare { key: "a".into(), ..Default::default() }), "compare 0: no target"),
        (with(unknown), "unknown operator 9"),
        (with(compare("a", Operator::Less, Target::Exists(true))), "only be EQUAL or NOT_EQUAL"),
        (with(compare("", Operator::Equal, Target::Exists(true))), "the key is empty"),
        // The limits also apply to the branch that is not taken.
        (TxnRequest { r#else: many, then: then.clone(), ..Default::default() }, "else has 129"),
        (
            TxnRequest { compares: vec![Compare::default(); 129], ..Default::default() },
            "129 compares",
        ),
    ] {
        let failure = store.txn(&txn).unwrap_err();
        assert_eq!(failure.code, Code::InvalidArgument);
        assert!(failure.message.contains(says), "{says:?} is not in {:?}", failure.message);
    }
    assert_eq!(store.kv.save(), before);
}
