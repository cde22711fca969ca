//! Makes one operation as a call.

use std::time::Duration;

use bytes::Bytes;
use conclave_client::{
    CallOptions, Client, Consistency, Error,
    proto::kv::{
        BatchRequest, BatchResponse, Compare as ComparePb, DeleteRequest, DeleteResponse,
        GetRequest, GetResponse, KeyValue, Operation as OperationPb, OperationResult, PutRequest,
        PutResponse, TxnRequest, TxnResponse, compare, key_value, operation, operation_result,
        put_request,
    },
};
use prost::Message;

use crate::history::{Answer, Compare, Gave, Kind, Outcome, Request, Seen, Step, Value};

/// Sends one operation and waits for its outcome.
pub async fn call(client: &Client, kind: Kind, request: &Request, deadline: Duration) -> Outcome {
    let (method, message) = (method_of(request), encoded(request));
    let options = match kind {
        Kind::Write => CallOptions::write(),
        Kind::Read => CallOptions::read(),
        Kind::LeaseRead => CallOptions::read().consistency(Consistency::Lease),
        Kind::StaleRead => CallOptions::read().consistency(Consistency::Stale),
    };
    let answer = client.call_raw_with(method, message, &options.deadline(deadline)).await;
    match answer {
        Ok(answer) => match decoded(request, &answer.message) {
            Ok((succeeded, results)) => {
                Outcome::Done(Answer { succeeded, results, index: answer.index.unwrap_or(0) })
            }
            Err(error) => Outcome::Unknown(format!("an answer that cannot be read: {error}")),
        },
        Err(error) => failed(method, &error),
    }
}

fn failed(method: &str, error: &Error) -> Outcome {
    if method == GET && error.is_not_found() {
        // The error means that the key does not exist. It contains no index.
        let results = vec![Gave::Get(None)];
        return Outcome::Done(Answer { succeeded: true, results, index: 0 });
    }
    match error.outcome_unknown() {
        true => Outcome::Unknown(error.to_string()),
        false => Outcome::Failed(error.to_string()),
    }
}

const GET: &str = "kv.v1.KV/Get";

/// The method for an operation.
pub fn method_of(request: &Request) -> &'static str {
    match (&request.compares[..], &request.then[..]) {
        ([], [Step::Put(..)]) => "kv.v1.KV/Put",
        ([], [Step::Delete(_)]) => "kv.v1.KV/Delete",
        ([], [Step::Get(_)]) => GET,
        ([], _) => "kv.v1.KV/Batch",
        _ => "kv.v1.KV/Txn",
    }
}

fn encoded(request: &Request) -> Vec<u8> {
    match (&request.compares[..], &request.then[..]) {
        ([], [Step::Put(key, value)]) => put(key, *value).encode_to_vec(),
        ([], [Step::Delete(key)]) => DeleteRequest { key: key.clone() }.encode_to_vec(),
        ([], [Step::Get(key)]) => GetRequest { key: key.clone() }.encode_to_vec(),
        ([], steps) => {
            BatchRequest { operations: steps.iter().map(step).collect() }.encode_to_vec()
        }
        (compares, then) => TxnRequest {
            compares: compares.iter().map(condition).collect(),
            then: then.iter().map(step).collect(),
            r#else: request.otherwise.iter().map(step).collect(),
        }
        .encode_to_vec(),
    }
}

fn put(key: &str, value: Value) -> PutRequest {
    let content = Some(put_request::Content::Text(value.to_string()));
    PutRequest { key: key.to_owned(), content, ..PutRequest::default() }
}

fn step(step: &Step) -> OperationPb {
    let operation = match step {
        Step::Put(key, value) => operation::Operation::Put(put(key, *value)),
        Step::Delete(key) => operation::Operation::Delete(DeleteRequest { key: key.clone() }),
        Step::Get(key) => operation::Operation::Get(GetRequest { key: key.clone() }),
    };
    OperationPb { operation: Some(operation) }
}

fn condition(condition: &Compare) -> ComparePb {
    let (key, target) = match condition {
        Compare::Holds(key, value) => (key, compare::Target::Text(value.to_string())),
        Compare::Exists(key, exists) => (key, compare::Target::Exists(*exists)),
    };
    ComparePb { key: key.clone(), target: Some(target), ..ComparePb::default() }
}

type Decoded = Result<(bool, Vec<Gave>), String>;

fn decoded(request: &Request, bytes: &Bytes) -> Decoded {
    fn read<T: Message + Default>(bytes: &Bytes) -> Result<T, String> {
        T::decode(bytes.clone()).map_err(|error| error.to_string())
    }
    match (&request.compares[..], &request.then[..]) {
        ([], [Step::Put(..)]) => Ok((true, vec![Gave::Put(read::<PutResponse>(bytes)?.version)])),
        ([], [Step::Delete(_)]) => {
            Ok((true, vec![Gave::Delete(read::<DeleteResponse>(bytes)?.deleted)]))
        }
        ([], [Step::Get(_)]) => Ok((true, vec![got(read::<GetResponse>(bytes)?.kv)?])),
        ([], _) => Ok((true, results(read::<BatchResponse>(bytes)?.results)?)),
        _ => {
            let response: TxnResponse = read(bytes)?;
            Ok((response.succeeded, results(response.results)?))
        }
    }
}

fn results(results: Vec<OperationResult>) -> Result<Vec<Gave>, String> {
    let result = |result: OperationResult| match result.result {
        Some(operation_result::Result::Put(put)) => Ok(Gave::Put(put.version)),
        Some(operation_result::Result::Delete(delete)) => Ok(Gave::Delete(delete.deleted)),
        Some(operation_result::Result::Get(get)) => got(get.kv),
        None => Err("a result that is empty".to_owned()),
    };
    results.into_iter().map(result).collect()
}

fn got(record: Option<KeyValue>) -> Result<Gave, String> {
    Ok(Gave::Get(match record {
        Some(record) => Some(seen(&record)?),
        None => None,
    }))
}

/// The value and version of a key.
pub(super) fn seen(record: &KeyValue) -> Result<Seen, String> {
    let value = match &record.content {
        Some(key_value::Content::Text(text)) => text.parse().ok(),
        _ => None,
    };
    let value = value.ok_or_else(|| format!("key {:?} holds no value of ours", record.key))?;
    Ok(Seen { value, version: record.version })
}
