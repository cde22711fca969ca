//! Calls of the state machine's commands and queries.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use tokio::time::{Instant, timeout_at};

use super::{
    Backend, MethodKind, Shared, connection::caller, metadata, response::Served, table::Method,
};
use conclave_types::{Call, Outcome, error::Error};

/// Calls the state machine. The request of a method without a descriptor is passed on unchecked.
pub(super) async fn machine<B: Backend>(
    shared: &Shared<B>,
    method: Option<&Method>,
    kind: MethodKind,
    name: Arc<str>,
    request: Bytes,
    parts: &Parts,
    deadline: Instant,
) -> Result<Served, Error> {
    if let Some(method) = method {
        method.check_request(&request)?;
    }
    let call = Call { method: name, request, principal: shared.anonymous.clone() };
    let caller = caller(parts);
    match kind {
        MethodKind::Command => {
            let applied = timeout_at(deadline, shared.backend.command(call, &caller, deadline));
            let applied = applied.await.map_err(|_| Error::deadline_outcome_unknown())??;
            let index = Some(applied.index);
            match applied.outcome {
                Some(Outcome::Reply(reply)) => Ok(Served { response: reply.response, index }),
                Some(Outcome::Failure(failure)) => {
                    Err(Error::failure(failure).at_index(applied.index))
                }
                Some(Outcome::Trap(trap)) => Err(Error::trap(trap).at_index(applied.index)),
                None => Err(Error::fatal(
                    "the log has a different entry at the call's index: report this bug",
                )),
            }
        }
        MethodKind::Query => {
            let consistency = metadata::consistency(&parts.headers)?;
            let answered =
                timeout_at(deadline, shared.backend.query(call, &caller, consistency, deadline));
            let answered = answered.await.map_err(|_| Error::deadline())??;
            let index = answered.index;
            match answered.result {
                Ok(response) => Ok(Served { response, index: Some(index) }),
                Err(failure) => Err(Error::failure(failure).at_index(index)),
            }
        }
        MethodKind::Subscription => {
            Err(Error::fatal("a subscription was called as a unary method"))
        }
    }
}
