//! Pages of keys.

use std::ops::Bound;

use conclave_sdk::{Failure, prost::Message as _};

use crate::{
    limits::{
        KEY_BYTES_MAX, PAGE_KEYS_DEFAULT, PAGE_KEYS_MAX, RESPONSE_BYTES_MAX, check_key, within,
    },
    pb::{RangeRequest, RangeResponse},
    state::State,
    step::key_value,
};

/// Returns one page. Reads each record of the page once, and one more.
pub(crate) fn range(
    state: &State,
    time_ms: u64,
    request: &RangeRequest,
) -> Result<RangeResponse, Failure> {
    let limit = check(request)?;
    let mut response = RangeResponse { revision: state.revision(), ..Default::default() };
    let mut bytes = 0;
    for (key, record) in state.from(start(request)) {
        if is_past(request, key) {
            break;
        }
        if !record.is_live(time_ms) {
            continue;
        }
        let kv = key_value(key, record, request.keys_only);
        bytes += kv.encoded_len();
        // A page holds at least one key. Otherwise the caller could never get past a large one.
        let full =
            response.kvs.len() == limit || (bytes > RESPONSE_BYTES_MAX && !response.kvs.is_empty());
        if full {
            response.more = true;
            break;
        }
        response.kvs.push(kv);
    }
    response.count = response.kvs.len() as u64;
    if response.more
        && let Some(last) = response.kvs.last()
    {
        // The token is the key itself, so it stays valid even if the key is deleted.
        response.next_page_token = last.key.clone();
    }
    Ok(response)
}

/// Checks the request and returns the page's length.
fn check(request: &RangeRequest) -> Result<usize, Failure> {
    for (what, key) in [
        ("the prefix", &request.prefix),
        ("from", &request.from),
        ("to", &request.to),
        ("the page token", &request.page_token),
    ] {
        within(what, key.len(), KEY_BYTES_MAX, "bytes")?;
    }
    let bounded = !request.from.is_empty() || !request.to.is_empty();
    if bounded && !request.prefix.is_empty() {
        return Err(Failure::invalid_argument("give a prefix, or from and to, not both"));
    }
    if !request.to.is_empty() && request.to < request.from {
        return Err(Failure::invalid_argument("the range ends before it begins: to < from"));
    }
    if !request.page_token.is_empty() {
        check_key(&request.page_token)?;
        let token = &request.page_token;
        if *token < request.from || *token < request.prefix || is_past(request, token) {
            return Err(Failure::invalid_argument(
                "the page token belongs to another range: repeat the request with only the token changed",
            ));
        }
    }
    match request.limit as usize {
        0 => Ok(PAGE_KEYS_DEFAULT),
        limit if limit <= PAGE_KEYS_MAX => Ok(limit),
        limit => Err(Failure::invalid_argument(format!(
            "the limit is {limit} keys; at most {PAGE_KEYS_MAX} are allowed"
        ))),
    }
}

/// Returns the start of the page. At most one of `prefix` and `from` is set.
fn start(request: &RangeRequest) -> Bound<&str> {
    if !request.page_token.is_empty() {
        Bound::Excluded(&request.page_token)
    } else if !request.prefix.is_empty() {
        Bound::Included(&request.prefix)
    } else {
        Bound::Included(&request.from)
    }
}

/// Returns whether a key, which is not before the range, is after it.
fn is_past(request: &RangeRequest, key: &str) -> bool {
    !key.starts_with(&request.prefix) || (!request.to.is_empty() && *key >= *request.to)
}
