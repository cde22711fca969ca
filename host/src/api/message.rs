//! gRPC's framing of one message in and one message out.
//!
//! Requests are handed on as the bytes that the connection received, without a copy if they came in one
//! frame; answers are written once, and large ones handed on in pieces as their reader takes them.
//! Nothing is boxed and nothing is decoded. Compressed messages are refused: the layer advertises no
//! compression.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use crate::error::Error;

/// A flag that says whether the message is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// Messages above this are counted against a [`Budget`]; the others are bounded by the number of calls.
const LARGE_BYTES: usize = 64 * 1024;
/// A large answer's piece. The connection asks for one at a time, when there is room to send it.
const PIECE_BYTES: usize = 64 * 1024;

/// The memory that large messages of one kind may hold together.
pub(super) struct Budget {
    /// For people: requests or answers.
    kind: &'static str,
    kibibytes: Arc<Semaphore>,
    bytes_max: usize,
}

impl Budget {
    pub(super) fn new(kind: &'static str, bytes_max: usize) -> Self {
        let permits = (bytes_max / 1024).min(Semaphore::MAX_PERMITS);
        Self { kind, kibibytes: Arc::new(Semaphore::new(permits)), bytes_max }
    }

    fn reserve(&self, bytes: usize) -> Result<Option<OwnedSemaphorePermit>, Error> {
        if bytes <= LARGE_BYTES {
            return Ok(None);
        }
        let kibibytes = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        match self.kibibytes.clone().try_acquire_many_owned(kibibytes) {
            Ok(permit) => Ok(Some(permit)),
            Err(_) => Err(Error::busy(format!(
                "{} of more than {LARGE_BYTES} bytes hold all of the {} bytes of memory that this node \
                 gives them: try again in a moment",
                self.kind, self.bytes_max
            ))),
        }
    }
}

/// A whole request message, and its share of the budget while it is worked on.
pub(super) struct Message {
    pub(super) bytes: Bytes,
    _reserved: Option<OwnedSemaphorePermit>,
}

/// Reads the one message of a unary call, up to the end of the stream.
pub(super) async fn read(
    body: &mut Incoming,
    bytes_max: usize,
    budget: &Budget,
) -> Result<Message, Error> {
    let first = match next_data(body).await? {
        Some(data) if data.len() >= PREFIX_BYTES => data,
        Some(data) => join_prefix(body, data).await?,
        None => return Err(Error::invalid("the call carries no request message")),
    };
    let length = announced_length(&first, bytes_max)?;
    let reserved = budget.reserve(length)?;
    let received = first.len() - PREFIX_BYTES;
    let bytes = if received == length {
        first.slice(PREFIX_BYTES..)
    } else if received > length {
        return Err(more_than_one());
    } else {
        join(body, &first[PREFIX_BYTES..], length).await?
    };
    if !body.is_end_stream() && next_data(body).await?.is_some() {
        return Err(more_than_one());
    }
    Ok(Message { bytes, _reserved: reserved })
}

fn announced_length(prefix: &[u8], bytes_max: usize) -> Result<usize, Error> {
    let [flag, length @ ..] = prefix else { return Err(cut_off()) };
    match flag {
        0 => {}
        1 => return Err(Error::unsupported("the request is compressed: send it uncompressed")),
        _ => return Err(Error::invalid("the request is not framed as a gRPC message")),
    }
    let Some(length) = length.first_chunk::<4>() else { return Err(cut_off()) };
    let length = u32::from_be_bytes(*length) as usize;
    if length > bytes_max {
        return Err(too_large(length, bytes_max));
    }
    Ok(length)
}

/// A request over the limit.
pub(super) fn too_large(bytes: usize, bytes_max: usize) -> Error {
    Error::limit(format!(
        "the request has {bytes} bytes and this node takes at most {bytes_max}: send less at once, or \
         raise limits.request_bytes_max on every node"
    ))
}

fn more_than_one() -> Error {
    Error::invalid("the call carries more than one request message and the method takes one")
}

fn cut_off() -> Error {
    Error::invalid("the request ended before its announced length")
}

/// The next data that is not empty; `None` at the end of the stream.
async fn next_data(body: &mut Incoming) -> Result<Option<Bytes>, Error> {
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                if let Ok(data) = frame.into_data()
                    && !data.is_empty()
                {
                    return Ok(Some(data));
                }
            }
            Err(error) => {
                return Err(
                    Error::invalid("the request could not be read to its end").with_source(error)
                );
            }
        }
    }
    Ok(None)
}

