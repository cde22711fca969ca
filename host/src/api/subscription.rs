//! Server-streaming methods of the machine: first what is, then what happens.
//!
//! # Contract
//! 1. The initial messages describe the state at one index, `conclave-index` in the leading metadata; then
//!    comes every event after it whose topic lies in the machine's range, once and in order.
//! 2. A call with `conclave-from-index: N` goes on: no initial messages, and every event after N. Any node
//!    serves it, once it has applied N, for as long as the events are in its memory; OUT_OF_RANGE otherwise.
//! 3. A stream ends by its caller's `grpc-timeout`, or with an error: UNAVAILABLE when the node stops or has not
//!    served for two seconds (it is cut off from its peers, for example; another node continues), OUT_OF_RANGE when the caller reads more slowly than events are dropped from memory. Trailing metadata
//!    then carry `conclave-index`: every message up to it was sent.
//!
//! # Caveats
//! - gRPC gives a message no metadata. A subscriber that wants to go on after a lost connection needs the
//!   index of what it has seen, so a machine should put its entry's index into its messages, as `kv.v1` does.
//! - The events of one entry are messages of their own. Who has lost a connection between two of them goes on
//!   from the index before, and sees the first again.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::{HeaderMap, Request, Response, header::CONTENT_TYPE, request::Parts};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tonic::{Code, Status};

use super::{
    Backend, Events, Shared, Subscribed,
    call::{self, GRPC, name_leader, not_grpc},
    message::{self, Answer},
    metadata,
    metrics::Flight,
    status,
    table::Method,
};
use crate::{
    error::Error,
    types::{Call, status::Health},
};

/// How long a node may not serve before its subscriptions end. An election takes about a second, and ends none.
const NOT_SERVING_TIME_MAX: Duration = Duration::from_secs(2);

/// Answers one call. It is counted, and bounded in time, until its first message can be sent.
pub(super) async fn serve<B: Backend>(
    shared: Arc<Shared<B>>,
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
    let feed = if admitted {
        begin(&shared, method, &parts, &mut body, began).await
    } else {
        Err(Error::busy(format!(
            "this node works on {calls_max} calls, as many as it takes at once: try again in a moment"
        )))
    };
    let mut response = match feed {
        Ok(feed) => {
            flight.answered(Code::Ok);
            let index = feed.index;
            let frames = stream::unfold(feed, async |mut feed| {
                let frame = feed.next().await?;
                Some((Ok::<_, Status>(frame), feed))
            });
            let body = tonic::body::Body::new(StreamBody::new(Box::pin(frames)));
            let mut response = Response::new(Answer::Tonic(body));
            response.headers_mut().insert(CONTENT_TYPE, GRPC);
            response.headers_mut().insert(status::INDEX, status::index_value(index));
            response
        }
        Err(error) => {
            flight.answered(status::code(&error));
            tracing::debug!(method = %method.name, %error, "subscription refused");
            Status::from(&error).into_http()
        }
    };
    name_leader(&shared, &mut response);
    response
}

async fn begin<B: Backend>(
    shared: &Shared<B>,
    method: &Method,
    parts: &Parts,
    body: &mut Incoming,
    began: Instant,
) -> Result<Feed, Error> {
    let options = &shared.options;
    let deadline = metadata::deadline(&parts.headers, began, options.deadlines)?;
    let ends = metadata::stream_deadline(&parts.headers, began)?;
    let consistency = metadata::consistency(&parts.headers)?;
    let resume = metadata::from_index(&parts.headers)?;
    let message = message::read(body, options.request_bytes_max, &shared.requests);
    let message = timeout_at(deadline, message).await.map_err(|_| Error::deadline())??;
    method.check_request(&message.bytes)?;
    let call = Call {
        method: method.name.clone(),
        request: message.bytes.clone(),
        principal: shared.anonymous.clone(),
    };
    let caller = call::caller(parts);
    let begun = shared.backend.subscribe(call, &caller, consistency, resume, deadline);
    let begun = timeout_at(deadline, begun).await.map_err(|_| Error::deadline())??;
    let Subscribed { index, result } = begun;
    let subscription = result.map_err(|failure| Error::failure(failure).at_index(index))?;
    // A subscription that goes on has seen what came before.
    let index = resume.unwrap_or(index);
    Ok(Feed {
        index,
        sending: index,
        messages: subscription.initial.into(),
        events: Some(subscription.events),
        closing: shared.closing.subscribe(),
        health: shared.backend.health(),
        ends,
    })
}

/// What one subscriber is sent, as it takes it.
struct Feed {
    /// Every message up to here has been handed on.
    index: u64,
    /// Of this entry are the messages that wait.
    sending: u64,
    messages: VecDeque<Bytes>,
    /// `None`: the trailers were sent.
    events: Option<Events>,
    closing: watch::Receiver<bool>,
    health: watch::Receiver<Health>,
    ends: Option<Instant>,
}

impl Feed {
    async fn next(&mut self) -> Option<Frame<Bytes>> {
        let error = loop {
            if let Some(message) = self.messages.pop_front() {
                match message::frame(&message) {
                    Ok(framed) => return Some(Frame::data(framed)),
                    Err(error) => break error,
                }
            }
            self.index = self.sending;
            let events = self.events.as_mut()?;
            let ends = self.ends;
            let ended = async {
                match ends {
                    Some(ends) => sleep_until(ends).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                // The sender lives as long as the port.
                _ = self.closing.wait_for(|closing| *closing) => break Error::shutting_down(),
                () = ended => break Error::deadline(),
                error = not_serving(&mut self.health) => break error,
                next = events.next() => match next {
                    Some(Ok((index, messages))) => {
                        self.sending = index;
                        self.messages = messages.into();
                    }
                    Some(Err(error)) => break error,
                    None => break Error::shutting_down(),
                },
            }
        };
        self.events = None;
        self.messages.clear();
        tracing::debug!(%error, index = self.index, "a subscription ends");
        Some(Frame::trailers(trailers(&error, self.index)))
    }
}

/// Waits until the node has not served for [`NOT_SERVING_TIME_MAX`], and returns why.
async fn not_serving(health: &mut watch::Receiver<Health>) -> Error {
    loop {
        let stopped = health.wait_for(|health| *health != Health::Serving).await.is_ok();
        if !stopped {
            // The sender lives as long as the node.
            return std::future::pending().await;
        }
        let serves = health.wait_for(|health| *health == Health::Serving);
        if timeout(NOT_SERVING_TIME_MAX, serves).await.is_err()
            && let Health::NotServing(why) = &*health.borrow()
        {
            return Error::stopped(why.to_string());
        }
    }
}

fn trailers(error: &Error, index: u64) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if Status::from(error).add_header(&mut trailers).is_err() {
        // Its text cannot be a header.
        trailers.insert(Status::GRPC_STATUS, (status::code(error) as i32).into());
    }
    trailers.insert(status::INDEX, status::index_value(index));
    trailers
}
