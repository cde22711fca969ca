//! `CreateBackup`: streams a backup.
//!
//! # Contract
//! - The stream is one backup file in order, then its size and hash. A stream without them is not a
//!   backup.
//! - The next piece is read when the connection has taken the one before. A caller that does not
//!   read in time loses the stream. At most [`Options::backups_max`](super::Options::backups_max)
//!   streams run at the same time.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE, request::Parts};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use prost::Message as _;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::{Instant, timeout_at},
};
use tonic::{Code, Status};

use super::{
    Backend, BackupFile, Shared,
    answer::{self, Answer},
    budget::Reserved,
    codec::decode,
    connection::connection,
    message, metadata,
    metrics::Flight,
    response::{GRPC, name_leader, not_grpc},
    status, streams,
    table::Method,
    transfer::transfer_time,
};
use conclave_proto::cluster as wire;
use conclave_types::{
    backup::{BackupPiece, Stretch, WrappingKey},
    error::Error,
};

/// Maximum size of a request, which holds one key.
const REQUEST_BYTES_MAX: usize = 4096;

/// Serves one backup.
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
    let mut response = match begin(&shared, &parts, &mut body, began).await {
        Ok(sending) => {
            flight.answered(Code::Ok);
            let index = sending.file.index;
            let frames = stream::unfold(sending, async |mut sending| {
                let frame = sending.next().await?;
                Some((Ok::<_, Status>(frame), sending))
            });
            let body = tonic::body::Body::new(StreamBody::new(Box::pin(frames)));
            let mut response = Response::new(Answer::Tonic(body));
            response.headers_mut().insert(CONTENT_TYPE, GRPC);
            response.headers_mut().insert(status::INDEX, status::index_value(index));
            response
        }
        Err(error) => {
            flight.answered(status::code(&error));
            tracing::debug!(%error, "backup refused");
            status::to_status(&error).into_http()
        }
    };
    name_leader(&shared, &mut response);
    response
}

async fn begin<B: Backend>(
    shared: &Shared<B>,
    parts: &Parts,
    body: &mut Incoming,
    began: Instant,
) -> Result<Sending, Error> {
    let options = &shared.options;
    let mut deadlines = options.deadlines;
    // The node takes a snapshot first.
    deadlines.default = deadlines.max;
    let deadline = metadata::deadline(&parts.headers, began, deadlines)?;
    let connection = connection(parts);
    let message = message::read(body, &parts.headers, REQUEST_BYTES_MAX, shared, &connection);
    let message = timeout_at(deadline, message).await.map_err(|_| Error::deadline())??;
    let slot = shared.admit(&connection, true)?;
    let permit = Arc::clone(&shared.backups).try_acquire_owned().map_err(|_| {
        Error::busy(format!(
            "this node already sends {} backups, which is the maximum: try again later, or another node",
            options.backups_max
        ))
    })?;
    let wire::CreateBackupRequest { key } = decode(message.bytes.clone())?;
    let key = key.map(wrapping_key).transpose()?;
    let file = timeout_at(deadline, shared.backend.back_up(key, deadline));
    let file = file.await.map_err(|_| Error::deadline())??;
    Ok(Sending {
        file,
        closing: shared.closing.subscribe(),
        transfer_time: options.transfer_time,
        state: State::Pieces,
        _held: (slot, permit),
    })
}

fn wrapping_key(key: wire::WrappingKey) -> Result<WrappingKey, Error> {
    let wire::WrappingKey { key, salt, memory_kib, passes, lanes } = key;
    let length = key.len();
    let key = key.as_ref().try_into();
    let key = key.map_err(|_| Error::invalid(format!("a key has 32 bytes, not {length}")))?;
    let stretch = match salt.is_empty() {
        true => None,
        false => {
            let salt = salt.as_ref().try_into();
            let salt = salt.map_err(|_| Error::invalid("a salt has 16 bytes"))?;
            Some(Stretch { salt, memory_kib, passes, lanes })
        }
    };
    Ok(WrappingKey { key, stretch })
}

/// A backup that is being sent.
struct Sending {
    file: BackupFile,
    closing: watch::Receiver<bool>,
    /// The base time for a reader, in addition to the time for the size.
    transfer_time: std::time::Duration,
    state: State,
    /// The call's slot, and the permit for a backup.
    _held: (Reserved, OwnedSemaphorePermit),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Pieces,
    /// The end was sent. The trailers follow.
    Whole,
    Ended,
}

impl Sending {
    async fn next(&mut self) -> Option<Frame<Bytes>> {
        match self.state {
            State::Ended => return None,
            State::Whole => {
                self.state = State::Ended;
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
                return Some(Frame::trailers(trailers));
            }
            State::Pieces => {}
        }
        streams::waits();
        let piece = tokio::select! {
            biased;
            // The sender lives as long as the port.
            _ = self.closing.wait_for(|closing| *closing) => Err(Error::shutting_down()),
            piece = self.file.pieces.recv() => {
                piece.unwrap_or_else(|| Err(Error::fatal("the backup ended before its last piece")))
            }
        };
        match piece.and_then(|piece| self.framed(piece)) {
            Ok(framed) => {
                streams::answered(Instant::now() + transfer_time(framed.len(), self.transfer_time));
                Some(Frame::data(framed))
            }
            Err(error) => {
                self.state = State::Ended;
                tracing::warn!(%error, index = self.file.index, "a backup was not sent completely");
                Some(Frame::trailers(status::trailers(&error)))
            }
        }
    }

    fn framed(&mut self, piece: BackupPiece) -> Result<Bytes, Error> {
        let part = match piece {
            BackupPiece::Bytes(bytes) => wire::backup_part::Part::Bytes(bytes),
            BackupPiece::End { bytes, blake3 } => {
                self.state = State::Whole;
                let blake3 = blake3.to_vec().into();
                wire::backup_part::Part::End(wire::BackupEnd { bytes, blake3 })
            }
        };
        answer::frame(&wire::BackupPart { part: Some(part) }.encode_to_vec())
    }
}
