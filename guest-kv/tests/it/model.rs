//! Goal: the store behaves like a map and satisfies the contract for any sequence of commands.
//! Method: random commands, compared with a simple `BTreeMap` model, and the conformance tests.

use std::collections::BTreeMap;

use conclave_sdk::{
    Call, Failure, Machine,
    testing::{Log, check, check_same_state},
};
use guest_kv::{
    Kv,
    limits::RECORD_OVERHEAD_BYTES,
    pb::{
        BatchRequest, DeleteRequest, GetRequest, PutRequest, RangeRequest, TxnRequest,
        compare::{Operator, Target},
    },
};
use proptest::prelude::*;

use crate::store::{Store, compare, delete, get, put, put_text, text};

/// An action of a caller. There are few keys and values, so that actions often concern the same key.
#[derive(Clone, Debug)]
enum Action {
    Put(String, String, i64),
    Delete(String),
    Batch(Vec<Step>),
    /// Runs the first steps if the key exists, otherwise the second.
    IfThere(String, Vec<Step>, Vec<Step>),
    Wait(u64),
    Tick,
}

#[derive(Clone, Debug)]
enum Step {
    Put(String, String),
    Delete(String),
    Get(String),
    /// An invalid operation, which makes the whole batch fail.
    Invalid,
}

impl Step {
    fn operation(&self) -> guest_kv::pb::Operation {
        match self {
            Self::Put(key, text) => put(key, text),
            Self::Delete(key) => delete(key),
            Self::Get(key) => get(key),
            Self::Invalid => put("", "x"),
        }
    }
}

fn key() -> impl Strategy<Value = String> {
    "[ab/]{1,2}"
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (key(), "[xy]{0,2}").prop_map(|(key, text)| Step::Put(key, text)),
        3 => key().prop_map(Step::Delete),
        2 => key().prop_map(Step::Get),
        1 => Just(Step::Invalid),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 0..5)
}

fn action() -> impl Strategy<Value = Action> {
    let ttl = prop_oneof![3 => Just(0_i64), 2 => 1_i64..30, 1 => Just(-1_i64)];
    prop_oneof![
        6 => (key(), "[xy]{0,2}", ttl).prop_map(|(key, text, ttl)| Action::Put(key, text, ttl)),
        3 => key().prop_map(Action::Delete),
        2 => steps().prop_map(Action::Batch),
        2 => (key(), steps(), steps()).prop_map(|(key, a, b)| Action::IfThere(key, a, b)),
        2 => (1_u64..20).prop_map(Action::Wait),
        1 => Just(Action::Tick),
    ]
}

/// The expected map: keys with their text and expiry time.
#[derive(Default)]
struct Model {
    keys: BTreeMap<String, (String, Option<u64>)>,
    time_ms: u64,
}

impl Model {
    fn steps(&mut self, steps: &[Step]) {
        if steps.iter().any(|step| matches!(step, Step::Invalid)) {
            return;
        }
        for step in steps {
            match step {
                Step::Put(key, text) => drop(self.keys.insert(key.clone(), (text.clone(), None))),
                Step::Delete(key) => drop(self.keys.remove(key)),
                Step::Get(_) | Step::Invalid => {}
            }
        }
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Put(key, text, ttl_ms) => {
                if let Ok(ttl_ms) = u64::try_from(*ttl_ms) {
                    let expires = (ttl_ms > 0).then_some(self.time_ms + ttl_ms);
                    self.keys.insert(key.clone(), (text.clone(), expires));
                }
            }
            Action::Delete(key) => drop(self.keys.remove(key)),
            Action::Batch(steps) => self.steps(steps),
            Action::IfThere(key, then, or_else) => {
                let there = self.keys.contains_key(key);
                self.steps(if there { then } else { or_else });
            }
            Action::Wait(milliseconds) => self.time_ms += milliseconds,
            Action::Tick => {}
        }
        self.keys.retain(|_, (_, expires)| expires.is_none_or(|expires| self.time_ms < expires));
    }
}

fn operations(steps: &[Step]) -> Vec<guest_kv::pb::Operation> {
    steps.iter().map(Step::operation).collect()
}

fn txn(key: &str, then: &[Step], or_else: &[Step]) -> TxnRequest {
    TxnRequest {
        compares: vec![compare(key, Operator::Equal, Target::Exists(true))],
        then: operations(then),
        r#else: operations(or_else),
    }
}

fn act(store: &mut Store, action: &Action) -> Result<(), Failure> {
    match action {
        Action::Put(key, text, ttl_ms) => {
            store.put(PutRequest { ttl_ms: *ttl_ms, ..put_text(key, text) }).map(drop)
        }
        Action::Delete(key) => store.delete(key).map(drop),
        Action::Batch(steps) => store.batch(operations(steps)).map(drop),
        Action::IfThere(key, then, or_else) => store.txn(&txn(key, then, or_else)).map(drop),
        Action::Wait(milliseconds) => {
            store.time_ms += milliseconds;
            Ok(())
        }
        Action::Tick => {
            store.tick();
            Ok(())
        }
    }
}

