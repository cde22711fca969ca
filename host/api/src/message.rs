//! gRPC's framing of the one request message of a call.
//!
//! Requests are passed on as the bytes that the connection received, without a copy if they came in
//! one frame. They are neither boxed nor decoded.
//!
//! Compressed messages are rejected as gRPC's compression.md requires: with UNIMPLEMENTED and
//! `grpc-accept-encoding: identity`. Clients then send uncompressed. A compressed message may be a
//! thousand times as large as its bytes on the wire, so budgets would have to count bytes that have not
//! arrived. The values of a configuration store are small, and nodes and clients are close to each other.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::timeout;

use super::{Backend, Shared, budget::Reserved, connection::Connection, transfer::transfer_time};
use conclave_types::error::Error;

/// Length of the prefix: the compression flag and the message length.
pub(super) const PREFIX_BYTES: usize = 5;

/// Larger messages are counted in bytes. The number of calls bounds the memory of smaller ones.
pub(super) const LARGE_BYTES: usize = 64 * 1024;

/// Limits of the bytes and the time for discarding a rejected request, before its stream is reset.
pub(super) const DISCARD_BYTES_MAX: usize = 16 * 1024 * 1024;
pub(super) const DISCARD_TIME_MAX: Duration = Duration::from_secs(1);

/// A whole request message, with the memory reserved while it is processed.
pub(super) struct Message {
    pub(super) bytes: Bytes,
    _memory: Option<Reserved>,
}

/// Reads the one message of a unary call, up to the end of the stream. Memory is reserved as bytes
/// arrive. A message that does not arrive in time is rejected.
pub(super) async fn read<B: Backend>(
    body: &mut Incoming,
    headers: &HeaderMap,
    bytes_max: usize,
    shared: &Shared<B>,
    connection: &Connection,
) -> Result<Message, Error> {
    let least = shared.options.transfer_time;
    let begun = timeout(least, begin(body, headers, bytes_max));
    let (first, length) = begun.await.map_err(|_| Error::deadline())??;
    let whole = timeout(transfer_time(length, least), async {
        let message = whole(body, first, length, shared, connection).await?;
        if !body.is_end_stream() && next_data(body).await?.is_some() {
            return Err(more_than_one());
        }
        Ok(message)
    });
    whole.await.map_err(|_| Error::deadline())?
}

/// Reads the prefix. Returns the bytes received so far, including the prefix, and the announced length.
async fn begin(
    body: &mut Incoming,
    headers: &HeaderMap,
    bytes_max: usize,
) -> Result<(Bytes, usize), Error> {
    let first = match next_data(body).await? {
        Some(data) if data.len() >= PREFIX_BYTES => data,
        Some(data) => join_prefix(body, data).await?,
        None => {
            return Err(Error::unsupported(
                "the call carries no request message and the method takes one",
            ));
        }
    };
    let length = announced_length(&first, headers, bytes_max)?;
    Ok((first, length))
}

async fn whole<B: Backend>(
    body: &mut Incoming,
    first: Bytes,
    length: usize,
    shared: &Shared<B>,
    connection: &Connection,
) -> Result<Message, Error> {
    let received = first.len() - PREFIX_BYTES;
    if received > length {
        return Err(more_than_one());
    }
    if received == length {
        let memory = (length > LARGE_BYTES).then(|| shared.reserve_request(connection, length));
        let bytes = first.slice(PREFIX_BYTES..);
        return Ok(Message { bytes, _memory: memory.transpose()? });
    }
    // Unfinished messages are counted even if they are small, since there may be many.
    let mut memory = shared.reserve_request(connection, received)?;
    let mut joined = BytesMut::with_capacity(length.min(LARGE_BYTES).max(received));
    joined.extend_from_slice(&first[PREFIX_BYTES..]);
    drop(first);
    while joined.len() < length {
        let data = next_data(body).await?.ok_or_else(cut_off)?;
        if data.len() > length - joined.len() {
            return Err(more_than_one());
        }
        shared.grow_request(&mut memory, data.len())?;
        joined.extend_from_slice(&data);
    }
    Ok(Message { bytes: joined.freeze(), _memory: Some(memory) })
}

fn announced_length(prefix: &[u8], headers: &HeaderMap, bytes_max: usize) -> Result<usize, Error> {
    let [flag, length @ ..] = prefix else { return Err(cut_off()) };
    match flag {
        0 => {}
        1 => return Err(compressed(headers)),
        _ => return Err(Error::invalid("the request is not framed as a gRPC message")),
    }
    let Some(length) = length.first_chunk::<4>() else { return Err(cut_off()) };
    let length = u32::from_be_bytes(*length) as usize;
    if length > bytes_max {
        return Err(too_large(length, bytes_max));
    }
    Ok(length)
}

fn compressed(headers: &HeaderMap) -> Error {
    match headers.get("grpc-encoding") {
        Some(encoding) if encoding != "identity" => Error::compressed(format!(
            "the request is compressed with {:?}: send it uncompressed",
            String::from_utf8_lossy(encoding.as_bytes())
        )),
        _ => Error::malformed("the request is marked as compressed and names no grpc-encoding"),
    }
}

/// The error for a request over the size limit.
pub(super) fn too_large(bytes: usize, bytes_max: usize) -> Error {
    Error::limit(format!(
        "the request has {bytes} bytes and this node accepts at most {bytes_max}: send smaller requests, or \
         raise limits.request_bytes_max on every node"
    ))
}

fn more_than_one() -> Error {
    Error::unsupported("the call carries more than one request message and the method takes one")
}

fn cut_off() -> Error {
    Error::invalid("the request ended before its announced length")
}

/// Returns the next data that is not empty, or `None` at the end of the stream.
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

/// Reads and discards the rest of a rejected request, so that the client reads the response. Some
/// clients treat a reset as the response while they write.
pub(super) async fn discard(body: &mut Incoming, bytes_max: usize) {
    let mut dropped = 0;
    while !body.is_end_stream() && dropped < bytes_max {
        match next_data(body).await {
            Ok(Some(data)) => dropped += data.len(),
            Ok(None) | Err(_) => return,
        }
    }
}