async fn join_prefix(body: &mut Incoming, first: Bytes) -> Result<Bytes, Error> {
    let mut joined = BytesMut::from(first);
    while joined.len() < PREFIX_BYTES {
        joined.extend_from_slice(&next_data(body).await?.ok_or_else(cut_off)?);
    }
    Ok(joined.freeze())
}

async fn join(body: &mut Incoming, first: &[u8], length: usize) -> Result<Bytes, Error> {
    let mut joined = BytesMut::with_capacity(length);
    joined.extend_from_slice(first);
    while joined.len() < length {
        let data = next_data(body).await?.ok_or_else(cut_off)?;
        if data.len() > length - joined.len() {
            return Err(more_than_one());
        }
        joined.extend_from_slice(&data);
    }
    Ok(joined.freeze())
}

/// Reads and drops what a client still sends of a request that was refused, so that it gets to read the
/// answer: some clients take a reset for the answer while they write.
pub(super) async fn discard(body: &mut Incoming, bytes_max: usize) {
    let mut dropped = 0;
    while !body.is_end_stream() && dropped < bytes_max {
        match next_data(body).await {
            Ok(Some(data)) => dropped += data.len(),
            Ok(None) | Err(_) => return,
        }
    }
}

/// The body of an answer.
#[derive(Default)]
pub(super) enum Answer {
    /// Headers say it all.
    #[default]
    Empty,
    /// A message, then `grpc-status: 0`.
    Message(Bytes),
    /// What is left of a large message, and the memory that it holds until its reader has taken it.
    Pieces { rest: Bytes, _reserved: OwnedSemaphorePermit },
    /// `grpc-status: 0`.
    Trailers,
    /// What one of tonic's services answers, or a subscription.
    Tonic(tonic::body::Body),
}

/// A message with its prefix.
pub(super) fn frame(message: &[u8]) -> Result<Bytes, Error> {
    let Ok(length) = u32::try_from(message.len()) else {
        return Err(Error::limit("the response is larger than gRPC can carry: ask for less"));
    };
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    framed.put_u8(0);
    framed.put_u32(length);
    framed.put_slice(message);
    Ok(framed.freeze())
}

impl Answer {
    /// Frames a response message. Fails if it is large and there is no room for it.
    pub(super) fn message(response: &[u8], budget: &Budget) -> Result<Self, Error> {
        let reserved = budget.reserve(response.len())?;
        let framed = frame(response)?;
        Ok(match reserved {
            None => Self::Message(framed),
            Some(permit) => Self::Pieces { rest: framed, _reserved: permit },
        })
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Message(framed) => {
                let framed = std::mem::take(framed);
                *self = Self::Trailers;
                Poll::Ready(Some(Ok(Frame::data(framed))))
            }
            Self::Pieces { rest, .. } => {
                let piece = rest.split_to(rest.len().min(PIECE_BYTES));
                if rest.is_empty() {
                    *self = Self::Trailers;
                }
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            Self::Trailers => {
                *self = Self::Empty;
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Self::Tonic(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Message(_) | Self::Pieces { .. } | Self::Trailers => false,
            Self::Tonic(body) => body.is_end_stream(),
        }
    }
}

/// Nothing above this layer fails: an error is an answer too.
pub(super) type Outgoing = Result<http::Response<Answer>, Infallible>;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    async fn frames(mut answer: Answer) -> Vec<Bytes> {
        let mut frames = Vec::new();
        while let Some(frame) = answer.frame().await {
            frames.extend(frame.unwrap().into_data());
        }
        frames
    }

    #[tokio::test]
    async fn a_small_answer_is_one_frame_and_a_large_one_comes_in_pieces_and_holds_its_memory() {
        let budget = Budget::new("answers", 300 * 1024);
        let small = vec![7; LARGE_BYTES];
        let frames_of_small = frames(Answer::message(&small, &budget).unwrap()).await;
        assert_eq!(frames_of_small.len(), 1);

        let large: Vec<u8> = (0..200 * 1024_u32).map(|byte| byte as u8).collect();
        let answer = Answer::message(&large, &budget).unwrap();
        assert!(Answer::message(&large, &budget).is_err_and(|error| error.is_retryable()));
        Answer::message(&small, &budget).unwrap();
        let pieces = frames(answer).await;
        assert!(pieces.iter().all(|piece| piece.len() <= PIECE_BYTES));
        assert_eq!(pieces.concat()[PREFIX_BYTES..], large);
        Answer::message(&large, &budget).unwrap();
    }
}
