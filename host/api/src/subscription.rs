//! Server-streaming methods of the state machine: the initial state, then the events.
//!
//! # Contract
//! 1. The initial messages describe the state at one index, `conclave-index` in the leading
//!    metadata. Then follows every later event whose topic lies in the state machine's range, once
//!    and in order.
//! 2. A call with `conclave-from-index: N` resumes: it gets no initial messages, and every event
//!    after N. Any node that has applied N serves it while the events are in its memory; otherwise
//!    the error is OUT_OF_RANGE.
//! 3. A call with `conclave-progress-ms: N` also gets a progress message when it got no message for
//!    N milliseconds, or up to a second later. The message has only the field 536870911, a varint:
//!    the index up to which every message was sent. Decoders that do not know the field read an
//!    empty message. The leading metadata repeat `conclave-progress-ms`.
//! 4. A stream ends at its caller's `grpc-timeout`, or with an error. UNAVAILABLE: the node stops
//!    or has not served for two seconds, for example because it is cut off from its peers; another
//!    node can continue. OUT_OF_RANGE: the caller reads more slowly than events are dropped from
//!    memory. The trailing metadata then carry `conclave-index`: every message up to it was sent.
//!    The stream is reset when the caller does not read within the time limit of a response.
//!
//! Messages that are ready together are sent in one DATA frame, since clients close connections
//! that send thousands of tiny frames.
//!
//! # Caveats
//! - gRPC messages have no metadata of their own. A subscriber needs the index of the last message
//!   to resume after a lost connection. So a state machine should put its entry's index into its
//!   messages, as `kv.v1` does. Between such messages, progress messages carry the index. Without
//!   them a quiet subscription falls behind the retained events.
//! - The events of one entry are separate messages. A subscriber that loses its connection between
//!   two of them resumes from the previous index, and receives the first again.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{FutureExt as _, future::BoxFuture, stream};
use http::{HeaderMap, Request, Response, header::CONTENT_TYPE, request::Parts};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tonic::{Code, Status};

use super::{
    Backend, Events, Shared, Subscribed,
    answer::{self, Answer, PIECE_BYTES},
    budget::Reserved,
    connection::{caller, connection},
    message::{self, LARGE_BYTES},
    metadata,
    metrics::Flight,
    response::{GRPC, name_leader, not_grpc},
    status, streams,
    table::Method,
    transfer::transfer_time,
};
use conclave_types::{
    Call,
    error::{Error, chain},
    status::Health,
};

const PROGRESS: &str = "conclave-progress-ms";
/// The field of a progress message. It has the largest number that protobuf allows, so that no
/// other message has it by accident.
const PROGRESS_FIELD: u32 = (1 << 29) - 1;
/// Messages that are ready are sent together up to this size.
const FRAME_BYTES: usize = 16 << 10;

/// A node's subscriptions end when it has not served for this time. An election takes about a
/// second and ends none.
const NOT_SERVING_TIME_MAX: Duration = Duration::from_secs(2);

