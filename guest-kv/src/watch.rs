//! Watches of keys: their topics and initial messages.

use std::ops::Bound;

use conclave_sdk::{Context, Failure, Subscription, prost::Message as _};

use crate::{
    limits::{KEY_BYTES_MAX, RESPONSE_BYTES_MAX, check_key, within},
    pb::{WatchRequest, WatchResponse, watch_response::Kind},
    state::State,
    step::key_value,
};

/// Starts a watch. The topic of a change is its key.
pub(crate) fn watch(
    state: &State,
    context: &Context,
    request: &WatchRequest,
) -> Result<Subscription, Failure> {
    let mut subscription = if request.key.is_empty() {
        within("the prefix", request.prefix.len(), KEY_BYTES_MAX, "bytes")?;
        Subscription::prefix(request.prefix.as_bytes())
    } else if request.prefix.is_empty() {
        check_key(&request.key)?;
        Subscription::topic(request.key.as_bytes())
    } else {
        return Err(Failure::invalid_argument("give a key or a prefix, not both"));
    };
    if request.initial {
        subscription.initial = initial(state, context, request)?;
    }
    Ok(subscription)
}

fn initial(
    state: &State,
    context: &Context,
    request: &WatchRequest,
) -> Result<Vec<Vec<u8>>, Failure> {
    let WatchRequest { key: only, prefix, .. } = request;
    let from = if only.is_empty() { prefix } else { only };
    let within = |key: &str| if only.is_empty() { key.starts_with(prefix) } else { key == only };
    let message = |kind: Kind, kv| {
        let message = WatchResponse {
            kind: kind.into(),
            kv,
            revision: state.revision(),
            index: context.index,
        };
        message.encode_to_vec()
    };
    let mut messages = Vec::new();
    let mut bytes = 0;
    for (key, record) in state.from(Bound::Included(from)) {
        if !within(key) {
            break;
        }
        if !record.is_live(context.time_ms) {
            continue;
        }
        messages.push(message(Kind::Initial, Some(key_value(key, record, false))));
        bytes += messages.last().map_or(0, Vec::len);
        // A response that exceeds the limit by one value is still accepted by every host.
        if bytes > RESPONSE_BYTES_MAX {
            return Err(Failure::resource_exhausted(format!(
                "the initial messages have more than {RESPONSE_BYTES_MAX} bytes: read the keys with Range, \
                 and watch without `initial`, from the index of the first page (conclave-from-index)"
            )));
        }
    }
    messages.push(message(Kind::Ready, None));
    Ok(messages)
}
