//! Goal: no request that the key-value store accepts traps at a node's real limits, and an answer
//! within its limits can always be transferred.
//! Method: the component that the binary contains, with default limits.

use bytes::Bytes;
use conclave_machine::{Component, Engine, EntryContext, Limits, Standalone};
use conclave_sdk::limits as contract;
use conclave_types::{Call, Code, Outcome, Reply, TrapKind, limits};
use guest_kv::{
    limits::{KEY_BYTES_MAX, OPERATIONS_MAX, VALUE_BYTES_MAX},
    pb::{
        BatchRequest, DeleteRequest, GetRequest, Operation, PutRequest, operation::Operation as Do,
        put_request::Content,
    },
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use prost::Message;

use crate::support::Node;
use conclave_testing::wat::Wat;

fn component(component: Bytes) -> Component {
    Component::load(&Engine::new(&Limits::default()).unwrap(), component).unwrap()
}

/// Runs `body` with an instance of the key-value store.
fn with_store(body: impl FnOnce(&mut Store) + Send) {
    let component = component(crate::support::build("guest-kv"));
    Standalone::with_stack(&Limits::default(), || {
        body(&mut Store {
            standalone: Standalone::start(&component).unwrap(),
            index: 0,
            time_ms: 0,
        });
    })
    .unwrap();
}

struct Store {
    standalone: Standalone,
    index: u64,
    time_ms: u64,
}

impl Store {
    fn call(&mut self, method: &str, request: &impl Message) -> Result<Reply, (Code, String)> {
        let request = request.encode_to_vec();
        assert!(
            request.len() <= limits::REQUEST_BYTES_MAX.default,
            "not a legal request: {}",
            request.len()
        );
        let call = Call {
            method: format!("kv.v1.KV/{method}").into(),
            request: request.into(),
            principal: "".into(),
        };
        self.index += 1;
        let context = EntryContext { index: self.index, time_ms: self.time_ms, seed: 0 };
        match self.standalone.apply(context, Some(&call)).expect("no request traps") {
            Outcome::Reply(reply) => Ok(reply),
            Outcome::Failure(failure) => Err((failure.code, failure.message)),
            Outcome::Trap(trap) => panic!("{trap:?}"),
        }
    }

    fn batch(&mut self, operations: Vec<Operation>) -> Result<Reply, (Code, String)> {
        self.call("Batch", &BatchRequest { operations })
    }
}

fn put_for(key: String, value_bytes: usize, ttl_ms: i64) -> Do {
    Do::Put(PutRequest { key, content: Some(Content::Value(vec![7; value_bytes])), ttl_ms })
}

fn put(key: String, value_bytes: usize) -> Operation {
    Operation { operation: Some(put_for(key, value_bytes, 0)) }
}

fn get(key: String) -> Operation {
    Operation { operation: Some(Do::Get(GetRequest { key })) }
}

fn key(number: usize, bytes: usize) -> String {
    format!("{number:0bytes$}")
}

/// Returns batches that read back values of 900 KiB, that have the longest keys, and that have the
/// largest values.
fn batches() -> [Vec<Operation>; 3] {
    let puts = |count: usize, key_bytes, value_bytes| {
        (0..count).map(move |number| put(key(number, key_bytes), value_bytes))
    };
    [
        puts(3, 2, 900 << 10).chain([get(key(0, 2)), get(key(1, 2))]).collect(),
        puts(OPERATIONS_MAX, KEY_BYTES_MAX, 28_600).collect(),
        puts(4, 2, 1_048_540).collect(),
    ]
}

#[test]
fn batches_at_the_limit_of_requests_are_answered() {
    with_store(|store| {
        for batch in batches() {
            let reply = store.batch(batch).unwrap();
            assert!(!reply.response.is_empty());
        }
        // The same, together with the events of expired keys.
        for number in 0..4 * OPERATIONS_MAX {
            let Do::Put(expires) = put_for(key(number, KEY_BYTES_MAX - 1), 0, 1) else { return };
            store.call("Put", &expires).unwrap();
        }
        store.time_ms = 1;
        for batch in batches() {
            let puts = batch
                .iter()
                .filter(|operation| matches!(operation.operation, Some(Do::Put(_))))
                .count();
            assert!(store.batch(batch).unwrap().events.len() > puts + 20, "keys expire beside it");
        }
    });
}

/// The shape of an operation, which is readable in a failure message where a batch of megabytes is not.
#[derive(Clone, Debug)]
struct Shape {
    key: usize,
    key_bytes: usize,
    value_bytes: usize,
    kind: u8,
}

impl Shape {
    fn operation(&self) -> Operation {
        let key = key(self.key, self.key_bytes);
        Operation {
            operation: Some(match self.kind {
                0..3 => put_for(key, self.value_bytes, 0),
                3 => put_for(key, self.value_bytes, 5),
                4 => Do::Get(GetRequest { key }),
                _ => Do::Delete(DeleteRequest { key }),
            }),
        }
    }
}

fn batch() -> impl Strategy<Value = Vec<Shape>> {
    // Few keys, so that operations affect each other.
    let key_bytes = prop::sample::select(vec![3, 100, KEY_BYTES_MAX]);
    let value_bytes =
        prop::sample::select(vec![0, 1000, 28_600, 500_000, 900 << 10, VALUE_BYTES_MAX]);
    let shape = (0..4_usize, key_bytes, value_bytes, 0..6_u8).prop_map(
        |(key, key_bytes, value_bytes, kind)| Shape { key, key_bytes, value_bytes, kind },
    );
    prop::collection::vec(shape, 1..=OPERATIONS_MAX)
}

/// Returns the longest prefix of a batch that fits into a request.
fn fitting(shapes: &[Shape]) -> Vec<Operation> {
    let mut bytes = 0;
    let fits = |operation: &Operation| {
        bytes += operation.encoded_len() + 8;
        bytes <= limits::REQUEST_BYTES_MAX.default
    };
    shapes.iter().map(Shape::operation).take_while(fits).collect()
}

#[test]
fn no_batch_at_the_limits_traps() {
    with_store(|store| {
        let config = Config { cases: 48, failure_persistence: None, ..Config::default() };
        let store = std::cell::RefCell::new(store);
        TestRunner::new(config)
            .run(&(batch(), 0..8_u64), |(batch, wait_ms)| {
                let store = &mut *store.borrow_mut();
                store.time_ms += wait_ms;
                if let Err((code, message)) = store.batch(fitting(&batch)) {
                    prop_assert_eq!(code, Code::ResourceExhausted, "{}", message);
                }
                Ok(())
            })
            .unwrap();
    });
}

/// Events without bytes: the host's own cost per event decides how many are allowed.
#[test]
fn many_small_events_are_transferred_up_to_the_limit() {
    // Answers with as many events as the request has bytes, from memory that is zero.
    let apply =
        "(i32.store (i32.const 272) (i32.const 0x500000)) (i32.store (i32.const 276) (local.get 8))
        (i32.const 256)";
    let component = component(Wat { apply, memory: "128", ..Wat::default() }.component());
    let largest = limits::EVENT_BYTES_MAX.default / limits::EVENT_OVERHEAD_BYTES;
    let apply = |count: usize| {
        let mut standalone = Standalone::start(&component).unwrap();
        let call =
            Call { method: "any".into(), request: vec![0; count].into(), principal: "".into() };
        standalone.apply(EntryContext { index: 1, time_ms: 0, seed: 0 }, Some(&call))
    };
    Standalone::with_stack(&Limits::default(), || {
        match apply(largest) {
            Ok(Outcome::Reply(reply)) => assert_eq!(reply.events.len(), largest),
            other => panic!("{other:?}"),
        }
        match apply(largest + 1) {
            Err(conclave_machine::Broken::Trap(trap)) => {
                assert_eq!(trap.kind, TrapKind::BadAnswer);
                assert!(
                    trap.message.contains("the events count 8388672 bytes"),
                    "{}",
                    trap.message
                );
            }
            other => panic!("{other:?}"),
        }
    })
    .unwrap();
}

/// A query or subscription whose answer is too large fails, and the standby is kept.
#[tokio::test]
async fn an_answer_that_is_too_large_fails_and_keeps_the_standby() {
    // Both answer with as many bytes as the request's first word says.
    let wat = Wat {
        query: "(i32.store8 (i32.const 512) (i32.const 0)) (i32.store (i32.const 516) (i32.const 0x10000))
            (i32.store (i32.const 520) (i32.load (local.get 7))) (i32.const 512)",
        subscribe: "(i32.store8 (i32.const 512) (i32.const 0))
            (i32.store (i32.const 524) (i32.const 0)) (i32.store (i32.const 528) (i32.const 0))
            (i32.store (i32.const 516) (i32.const 0)) (i32.store (i32.const 520) (i32.const 0))
            (i32.store (i32.const 900) (i32.const 0x10000))
            (i32.store (i32.const 904) (i32.load (local.get 7)))
            (i32.store (i32.const 532) (i32.const 900)) (i32.store (i32.const 536) (i32.const 1))
            (i32.const 512)",
        memory: "256",
        ..Wat::default()
    };
    let node = Node::start_with(component(wat.component()));
    let call = |bytes: usize| Call {
        method: "any".into(),
        request: (bytes as u32).to_le_bytes().to_vec().into(),
        principal: "".into(),
    };
    let query = async |bytes| node.worker.query(call(bytes), 0).await.unwrap().result;
    let subscribe = async |bytes| node.worker.subscribe(call(bytes), 0, None).await.unwrap().result;
    let largest = limits::RESPONSE_BYTES_MAX.default;
    assert_eq!(query(largest).await.unwrap().len(), largest);
    assert_eq!(subscribe(largest).await.unwrap().initial[0].len(), largest);
    let builds = node.worker.metrics().standby_builds.get();
    for bytes in [largest + 1, 3 * largest] {
        let refusals = [query(bytes).await.unwrap_err(), subscribe(bytes).await.unwrap_err()];
        for refusal in refusals {
            assert_eq!(refusal.code, Code::ResourceExhausted);
            let says =
                format!("any: the response has {bytes} bytes; at most {largest} are allowed");
            assert!(refusal.message.starts_with(&says), "{}", refusal.message);
        }
    }
    assert_eq!(query(8).await.unwrap().len(), 8);
    let metrics = node.worker.metrics();
    assert_eq!((metrics.query_traps.get(), metrics.standby_builds.get()), (0, builds));
}

#[test]
fn a_node_takes_what_the_contract_promises() {
    let limits = Limits::default();
    assert_eq!(limits.cluster.response_bytes_max, contract::RESPONSE_BYTES_MAX);
    assert_eq!(limits.cluster.event_bytes_max, contract::EVENT_BYTES_MAX);
    assert_eq!(limits::EVENT_OVERHEAD_BYTES, contract::EVENT_OVERHEAD_BYTES);
    assert_eq!(limits::REQUEST_BYTES_MAX.default, contract::REQUEST_BYTES_DEFAULT);
}
