//! The only table from errors to gRPC. `docs/clients.md` describes it for callers, row by row.
//!
//! Clients retry UNAVAILABLE automatically. So it is reserved for calls that certainly had no effect
//! and that may succeed soon, here or at another node. This includes calls rejected because a queue
//! is full, or because of an earlier fatal error. A limit that the same call would meet again is
//! RESOURCE_EXHAUSTED, which is not retried. A fatal error may occur after a command was proposed,
//! so INTERNAL without metadata leaves the outcome open. A trap is also INTERNAL, because the state
//! machine has a bug, but with `conclave-trap`: the call was rolled back. A lost outcome is UNKNOWN.

use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::{Code, Status, metadata::MetadataMap};

use conclave_types as types;
use conclave_types::error::{Error, ErrorKind, chain};

/// The log index of the response.
pub(super) const INDEX: HeaderName = HeaderName::from_static("conclave-index");
/// The leader's client address.
pub(super) const LEADER: HeaderName = HeaderName::from_static("conclave-leader");
/// The kind of the trap.
const TRAP: HeaderName = HeaderName::from_static("conclave-trap");
/// `unknown`: the command may or may not have been applied. `not-applied`: it never will be.
const OUTCOME: HeaderName = HeaderName::from_static("conclave-outcome");

/// The request encodings that this node accepts: none. gRPC's compression.md requires the header
/// when a compressed request is rejected.
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// Maximum length of an error text in its percent-encoded form. gRPC clients accept 8 KiB of headers.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Returns the gRPC code of an error.
pub(super) fn code(error: &Error) -> Code {
    match error.kind() {
        ErrorKind::NotLeader { .. }
        | ErrorKind::NoQuorum
        | ErrorKind::ShuttingDown
        | ErrorKind::Stopped(_)
        | ErrorKind::Busy(_) => Code::Unavailable,
        ErrorKind::Deadline { .. } => Code::DeadlineExceeded,
        ErrorKind::Lost(_) => Code::Unknown,
        ErrorKind::Limit(_) => Code::ResourceExhausted,
        ErrorKind::Gone(_) => Code::OutOfRange,
        ErrorKind::UnknownMethod(_) | ErrorKind::Unsupported(_) | ErrorKind::Compressed(_) => {
            Code::Unimplemented
        }
        ErrorKind::Invalid(_) => Code::InvalidArgument,
        ErrorKind::Refused(_) => Code::FailedPrecondition,
        ErrorKind::Failure(failure) => machine_code(failure.code),
        ErrorKind::Trap(_)
        | ErrorKind::Fatal(_)
        | ErrorKind::Malformed(_)
        | ErrorKind::Listen { .. } => Code::Internal,
    }
}

/// Returns whether the code could also mean an applied command, while this call was not applied.
fn hides_no_effect(error: &Error) -> bool {
    error.is_retryable() || matches!(error.kind(), ErrorKind::Malformed(_))
}

fn machine_code(code: types::Code) -> Code {
    // The numbers equal gRPC's by contract.
    Code::from_i32(code as i32)
}

/// Returns the gRPC status of an error.
pub(super) fn to_status(error: &Error) -> Status {
    let mut headers = HeaderMap::new();
    if let Some(leader) = error.leader()
        && let Some(address) = address_value(&leader.client_address)
    {
        headers.insert(LEADER, address);
    }
    if let ErrorKind::Trap(trap) = error.kind() {
        headers.insert(TRAP, HeaderValue::from_static(trap.kind.name()));
    }
    if error.is_unknown_outcome() {
        headers.insert(OUTCOME, HeaderValue::from_static("unknown"));
    } else if hides_no_effect(error) {
        headers.insert(OUTCOME, HeaderValue::from_static("not-applied"));
    }
    if matches!(error.kind(), ErrorKind::Compressed(_)) {
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    if let Some(index) = error.index() {
        headers.insert(INDEX, index_value(index));
    }
    let metadata = MetadataMap::from_headers(headers);
    Status::with_metadata(code(error), cut(chain(error)), metadata)
}

/// Returns an index as a header value. An index rarely occurs twice, and HTTP/2 header compression
/// does not store values that are marked as sensitive.
pub(super) fn index_value(index: u64) -> HeaderValue {
    let mut value = HeaderValue::from(index);
    value.set_sensitive(true);
    value
}

/// Returns an address as a header value, or `None` if it is unknown or not valid in a header.
pub(super) fn address_value(address: &str) -> Option<HeaderValue> {
    if address.is_empty() { None } else { HeaderValue::from_str(address).ok() }
}

/// Returns the trailers of a stream that ends with an error.
pub(super) fn trailers(error: &Error) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if to_status(error).add_header(&mut trailers).is_err() {
        // The text is not valid in a header.
        trailers.insert(Status::GRPC_STATUS, (code(error) as i32).into());
    }
    trailers
}

fn cut(mut text: String) -> String {
    let mut encoded = 0;
    let end = text.char_indices().find(|(_, character)| {
        encoded += encoded_bytes(*character);
        encoded > MESSAGE_BYTES_MAX
    });
    if let Some((at, _)) = end {
        text.truncate(at);
        text.push('…');
    }
    text
}

/// Returns the number of bytes of a character in `grpc-message`. Unlike the specification, tonic
/// also encodes some ASCII characters.
fn encoded_bytes(character: char) -> usize {
    match character {
        '"' | '#' | '%' | '<' | '>' | '`' | '?' | '{' | '}' => 3,
        '!'..='~' => 1,
        _ => 3 * character.len_utf8(),
    }
}
