//! The metadata of requests: consistency, deadline and the index to resume from.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode, header::CONTENT_TYPE};
use tokio::time::Instant;

use conclave_types::{error::Error, status::Consistency};

/// Deadlines of calls.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// For calls without `grpc-timeout`.
    pub default: Duration,
    /// Longer timeouts are shortened to this, or to the default if that is longer. This bounds the
    /// work for a client that has disconnected.
    pub max: Duration,
}

/// Maximum time reserved for the response before a call's deadline.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(50);

/// Longer than the lifetime of any stream.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Returns the HTTP status for a request that is not a gRPC call with protobuf, such as gRPC-Web or JSON.
pub(super) fn not_grpc(method: &Method, headers: &HeaderMap) -> Option<StatusCode> {
    if method != Method::POST {
        return Some(StatusCode::METHOD_NOT_ALLOWED);
    }
    let content_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let essence = content_type.split(|byte| *byte == b';').next().unwrap_or_default();
    let known: [&[u8]; 2] = [b"application/grpc", b"application/grpc+proto"];
    let known = known.iter().any(|known| essence.trim_ascii().eq_ignore_ascii_case(known));
    (!known).then_some(StatusCode::UNSUPPORTED_MEDIA_TYPE)
}

/// Reads `conclave-consistency`. The default is linearizable.
pub(super) fn consistency(headers: &HeaderMap) -> Result<Consistency, Error> {
    let Some(value) = headers.get("conclave-consistency") else {
        return Ok(Consistency::default());
    };
    value.to_str().ok().and_then(Consistency::from_name).ok_or_else(|| {
        Error::invalid(format!(
            "conclave-consistency is {:?}: use linearizable, lease or stale",
            String::from_utf8_lossy(value.as_bytes())
        ))
    })
}

/// Reads `conclave-from-index`: the last index that a subscriber has processed.
pub(super) fn from_index(headers: &HeaderMap) -> Result<Option<u64>, Error> {
    let Some(value) = headers.get("conclave-from-index") else { return Ok(None) };
    let index = value.to_str().ok().and_then(|text| text.parse().ok());
    index.map(Some).ok_or_else(|| {
        Error::invalid(format!(
            "conclave-from-index is {:?}: give the index of the last message received",
            String::from_utf8_lossy(value.as_bytes())
        ))
    })
}

/// Returns the end of a stream. A stream without `grpc-timeout` has none.
pub(super) fn stream_deadline(headers: &HeaderMap, now: Instant) -> Result<Option<Instant>, Error> {
    if headers.contains_key("grpc-timeout") {
        let unbounded = Deadlines { default: FOREVER, max: FOREVER };
        return deadline(headers, now, unbounded).map(Some);
    }
    Ok(None)
}

/// Returns the deadline of a call.
pub(super) fn deadline(
    headers: &HeaderMap,
    now: Instant,
    deadlines: Deadlines,
) -> Result<Instant, Error> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(now + deadlines.default) };
    let timeout = value.to_str().ok().and_then(timeout).ok_or_else(|| {
        Error::invalid(format!(
            "grpc-timeout is {:?}: use up to eight digits and one of H, M, S, m, u, n",
            String::from_utf8_lossy(value.as_bytes())
        ))
    })?;
    // The caller waits until its deadline. The response takes a short time and reports whether the
    // call was proposed, so processing ends earlier.
    let answer_time = (timeout / 20).min(ANSWER_TIME_MAX);
    Ok(now + (timeout - answer_time).min(deadlines.max.max(deadlines.default)))
}

fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Covers the forms that gRPC's specification allows, and invalid ones.
    #[test]
    fn timeouts() {
        assert_eq!(timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "S", "5", "+5S", "-1S", "123456789S", "5X", "5 S", "5µ"] {
            assert_eq!(timeout(bad), None, "{bad}");
        }
    }
}
