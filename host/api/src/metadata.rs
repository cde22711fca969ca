//! What callers say beside the message: how fresh, and until when.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode, header::CONTENT_TYPE};
use tokio::time::Instant;

use conclave_types::{error::Error, status::Consistency};

/// How long a call may take.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// For calls that bring no `grpc-timeout`.
    pub default: Duration,
    /// Longer ones are shortened to this, or to the default if that is longer, so that a client that went away is not
    /// waited for.
    pub max: Duration,
}

/// How long before its deadline a call ends, at most.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(50);

/// Longer than any stream lives.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The HTTP status of a request that is no gRPC call with protobuf; gRPC-Web and JSON among them.
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

/// `conclave-consistency`; linearizable if it is not given.
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

/// `conclave-from-index`: what a subscriber has seen already.
pub(super) fn from_index(headers: &HeaderMap) -> Result<Option<u64>, Error> {
    let Some(value) = headers.get("conclave-from-index") else { return Ok(None) };
    let index = value.to_str().ok().and_then(|text| text.parse().ok());
    index.map(Some).ok_or_else(|| {
        Error::invalid(format!(
            "conclave-from-index is {:?}: give the index of the last message that was seen",
            String::from_utf8_lossy(value.as_bytes())
        ))
    })
}

/// When a stream is to end: never, unless its caller says so.
pub(super) fn stream_deadline(headers: &HeaderMap, now: Instant) -> Result<Option<Instant>, Error> {
    if headers.contains_key("grpc-timeout") {
        let unbounded = Deadlines { default: FOREVER, max: FOREVER };
        return deadline(headers, now, unbounded).map(Some);
    }
    Ok(None)
}

/// When the answer is no longer wanted.
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
    // A caller waits as long as it says, and the answer takes a while: it says whether the call was proposed.
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

    /// The forms that gRPC's specification allows, and those that it does not.
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
