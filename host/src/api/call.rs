//! From a path to an answer.
//!
//! Every unary method, the machine's and the host's, takes the same way: found in the table, counted,
//! read up to the limit, checked, called until its deadline, framed. What streams (health, reflection) is
//! left to tonic, and subscriptions to [`subscription`]. An answer carries `conclave-index`, if it rests on one, and `conclave-leader`, if there
//! is one, whether it is a yes or a no.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE, request::Parts};
use hyper::body::{Body, Incoming};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Code, Status};
use tower::{Service, ServiceExt};

use super::{
    Backend, MethodKind, Shared, generic,
    listeners::Connection,
    message::{self, Answer, Outgoing},
    metadata,
    metrics::Flight,
    modules, status, subscription,
    table::{Method, Target},
};
use crate::{
    error::Error,
    types::{Call, Caller, Outcome},
};

/// What is dropped of a refused request, and for how long, before its stream is reset.
const DISCARD_BYTES_MAX: usize = 16 * 1024 * 1024;
const DISCARD_TIME_MAX: Duration = Duration::from_secs(1);

pub(super) const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// What a call gave.
pub(super) struct Served {
    pub(super) response: Bytes,
    pub(super) index: Option<u64>,
}

/// Serves one request of the client port.
pub(super) async fn serve<B: Backend>(
    shared: Arc<Shared<B>>,
    request: Request<Incoming>,
) -> Outgoing {
    let method = shared.table.load().get(request.uri().path()).cloned();
    match method {
        Some(method) if method.target == Target::Machine(MethodKind::Subscription) => {
            Ok(subscription::serve(shared, &method, request).await)
        }
        Some(method) => Ok(unary(&shared, &method, request).await),
        None => elsewhere(&shared, request).await,
    }
}

async fn unary<B: Backend>(
    shared: &Shared<B>,
    method: &Method,
    request: Request<Incoming>,
) -> Response<Answer> {
    let (parts, mut body) = request.into_parts();
    if !metadata::is_grpc(&parts.method, &parts.headers) {
        return not_grpc();
    }
    let began = Instant::now();
    let calls_max = shared.options.calls_in_flight_max;
    let (mut flight, admitted) = Flight::begin(&shared.metrics, &method.metrics, began, calls_max);
    let served = if admitted {
        call(shared, method, &parts, &mut body, began).await
    } else {
        Err(Error::busy(format!(
            "this node works on {calls_max} calls, as many as it takes at once: try again in a moment"
        )))
    };
    let mut response = match served.and_then(|served| framed(shared, method, served)) {
        Ok((message, index)) => {
            flight.answered(Code::Ok);
            let mut response = Response::new(message);
            let headers = response.headers_mut();
            headers.reserve(3);
            headers.insert(CONTENT_TYPE, GRPC);
            if let Some(index) = index {
                headers.insert(status::INDEX, status::index_value(index));
            }
            response
        }
        Err(error) => {
            flight.answered(status::code(&error));
            tracing::debug!(method = %method.name, %error, "call refused");
            Status::from(&error).into_http()
        }
    };
    name_leader(shared, &mut response);
    if !body.is_end_stream() {
        let rest = message::discard(&mut body, DISCARD_BYTES_MAX);
        if timeout(DISCARD_TIME_MAX, rest).await.is_err() {
            tracing::debug!(method = %method.name, "the caller goes on sending what was refused");
        }
    }
    response
}

/// Says who leads, if it is known and the answer does not say yet.
pub(super) fn name_leader<B: Backend>(shared: &Shared<B>, response: &mut Response<Answer>) {
    if let Some(leader) = shared.backend.leader()
        && !response.headers().contains_key(status::LEADER)
        && let Some(address) = status::address_value(&leader.client_address)
    {
        response.headers_mut().insert(status::LEADER, address);
    }
}

