//! A store with a clock, for the tests.

use conclave_sdk::{
    Call, Context, Event, Failure, Machine, Reply, Subscription,
    limits::{EVENT_BYTES_MAX, RESPONSE_BYTES_MAX},
    prost::Message,
};
use guest_kv::{
    Kv,
    pb::{
        BatchRequest, BatchResponse, Compare, DeleteRequest, DeleteResponse, GetRequest,
        GetResponse, KeyValue, Operation, PutRequest, PutResponse, RangeRequest, RangeResponse,
        TxnRequest, TxnResponse, WatchRequest, WatchResponse, compare, key_value, operation,
        put_request,
    },
};

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) kv: Kv,
    pub(crate) index: u64,
    pub(crate) time_ms: u64,
    /// The wake-up time after the last reply.
    pub(crate) wake_at_ms: Option<u64>,
    /// The events so far, in the order of the log.
    pub(crate) told: Vec<(String, WatchResponse)>,
}

impl Store {
    pub(crate) fn context(&self) -> Context {
        Context { index: self.index, time_ms: self.time_ms, seed: 0, principal: String::new() }
    }

    pub(crate) fn command<T: Message + Default>(
        &mut self,
        method: &str,
        request: &impl Message,
    ) -> Result<T, Failure> {
        self.index += 1;
        let call = Call::of(format!("kv.v1.KV/{method}"), request);
        let Reply { response, events } = self.kv.apply(&self.context(), &call)?;
        assert_within_limits(&response, &events);
        self.note(events);
        self.wake_at_ms = self.kv.wake_at();
        Ok(T::decode(&*response).unwrap())
    }

    pub(crate) fn query<T: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<T, Failure> {
        let call = Call::of(format!("kv.v1.KV/{method}"), request);
        Ok(T::decode(&*self.kv.query(&self.context(), &call)?).unwrap())
    }

    pub(crate) fn put(&mut self, request: PutRequest) -> Result<PutResponse, Failure> {
        self.command("Put", &request)
    }

    pub(crate) fn put_text(&mut self, key: &str, text: &str) -> PutResponse {
        self.put(put_text(key, text)).unwrap()
    }

    pub(crate) fn delete(&mut self, key: &str) -> Result<DeleteResponse, Failure> {
        self.command("Delete", &DeleteRequest { key: key.into() })
    }

    pub(crate) fn get(&self, key: &str) -> Result<GetResponse, Failure> {
        self.query("Get", &GetRequest { key: key.into() })
    }

    /// Returns the text of an existing key.
    pub(crate) fn text(&self, key: &str) -> Option<String> {
        text(&self.get(key).ok()?.kv?)
    }

    pub(crate) fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Failure> {
        self.query("Range", request)
    }

    pub(crate) fn batch(&mut self, operations: Vec<Operation>) -> Result<BatchResponse, Failure> {
        self.command("Batch", &BatchRequest { operations })
    }

    pub(crate) fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, Failure> {
        self.command("Txn", request)
    }

    pub(crate) fn tick(&mut self) {
        self.index += 1;
        let Reply { response, events } = self.kv.tick(&self.context());
        assert_within_limits(&response, &events);
        self.note(events);
        self.wake_at_ms = self.kv.wake_at();
    }

    /// Records events, and checks that each has its key as topic and the index of this entry.
    fn note(&mut self, events: Vec<Event>) {
        for Event { topic, payload } in events {
            let message = WatchResponse::decode(&*payload).unwrap();
            let key = String::from_utf8(topic).unwrap();
            assert_eq!(message.kv.as_ref().unwrap().key, key);
            assert_eq!(message.index, self.index);
            self.told.push((key, message));
        }
    }

    pub(crate) fn watch(&self, request: &WatchRequest) -> Result<Subscription, Failure> {
        self.kv.subscribe(&self.context(), &Call::of("kv.v1.KV/Watch", request))
    }

    /// Returns the number of stored keys, including expired ones: the count in the snapshot's header.
    pub(crate) fn held(&self) -> u64 {
        u64::from_be_bytes(self.kv.save()[20..28].try_into().unwrap())
    }
}

/// Checks the limits above which a host rolls a reply back.
fn assert_within_limits(response: &[u8], events: &[Event]) {
    assert!(response.len() <= RESPONSE_BYTES_MAX, "a response of {} bytes", response.len());
    let bytes: usize = events.iter().map(Event::counted_bytes).sum();
    assert!(bytes <= EVENT_BYTES_MAX, "{} events of {bytes} bytes", events.len());
}

pub(crate) fn put_text(key: &str, text: &str) -> PutRequest {
    let content = Some(put_request::Content::Text(text.into()));
    PutRequest { key: key.into(), content, ttl_ms: 0 }
}

pub(crate) fn put_value(key: &str, value: impl Into<Vec<u8>>) -> PutRequest {
    let content = Some(put_request::Content::Value(value.into()));
    PutRequest { key: key.into(), content, ttl_ms: 0 }
}

pub(crate) fn text(kv: &KeyValue) -> Option<String> {
    match kv.content.clone()? {
        key_value::Content::Text(text) => Some(text),
        key_value::Content::Value(_) => None,
    }
}

pub(crate) fn put(key: &str, text: &str) -> Operation {
    Operation { operation: Some(operation::Operation::Put(put_text(key, text))) }
}

pub(crate) fn delete(key: &str) -> Operation {
    let request = DeleteRequest { key: key.into() };
    Operation { operation: Some(operation::Operation::Delete(request)) }
}

pub(crate) fn get(key: &str) -> Operation {
    let request = GetRequest { key: key.into() };
    Operation { operation: Some(operation::Operation::Get(request)) }
}

pub(crate) fn compare(key: &str, operator: compare::Operator, target: compare::Target) -> Compare {
    Compare { key: key.into(), operator: operator.into(), target: Some(target) }
}