/// Serves one subscription. The call is measured, and bounded in time, until its first message can be sent.
pub(super) async fn serve<B: Backend>(
    shared: Arc<Shared<B>>,
    method: &Method,
    request: Request<Incoming>,
) -> Response<Answer> {
    let (parts, mut body) = request.into_parts();
    if let Some(status) = metadata::not_grpc(&parts.method, &parts.headers) {
        return not_grpc(status, &mut body).await;
    }
    let began = Instant::now();
    let mut flight = Flight::begin(&method.metrics, began);
    let feed = begin(&shared, method, &parts, &mut body, began).await;
    let mut response = match feed {
        Ok(feed) => {
            flight.answered(Code::Ok);
            feed.hands_over(feed.messages.iter().map(Bytes::len).sum());
            let (index, progress) = (feed.index, feed.progress);
            let frames = stream::unfold(feed, async |mut feed| {
                let frame = feed.next().await?;
                Some((Ok::<_, Status>(frame), feed))
            });
            let body = tonic::body::Body::new(StreamBody::new(Box::pin(frames)));
            let mut response = Response::new(Answer::Tonic(body));
            response.headers_mut().insert(CONTENT_TYPE, GRPC);
            response.headers_mut().insert(status::INDEX, status::index_value(index));
            if let Some(interval) = progress {
                response.headers_mut().insert(PROGRESS, (interval.as_millis() as u64).into());
            }
            response
        }
        Err(error) => {
            flight.answered(status::code(&error));
            tracing::debug!(method = %method.name, error = chain(&error), "subscription refused");
            status::to_status(&error).into_http()
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
    let progress = progress_interval(&parts.headers)?;
    let connection = connection(parts);
    let permit = Arc::clone(&connection.subscriptions).try_acquire_owned().map_err(|_| {
        Error::busy(format!(
            "this connection has {} subscriptions, which is the maximum: use another connection, or another node",
            options.subscriptions_per_connection_max
        ))
    })?;
    let message =
        message::read(body, &parts.headers, options.request_bytes_max, shared, &connection);
    let message = timeout_at(deadline, message).await.map_err(|_| Error::deadline())??;
    let _slot = shared.admit(&connection, false)?;
    method.check_request(&message.bytes)?;
    let call = Call {
        method: method.name.clone(),
        request: message.bytes.clone(),
        principal: shared.anonymous.clone(),
    };
    let caller = caller(parts);
    let begun = shared.backend.subscribe(call, &caller, consistency, resume, deadline);
    let begun = timeout_at(deadline, begun).await.map_err(|_| Error::deadline())??;
    let Subscribed { index, result } = begun;
    let subscription = result.map_err(|failure| Error::failure(failure).at_index(index))?;
    let bytes = subscription.initial.iter().map(Bytes::len).sum();
    let memory = (bytes > LARGE_BYTES).then(|| shared.reserve_answer(&connection, bytes));
    // A resumed subscription has already received all messages up to this index.
    let index = resume.unwrap_or(index);
    Ok(Feed {
        index,
        sending: index,
        progress,
        last_sent: Instant::now(),
        messages: subscription.initial.into(),
        rest: Bytes::new(),
        events: Some(subscription.events),
        closing: shared.closing.subscribe(),
        not_serving: not_serving(shared.backend.health()).boxed(),
        ends,
        memory: memory.transpose()?,
        transfer_time: options.transfer_time,
        _permit: Some(permit),
    })
}

/// Reads `conclave-progress-ms`: the interval of progress messages.
fn progress_interval(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    let Some(value) = headers.get(PROGRESS) else { return Ok(None) };
    let millis = value.to_str().ok().and_then(|text| text.parse().ok());
    let interval = millis.filter(|millis| (1_000..=3_600_000).contains(millis));
    interval.map(|millis| Some(Duration::from_millis(millis))).ok_or_else(|| {
        Error::invalid(format!(
            "conclave-progress-ms is {:?}: give milliseconds between 1000 and 3600000",
            String::from_utf8_lossy(value.as_bytes())
        ))
    })
}

/// Returns a framed progress message.
fn progress_message(index: u64) -> Result<Bytes, Error> {
    let mut message = Vec::with_capacity(15);
    prost::encoding::uint64::encode(PROGRESS_FIELD, &index, &mut message);
    answer::frame(&message)
}

/// The messages of one subscriber, sent as it reads them.
struct Feed {
    /// Every message up to this index has been passed to the connection.
    index: u64,
    /// The index of the entry whose messages are waiting.
    sending: u64,
    /// The interval of progress messages, if the subscriber wants them.
    progress: Option<Duration>,
    /// The time of the last message of any kind.
    last_sent: Instant,
    messages: VecDeque<Bytes>,
    /// The rest of a frame that has been sent in part.
    rest: Bytes,
    /// `None` once the trailers have been sent.
    events: Option<Box<dyn Events>>,
    closing: watch::Receiver<bool>,
    /// Completes when the node has not served for so long that its subscriptions end.
    not_serving: BoxFuture<'static, Error>,
    ends: Option<Instant>,
    /// Reserved for the initial messages, until all of them have been passed to the connection.
    memory: Option<Reserved>,
    /// The base time for a reader, in addition to the time for the size.
    transfer_time: Duration,
    /// The permit for one of the connection's subscriptions.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Feed {
    async fn next(&mut self) -> Option<Frame<Bytes>> {
        let error = loop {
            match self.ready() {
                Ok(None) => {}
                Ok(Some(framed)) => {
                    self.last_sent = Instant::now();
                    self.hands_over(framed.len());
                    return Some(Frame::data(framed));
                }
                Err(error) => break error,
            }
            self.memory = None;
            streams::waits();
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
                error = &mut self.not_serving => break error,
                next = events.next() => match next {
                    Ok((index, messages)) => {
                        self.sending = index;
                        self.messages = messages.into();
                    }
                    Err(error) => break error,
                },
            }
        };
        self.note_last_position();
        self.events = None;
        self.messages.clear();
        tracing::debug!(error = chain(&error), index = self.index, "a subscription ends");
        Some(Frame::trailers(trailers(&error, self.index)))
    }
}

impl Feed {
    /// Notes the position of a subscription that ends because the node stops. Events of other topics
    /// may have moved it far since the last event or progress.
    fn note_last_position(&mut self) {
        let is_waiting = self.messages.is_empty() && self.rest.is_empty();
        let events = self.events.as_mut().filter(|_| is_waiting && *self.closing.borrow());
        if let Some(position) = events.and_then(|events| events.position()) {
            self.index = self.index.max(position);
        }
    }

    /// Ends the stream if the reader does not take these bytes in time, so that memory is not
    /// held without limit.
    fn hands_over(&self, bytes: usize) {
        streams::answered(Instant::now() + transfer_time(bytes, self.transfer_time));
    }

    /// Returns the bytes that can be sent now: waiting messages up to the frame size, or
    /// a progress message.
    fn ready(&mut self) -> Result<Option<Bytes>, Error> {
        if self.rest.is_empty() {
            self.rest = self.next_frame()?.unwrap_or_default();
        }
        // The connection buffers pieces beyond its reader's window, so a large frame is passed in pieces.
        let piece = self.rest.split_to(self.rest.len().min(PIECE_BYTES));
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }

    fn next_frame(&mut self) -> Result<Option<Bytes>, Error> {
        if let Some(first) = self.messages.pop_front() {
            let first = answer::frame(&first)?;
            let is_small =
                |message: &Bytes, frame: &BytesMut| frame.len() + message.len() < FRAME_BYTES;
            let mut frame = BytesMut::from(first);
            while let Some(next) = self.messages.pop_front_if(|next| is_small(next, &frame)) {
                frame.extend_from_slice(&answer::frame(&next)?);
            }
            return Ok(Some(frame.freeze()));
        }
        self.index = self.sending;
        match self.progress {
            // Also sent without new messages, since proxies close silent connections.
            Some(interval) if self.last_sent.elapsed() >= interval => {
                progress_message(self.index).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// Waits until the node has not served for [`NOT_SERVING_TIME_MAX`], and returns the reason.
async fn not_serving(mut health: watch::Receiver<Health>) -> Error {
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
    let mut trailers = status::trailers(error);
    trailers.insert(status::INDEX, status::index_value(index));
    trailers
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    /// Clients count frames: thousands of tiny ones look like an attack.
    #[test]
    fn messages_that_are_ready_together_share_a_frame() {
        let message = Bytes::from(vec![7; 100]);
        let mut feed = Feed {
            index: 1,
            sending: 2,
            progress: None,
            last_sent: Instant::now(),
            messages: vec![message; 1_000].into(),
            rest: Bytes::new(),
            events: None,
            closing: watch::channel(false).1,
            not_serving: std::future::pending().boxed(),
            ends: None,
            memory: None,
            transfer_time: Duration::ZERO,
            _permit: None,
        };
        let mut frames = Vec::new();
        while let Some(frame) = feed.ready().unwrap() {
            frames.push(frame);
        }
        let bytes: usize = frames.iter().map(Bytes::len).sum();
        assert_eq!((bytes, feed.index), (1_000 * 105, 2));
        assert!(frames.iter().all(|frame| frame.len() <= FRAME_BYTES && frame.len() % 105 == 0));
        assert_eq!(frames.len(), bytes.div_ceil(FRAME_BYTES));
        // A large message is sent alone, in pieces.
        feed.messages =
            vec![Bytes::from(vec![7; PIECE_BYTES * 2]), Bytes::from_static(b"x")].into();
        for expected in [PIECE_BYTES, PIECE_BYTES, 5, 6] {
            assert_eq!(feed.ready().unwrap().unwrap().len(), expected);
        }
    }
}
