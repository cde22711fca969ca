//! Responses: the result of a call, the common headers, and the rejection of requests that are
//! not gRPC calls.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header::ALLOW};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::{
    Backend, Shared,
    answer::Answer,
    message::{self, DISCARD_TIME_MAX, LARGE_BYTES},
    status,
};

pub(super) const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// The response of a call and its log index.
pub(super) struct Served {
    pub(super) response: Bytes,
    pub(super) index: Option<u64>,
}

/// Adds the leader's address, if it is known and the response does not have it yet.
pub(super) fn name_leader<B: Backend>(shared: &Shared<B>, response: &mut Response<Answer>) {
    if let Some(leader) = shared.backend.leader()
        && !response.headers().contains_key(status::LEADER)
        && let Some(address) = status::address_value(&leader.client_address)
    {
        response.headers_mut().insert(status::LEADER, address);
    }
}

/// Rejects a request that is not a gRPC call. It reads a little of the body first, since some
/// clients treat a reset as the response.
pub(super) async fn not_grpc(status: StatusCode, body: &mut Incoming) -> Response<Answer> {
    let _ = timeout(DISCARD_TIME_MAX, message::discard(body, LARGE_BYTES)).await;
    let mut response = Response::new(Answer::Empty);
    *response.status_mut() = status;
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    }
    response
}
