//! Dispatches a gRPC request to its handler.
//!
//! Every unary method, of the state machine and of the host, takes the same path. The method is
//! looked up in the table. The request is read up to the limit, admitted as one of the node's
//! calls, checked, and called until its deadline. The response is framed. Streams of health and
//! reflection are served by tonic, subscriptions by [`subscription`].
//!
//! A request takes no slot until it has arrived completely; a rejected request takes none. A
//! response carries `conclave-index` if it belongs to an index, and `conclave-leader` if the leader
//! is known, both for successes and for errors.

use std::{sync::Arc, time::Duration};

use futures::{
    StreamExt as _,
    future::{Ready, ready},
    stream::{self, BoxStream},
};
use http::{Request, Response, header::CONTENT_TYPE, request::Parts};
use hyper::body::{Body, Incoming};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Code, Status, Streaming, server::StreamingService};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};
use tower::Service;

use super::{
    Backend, MethodKind, Shared,
    answer::{Answer, Bounded},
    backup,
    budget::Reserved,
    components,
    connection::{Connection, connection},
    generic, invoke,
    message::{self, DISCARD_BYTES_MAX, DISCARD_TIME_MAX, LARGE_BYTES},
    metadata,
    metrics::Flight,
    reflection::Sent,
    response::{GRPC, Served, name_leader, not_grpc},
    status, subscription,
    table::{Method, Target},
};
use conclave_types::error::{Error, chain};

/// Maximum size of a reflection request, which names one symbol or file.
const QUESTION_BYTES_MAX: usize = 64 * 1024;
/// Maximum pause between two requests on a reflection stream; after it the stream ends.
const QUESTION_PAUSE_MAX: Duration = Duration::from_secs(300);

/// Errors are responses too, so this type cannot fail.
pub(super) type Outgoing = Result<Response<Answer>, std::convert::Infallible>;

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
        Some(method) if method.target == Target::Backup => {
            Ok(backup::serve(shared, &method, request).await)
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
    if let Some(status) = metadata::not_grpc(&parts.method, &parts.headers) {
        return not_grpc(status, &mut body).await;
    }
    let connection = connection(&parts);
    let began = Instant::now();
    let mut flight = Flight::begin(&method.metrics, began);
    let served = call(shared, method, &parts, &connection, &mut body, began).await;
    let framed =
        served.and_then(|(served, slot)| framed(shared, method, &connection, served, slot));
    let mut response = match framed {
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
            tracing::debug!(method = %method.name, error = chain(&error), "call refused");
            status::to_status(&error).into_http()
        }
    };
    name_leader(shared, &mut response);
    if !body.is_end_stream() {
        let rest = message::discard(&mut body, DISCARD_BYTES_MAX);
        if timeout(DISCARD_TIME_MAX, rest).await.is_err() {
            tracing::debug!(method = %method.name, "the caller continues to send a rejected request");
        }
    }
    response
}

/// Reads, admits and serves a call. Returns the response with the call's slot.
async fn call<B: Backend>(
    shared: &Shared<B>,
    method: &Method,
    parts: &Parts,
    connection: &Connection,
    body: &mut Incoming,
    began: Instant,
) -> Result<(Served, Reserved), Error> {
    let options = &shared.options;
    let mut deadlines = options.deadlines;
    if matches!(
        method.target,
        Target::Snapshot | Target::Verify | Target::SetTime | Target::Upgrade(_)
    ) {
        // These take as long as the state or the component is large.
        deadlines.default = deadlines.max;
    }
    let deadline = metadata::deadline(&parts.headers, began, deadlines)?;
    let bytes_max = match method.target {
        Target::Machine(_) => options.request_bytes_max,
        // The size of a piece is independent of the request limit of state machines.
        Target::Upgrade(_) => components::PIECE_BYTES_MAX + generic::ENVELOPE_BYTES_MAX,
        _ => options.request_bytes_max + generic::ENVELOPE_BYTES_MAX,
    };
    let message = message::read(body, &parts.headers, bytes_max, shared, connection);
    let message = timeout_at(deadline, message).await.map_err(|_| Error::deadline())??;
    if deadline <= Instant::now() {
        return Err(Error::deadline());
    }
    let operator = !matches!(method.target, Target::Machine(_) | Target::Apply | Target::Query);
    let slot = shared.admit(connection, operator)?;
    let request = message.bytes.clone();
    let served = match method.target {
        Target::Machine(kind) => {
            let name = method.name.clone();
            invoke::machine(shared, Some(method), kind, name, request, parts, deadline).await
        }
        Target::Apply => generic::apply(shared, request, parts, deadline).await,
        Target::Query => generic::query(shared, request, parts, deadline).await,
        Target::Describe => generic::describe(shared),
        Target::Status => generic::status(shared, deadline).await,
        Target::Snapshot => generic::snapshot(shared, deadline).await,
        Target::Verify => generic::verify(shared, deadline).await,
        Target::SetTime => generic::set_time(shared, request, deadline).await,
        Target::SetLimits => generic::set_limits(shared, request, deadline).await,
        Target::Backup => Err(Error::fatal("a stream was called as a unary method")),
        Target::Upgrade(verb) => components::serve(shared, verb, request, deadline).await,
    };
    Ok((served?, slot))
}