async fn call<B: Backend>(
    shared: &Shared<B>,
    method: &Method,
    parts: &Parts,
    body: &mut Incoming,
    began: Instant,
) -> Result<Served, Error> {
    let options = &shared.options;
    let mut deadlines = options.deadlines;
    if matches!(
        method.target,
        Target::Snapshot | Target::Verify | Target::SetTime | Target::Upgrade(_)
    ) {
        // As long as the state, or a module, is large.
        deadlines.default = deadlines.max;
    }
    let deadline = metadata::deadline(&parts.headers, began, deadlines)?;
    let bytes_max = match method.target {
        Target::Machine(_) => options.request_bytes_max,
        // A piece of a module, whatever the machine's own requests may have.
        Target::Upgrade(_) => modules::PIECE_BYTES_MAX + generic::ENVELOPE_BYTES_MAX,
        _ => options.request_bytes_max + generic::ENVELOPE_BYTES_MAX,
    };
    let message = message::read(body, bytes_max, &shared.requests);
    let message = timeout_at(deadline, message).await.map_err(|_| Error::deadline())??;
    let request = message.bytes.clone();
    match method.target {
        Target::Machine(kind) => {
            let name = method.name.clone();
            machine(shared, Some(method), kind, name, request, parts, deadline).await
        }
        Target::Apply => generic::apply(shared, request, parts, deadline).await,
        Target::Query => generic::query(shared, request, parts, deadline).await,
        Target::Describe => generic::describe(shared),
        Target::Status => generic::status(shared, deadline).await,
        Target::Snapshot => generic::snapshot(shared, deadline).await,
        Target::Verify => generic::verify(shared, deadline).await,
        Target::SetTime => generic::set_time(shared, request, deadline).await,
        Target::SetLimits => generic::set_limits(shared, request, deadline).await,
        Target::Upgrade(verb) => modules::serve(shared, verb, request, deadline).await,
    }
}

/// Frames an answer, if there is room for it. A command has been applied by now: without room its answer
/// is lost, and it must not look like a call that had no effect.
fn framed<B: Backend>(
    shared: &Shared<B>,
    method: &Method,
    Served { response, index }: Served,
) -> Result<(Answer, Option<u64>), Error> {
    let applied = matches!(method.target, Target::Apply | Target::Machine(MethodKind::Command));
    match Answer::message(&response, &shared.answers) {
        Ok(answer) => Ok((answer, index)),
        Err(error) if applied => {
            let lost = Error::lost("there was no room for the answer").with_source(error);
            Err(lost.at_index(index.unwrap_or_default()))
        }
        Err(error) => Err(error),
    }
}

/// The caller, as the connection noted it.
pub(super) fn caller(parts: &Parts) -> Caller {
    parts
        .extensions
        .get::<Connection>()
        .map(|connection| connection.caller.clone())
        .unwrap_or_default()
}

/// Calls the machine. A method that the descriptor does not know is passed on unchecked.
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
                None => Err(Error::fault(
                    "the log holds another entry in the call's place: report this",
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
            Err(Error::fault("a subscription was called as a unary method"))
        }
    }
}

/// What streams, and what nobody serves.
async fn elsewhere<B: Backend>(shared: &Shared<B>, request: Request<Incoming>) -> Outgoing {
    if !metadata::is_grpc(request.method(), request.headers()) {
        return Ok(not_grpc());
    }
    let path = request.uri().path();
    let answer = if path.starts_with("/grpc.health.v1.Health/") {
        shared.health.clone().call(request).await?
    } else if path.starts_with("/grpc.reflection.v1.ServerReflection/") {
        let service = shared.reflection.load().v1.clone();
        service.oneshot(request).await?
    } else if path.starts_with("/grpc.reflection.v1alpha.ServerReflection/") {
        let service = shared.reflection.load().v1alpha.clone();
        service.oneshot(request).await?
    } else {
        shared.metrics.unknown_methods.inc();
        return Ok(Status::from(shared.table.load().unknown(path)).into_http());
    };
    Ok(answer.map(Answer::Tonic))
}

pub(super) fn not_grpc() -> Response<Answer> {
    let mut response = Response::new(Answer::Empty);
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}