fn log(actions: &[Action]) -> Log {
    let mut log = Log::new();
    log.ask(Call::of("kv.v1.KV/Range", &RangeRequest::default()));
    log.ask(Call::of("kv.v1.KV/Get", &GetRequest { key: "a".into() }));
    for action in actions {
        let (method, request) = match action {
            Action::Put(key, text, ttl_ms) => {
                let request = PutRequest { ttl_ms: *ttl_ms, ..put_text(key, text) };
                ("Put", Call::of("", &request).request)
            }
            Action::Delete(key) => {
                ("Delete", Call::of("", &DeleteRequest { key: key.clone() }).request)
            }
            Action::Batch(steps) => {
                let operations = operations(steps);
                ("Batch", Call::of("", &BatchRequest { operations }).request)
            }
            Action::IfThere(key, then, or_else) => {
                ("Txn", Call::of("", &txn(key, then, or_else)).request)
            }
            Action::Wait(milliseconds) => {
                log.wait_ms(*milliseconds);
                continue;
            }
            Action::Tick => {
                log.tick();
                continue;
            }
        };
        log.apply(Call::new(format!("kv.v1.KV/{method}"), request));
    }
    log
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn the_store_is_a_map(actions in prop::collection::vec(action(), 1..60)) {
        let (mut store, mut model) = (Store::default(), Model::default());
        for action in &actions {
            let revision = store.range(&RangeRequest::default()).unwrap().revision;
            let refused = act(&mut store, action).is_err();
            model.act(action);

            let page = store.range(&RangeRequest::default()).unwrap();
            prop_assert!(page.revision <= revision + 1, "one action makes at most one revision");
            if refused {
                prop_assert_eq!(page.revision, revision, "a refused action changes nothing");
            }
            let found: Vec<_> = page.kvs.iter().map(|kv| (kv.key.clone(), text(kv).unwrap())).collect();
            let expected: Vec<_> =
                model.keys.iter().map(|(key, (text, _))| (key.clone(), text.clone())).collect();
            prop_assert_eq!(found, expected, "after {:?}", action);
            for kv in &page.kvs {
                prop_assert!(1 <= kv.create_revision && kv.create_revision <= kv.mod_revision);
                prop_assert!(kv.mod_revision <= page.revision && 1 <= kv.version);
                let found = store.get(&kv.key).unwrap().kv;
                prop_assert_eq!(found.as_ref(), Some(kv));
            }
        }
        // A restore checks the revisions of every record and rebuilds the index of expiry times.
        // Both stores must request the same wake-up time.
        let mut restored = Store { kv: Kv::load(2, &store.kv.save()).unwrap(), ..Store::default() };
        prop_assert_eq!(restored.kv.bytes(), store.kv.bytes());
        restored.time_ms = store.time_ms;
        restored.tick();
        store.tick();
        prop_assert_eq!(restored.wake_at_ms, store.wake_at_ms);
        prop_assert_eq!(restored.kv.save(), store.kv.save());
        // All expired keys are deleted by now.
        let counted: usize =
            model.keys.iter().map(|(key, (text, _))| key.len() + text.len() + RECORD_OVERHEAD_BYTES).sum();
        prop_assert_eq!(store.kv.bytes(), counted as u64);
    }

    #[test]
    fn the_store_keeps_the_contract(actions in prop::collection::vec(action(), 0..30)) {
        check::<Kv>(&log(&actions));
    }
}

/// The trees share structure and split as they grow. These are enough keys for several levels.
#[test]
fn a_store_of_many_keys_keeps_the_contract() {
    let mut log = Log::new();
    log.ask(Call::of("kv.v1.KV/Range", &RangeRequest { limit: 10, ..Default::default() }));
    for number in 0..2_000_u32 {
        let key = format!("{:04}", number.wrapping_mul(2_654_435_761) % 3_000);
        if number % 7 == 3 {
            log.apply(Call::of("kv.v1.KV/Delete", &DeleteRequest { key }));
        } else {
            let ttl_ms = i64::from(number % 5) * 400;
            log.apply(Call::of("kv.v1.KV/Put", &PutRequest { ttl_ms, ..put_text(&key, "v") }));
        }
        log.wait_ms(1);
    }
    check::<Kv>(&log);
}

#[test]
fn the_way_to_a_state_does_not_show_in_it() {
    let logs = [["a", "b", "c"], ["c", "a", "b"]].map(|keys| {
        let operations = keys.iter().map(|key| put(key, "x")).collect();
        let mut log = Log::new();
        log.apply(Call::of("kv.v1.KV/Batch", &BatchRequest { operations }));
        log
    });
    let [left, right] = &logs;
    check_same_state::<Kv>(left, right);
}