/// Frames a response, if there is room for it. If there is no room, the response of an applied
/// command is lost. The error must then not look like that of a call without effect.
fn framed<B: Backend>(
    shared: &Shared<B>,
    method: &Method,
    connection: &Connection,
    Served { response, index }: Served,
    slot: Reserved,
) -> Result<(Answer, Option<u64>), Error> {
    let applied = matches!(method.target, Target::Apply | Target::Machine(MethodKind::Command));
    let large = response.len() > LARGE_BYTES;
    let memory = large.then(|| shared.reserve_answer(connection, response.len())).transpose();
    let least = shared.options.transfer_time;
    match memory.and_then(|memory| Answer::message(&response, slot, memory, least)) {
        Ok(answer) => Ok((answer, index)),
        Err(error) if applied => {
            let lost = Error::lost("there was no room for the answer").with_source(error);
            Err(lost.at_index(index.unwrap_or_default()))
        }
        Err(error) => Err(error),
    }
}

/// Serves health and reflection, and rejects unknown methods.
async fn elsewhere<B: Backend>(shared: &Shared<B>, request: Request<Incoming>) -> Outgoing {
    if let Some(status) = metadata::not_grpc(request.method(), request.headers()) {
        return Ok(not_grpc(status, &mut request.into_body()).await);
    }
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let health = path.starts_with("/grpc.health.v1.Health/");
    if !health && !REFLECTION.contains(&path) {
        shared.metrics.unknown_methods.inc();
        return Ok(status::to_status(&shared.table.load().unknown(path)).into_http());
    }
    let began = Instant::now();
    let admitted = metadata::stream_deadline(&parts.headers, began)
        .and_then(|ends| Ok((ends, shared.admit(&connection(&parts), health)?)));
    let (ends, slot) = match admitted {
        Ok(admitted) => admitted,
        Err(error) => return Ok(status::to_status(&error).into_http()),
    };
    let request = Request::from_parts(parts, body);
    let answer = async {
        if health {
            let Ok(answer) = shared.health.clone().call(request).await;
            return answer;
        }
        let codec = ProstCodec::<ServerReflectionResponse, ServerReflectionRequest>::default();
        let mut grpc =
            tonic::server::Grpc::new(codec).max_decoding_message_size(QUESTION_BYTES_MAX);
        grpc.streaming(Questions(shared), request).await
    };
    // Bounds the reading of the request, if it is a single message.
    let arrives = began + shared.options.transfer_time;
    match timeout_at(ends.unwrap_or(arrives).min(arrives), answer).await {
        Ok(answer) => {
            Ok(answer.map(|body| Answer::Bounded(Box::new(Bounded::new(body, ends, slot)))))
        }
        Err(_) => Ok(status::to_status(&Error::deadline()).into_http()),
    }
}

/// Both versions have the same messages.
const REFLECTION: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// The reflection method, for tonic.
struct Questions<'a, B>(&'a Shared<B>);

impl<B: Backend> StreamingService<ServerReflectionRequest> for Questions<'_, B> {
    type Response = ServerReflectionResponse;
    type ResponseStream = BoxStream<'static, Result<ServerReflectionResponse, Status>>;
    type Future = Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(
        &mut self,
        questions: tonic::Request<Streaming<ServerReflectionRequest>>,
    ) -> Self::Future {
        let reflection = self.0.reflection.load_full();
        let closing = self.0.closing.subscribe();
        let state = (questions.into_inner(), reflection, closing, Sent::new());
        let answers = stream::unfold(state, async |mut state| {
            let (questions, reflection, closing, sent) = &mut state;
            let question = tokio::select! {
                biased;
                // The sender lives as long as the port.
                _ = closing.wait_for(|closing| *closing) => return None,
                question = timeout(QUESTION_PAUSE_MAX, questions.message()) => question.ok()?,
            };
            let answer = question.transpose()?.map(|question| reflection.answer(question, sent));
            Some((answer, state))
        });
        ready(Ok(tonic::Response::new(answers.boxed())))
    }
}
