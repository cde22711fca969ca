//! Batches of operations, and the conditions of transactions.

use std::cmp::Ordering;

use conclave_sdk::{Failure, prost::Message as _};

use crate::{
    limits::{
        COMPARES_MAX, EVENT_BYTES_MAX, OPERATIONS_MAX, RESPONSE_BYTES_MAX, VALUE_BYTES_MAX,
        check_key, within,
    },
    pb::{
        Compare, Operation, OperationResult, TxnRequest,
        compare::{Operator, Target},
        operation, operation_result,
    },
    state::{Record, State},
    step::Step,
};

/// Runs operations in order. A failure leaves the step's state partly changed, so run this on a copy.
pub(crate) fn run(
    step: &mut Step<'_>,
    operations: Vec<Operation>,
) -> Result<Vec<OperationResult>, Failure> {
    let mut results = Vec::with_capacity(operations.len());
    let mut bytes = 0;
    for (index, operation) in operations.into_iter().enumerate() {
        let result = one(step, operation).map_err(|failure| {
            Failure::new(failure.code, format!("operation {index}: {}", failure.message))
        })?;
        bytes += result.encoded_len();
        if bytes > RESPONSE_BYTES_MAX {
            return Err(Failure::resource_exhausted(format!(
                "the results up to operation {index} have {bytes} bytes; at most \
                 {RESPONSE_BYTES_MAX} are allowed: get fewer keys at once"
            )));
        }
        let event_bytes = step.event_bytes();
        if event_bytes > EVENT_BYTES_MAX {
            return Err(Failure::resource_exhausted(format!(
                "the changes up to operation {index} have {event_bytes} bytes as events; at most \
                 {EVENT_BYTES_MAX} are allowed: divide the request"
            )));
        }
        results.push(result);
    }
    Ok(results)
}

fn one(step: &mut Step<'_>, operation: Operation) -> Result<OperationResult, Failure> {
    use operation_result::Result as Given;
    let result = match operation.operation {
        Some(operation::Operation::Put(request)) => Given::Put(step.put(request)?),
        Some(operation::Operation::Delete(request)) => Given::Delete(step.delete(&request)?),
        Some(operation::Operation::Get(request)) => Given::Get(step.get(&request)?),
        None => return Err(Failure::invalid_argument("it is empty: set put, delete or get")),
    };
    Ok(OperationResult { result: Some(result) })
}

pub(crate) fn check_operations(what: &str, operations: &[Operation]) -> Result<(), Failure> {
    within(what, operations.len(), OPERATIONS_MAX, "operations")
}

/// Checks everything about a Txn that does not depend on the state, including the branch that is
/// not taken. Whether a request is valid should not depend on concurrent writes.
pub(crate) fn check_txn(request: &TxnRequest) -> Result<(), Failure> {
    within("the transaction", request.compares.len(), COMPARES_MAX, "compares")?;
    check_operations("then", &request.then)?;
    check_operations("else", &request.r#else)?;
    for (index, compare) in request.compares.iter().enumerate() {
        check_compare(compare).map_err(|failure| {
            Failure::new(failure.code, format!("compare {index}: {}", failure.message))
        })?;
    }
    Ok(())
}

fn check_compare(compare: &Compare) -> Result<(), Failure> {
    check_key(&compare.key)?;
    let operator = Operator::try_from(compare.operator)
        .map_err(|_| Failure::invalid_argument(format!("unknown operator {}", compare.operator)))?;
    match &compare.target {
        None => Err(Failure::invalid_argument(
            "no target: give a value, text, version, create_revision, mod_revision or exists",
        )),
        Some(Target::Exists(_)) if matches!(operator, Operator::Less | Operator::Greater) => {
            Err(Failure::invalid_argument("exists can only be EQUAL or NOT_EQUAL"))
        }
        Some(Target::Value(value)) => within("the value", value.len(), VALUE_BYTES_MAX, "bytes"),
        Some(Target::Text(text)) => within("the text", text.len(), VALUE_BYTES_MAX, "bytes"),
        Some(_) => Ok(()),
    }
}

/// Returns whether a valid condition holds.
pub(crate) fn holds(state: &State, time_ms: u64, compare: &Compare) -> bool {
    let record = state.get(&compare.key, time_ms);
    let number = |field: fn(&Record) -> u64| record.map_or(0, field);
    let ordering = match &compare.target {
        Some(Target::Value(value)) => record.map(|record| record.content.bytes().cmp(value)),
        Some(Target::Text(text)) => {
            record.map(|record| record.content.bytes().cmp(text.as_bytes()))
        }
        Some(Target::Version(version)) => Some(number(|record| record.version).cmp(version)),
        Some(Target::CreateRevision(revision)) => {
            Some(number(|record| record.create_revision).cmp(revision))
        }
        Some(Target::ModRevision(revision)) => {
            Some(number(|record| record.mod_revision).cmp(revision))
        }
        Some(Target::Exists(exists)) => Some(record.is_some().cmp(exists)),
        None => None,
    };
    match (compare.operator(), ordering) {
        (_, None) => false,
        (Operator::Equal, Some(ordering)) => ordering == Ordering::Equal,
        (Operator::NotEqual, Some(ordering)) => ordering != Ordering::Equal,
        (Operator::Less, Some(ordering)) => ordering == Ordering::Less,
        (Operator::Greater, Some(ordering)) => ordering == Ordering::Greater,
    }
}
