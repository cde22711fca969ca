//! The body of a response, and the resources that it holds until its reader has taken it.
//!
//! Contract:
//! * A response keeps its call's slot until the connection has sent its last byte. If it is large,
//!   it keeps its reserved memory until the connection has taken its last piece.
//! * A reader has [`Options::transfer_time`](super::Options::transfer_time), plus one second per
//!   [`BYTES_PER_SECOND_MIN`](super::transfer::BYTES_PER_SECOND_MIN). After that the stream ends
//!   (`streams.rs`).
//!
//! Caveat: a piece that HTTP/2 has begun to send keeps its slot until the reader takes it or
//! the connection ends.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use hyper::body::{Body, Frame};
use tokio::time::{Instant, Sleep};
use tonic::Status;

use super::{budget::Reserved, message::PREFIX_BYTES, status, streams, transfer::transfer_time};
use conclave_types::error::Error;

/// Size of the pieces of a large response. The connection takes one piece at a time, when it can send it.
pub(super) const PIECE_BYTES: usize = 64 * 1024;

/// The body of a response.
#[derive(Default)]
pub(super) enum Answer {
    /// No body: the headers contain the status.
    #[default]
    Empty,
    /// A message, then `grpc-status: 0`.
    Message(Message),
    /// `grpc-status: 0`.
    Trailers,
    /// A subscription.
    Tonic(tonic::body::Body),
    /// The response of one of tonic's services, which may be an endless stream.
    Bounded(Box<Bounded>),
}

/// Returns the message with its gRPC prefix.
pub(super) fn frame(message: &[u8]) -> Result<Bytes, Error> {
    let Ok(length) = u32::try_from(message.len()) else {
        return Err(Error::limit("the response is larger than gRPC can carry: request less data"));
    };
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    framed.put_u8(0);
    framed.put_u32(length);
    framed.put_slice(message);
    Ok(framed.freeze())
}

/// A message that is being sent.
pub(super) struct Message {
    rest: Bytes,
    slot: Arc<Reserved>,
    memory: Option<Reserved>,
}

/// Bytes that the connection has taken. They hold the call's slot.
struct Piece {
    bytes: Bytes,
    _slot: Arc<Reserved>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Answer {
    /// Frames a response message. `memory` is the reservation of a large response. The stream ends
    /// when the reader takes longer than `least` plus the time for the size.
    pub(super) fn message(
        response: &[u8],
        slot: Reserved,
        memory: Option<Reserved>,
        least: Duration,
    ) -> Result<Self, Error> {
        let message = Message { rest: frame(response)?, slot: Arc::new(slot), memory };
        streams::answered(Instant::now() + transfer_time(response.len(), least));
        Ok(Self::Message(message))
    }
}

impl Message {
    /// Returns the next piece.
    fn piece(&mut self) -> Bytes {
        let bytes = match &self.memory {
            None => std::mem::take(&mut self.rest),
            // A copy, so that the rest can be discarded while the connection holds this piece.
            Some(_) => {
                let length = self.rest.len().min(PIECE_BYTES);
                Bytes::copy_from_slice(&self.rest.split_to(length))
            }
        };
        Bytes::from_owner(Piece { bytes, _slot: Arc::clone(&self.slot) })
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
            Self::Message(message) => {
                let piece = message.piece();
                if message.rest.is_empty() {
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
            Self::Bounded(bounded) => bounded.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Message(_) | Self::Trailers => false,
            Self::Tonic(body) => body.is_end_stream(),
            Self::Bounded(bounded) => bounded.body.is_none(),
        }
    }
}

/// A body that ends at its caller's deadline. Until then it counts as a call.
pub(super) struct Bounded {
    /// `None` once the body has ended.
    body: Option<tonic::body::Body>,
    ends: Option<Pin<Box<Sleep>>>,
    _slot: Reserved,
}

impl Bounded {
    pub(super) fn new(body: tonic::body::Body, ends: Option<Instant>, slot: Reserved) -> Self {
        let body = Some(body).filter(|body| !body.is_end_stream());
        let ends = ends.map(|ends| Box::pin(tokio::time::sleep_until(ends)));
        Self { body, ends, _slot: slot }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
            if frame.is_none() {
                self.body = None;
            }
            return Poll::Ready(frame);
        }
        let ends = self.ends.as_mut().map(|ends| ends.as_mut().poll(cx));
        if ends != Some(Poll::Ready(())) {
            return Poll::Pending;
        }
        self.body = None;
        let trailers = status::trailers(&Error::deadline());
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use http_body_util::BodyExt as _;

    use super::{super::budget::Budget, *};

    const LEAST: Duration = Duration::from_secs(10);

    async fn frames(mut answer: Answer) -> Vec<Bytes> {
        let mut frames = Vec::new();
        while let Some(frame) = answer.frame().await {
            frames.extend(frame.unwrap().into_data());
        }
        frames
    }

    #[tokio::test]
    async fn an_answer_holds_its_slot_until_its_last_piece_is_dropped() {
        let (calls, memory) =
            (Budget::new(2, Arc::default()), Budget::new(1 << 20, Arc::default()));
        let (share, of_memory) = (Arc::default(), Arc::default());
        let slot = || calls.reserve(&share, 1, 1);
        let reserve = |bytes| memory.reserve(&of_memory, bytes, 1);
        let small = vec![7; PIECE_BYTES];
        let answer = Answer::message(&small, slot().unwrap(), None, LEAST).unwrap();
        let taken = frames(answer).await;
        assert_eq!(taken.len(), 1);
        assert!(slot().is_none());
        drop(taken);

        let large: Vec<u8> = (0..200 * 1024_u32).map(|byte| byte as u8).collect();
        let held = reserve(large.len());
        let mut answer = Answer::message(&large, slot().unwrap(), held, LEAST).unwrap();
        let first = answer.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(reserve(1 << 20).is_none() && slot().is_none());
        let pieces = frames(answer).await;
        assert!(reserve(1 << 20).is_some() && slot().is_none());
        assert!(pieces.iter().all(|piece| piece.len() <= PIECE_BYTES));
        assert_eq!([&[first][..], &pieces].concat().concat()[PREFIX_BYTES..], large);
        drop(pieces);
        assert!(slot().is_some());
    }

    /// Drops the response as the end of its stream does.
    #[tokio::test]
    async fn an_answer_that_is_dropped_leaves_only_the_pieces_that_were_taken() {
        let (calls, memory) =
            (Budget::new(2, Arc::default()), Budget::new(1 << 20, Arc::default()));
        let (share, of_memory) = (Arc::default(), Arc::default());
        let large = vec![7; 200 * 1024];
        let held = memory.reserve(&of_memory, large.len(), 1);
        let slot = calls.reserve(&share, 1, 1).unwrap();
        let mut answer = Answer::message(&large, slot, held, LEAST).unwrap();
        let piece = answer.frame().await;
        drop(answer);
        assert!(memory.reserve(&of_memory, 1 << 20, 1).is_some());
        assert!(calls.reserve(&share, 1, 1).is_none());
        drop(piece);
        assert!(calls.reserve(&share, 1, 1).is_some());
    }
}
