//! The argument and result types of a state machine, as the contract defines them
//! (`wit/types.wit`), with constructors.

pub use crate::bindings::conclave::fsm::types::{
    Call, Code, Context, Description, Event, Failure, Subscription,
};
use crate::{bindings::conclave::fsm::types as wit, limits::EVENT_OVERHEAD_BYTES};

/// The reply to an entry.
///
/// The contract's reply also contains the wake-up time. The SDK sets it from
/// [`Machine::wake_at`](crate::Machine::wake_at), so that no handler can forget it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// The bytes of the response message.
    pub response: Vec<u8>,
    /// The events, in the order in which they happened.
    pub events: Vec<Event>,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $code:ident;)*) => {
        impl Failure {
            /// A failure with `code`. `message` tells the caller what was wrong and what to do
            /// about it.
            pub fn new(code: Code, message: impl Into<String>) -> Self {
                Self { code, message: message.into() }
            }

            $($(#[$doc])* pub fn $name(message: impl Into<String>) -> Self {
                Self::new(Code::$code, message)
            })*
        }
    };
}

constructors! {
    /// The request is invalid regardless of the state: a missing field, a key that is too long.
    invalid_argument => InvalidArgument;
    /// The object that the request names does not exist.
    not_found => NotFound;
    /// The object that the request would create already exists.
    already_exists => AlreadyExists;
    /// The caller is not allowed to do this.
    permission_denied => PermissionDenied;
    /// The current state does not allow the request, and a retry alone would not help.
    failed_precondition => FailedPrecondition;
    /// A conflict with another caller: read the state again, then retry.
    aborted => Aborted;
    /// A position beyond the end, such as a page that no longer exists.
    out_of_range => OutOfRange;
    /// The state machine has no such method.
    unimplemented => Unimplemented;
    /// A limit of the state machine is reached.
    resource_exhausted => ResourceExhausted;
    /// An invariant of the state machine does not hold. Prefer a panic, which is rolled back.
    internal => Internal;
}

impl Call {
    /// Creates a call of `method` (`package.Service/Method`) with the bytes of its request message.
    pub fn new(method: impl Into<String>, request: impl Into<Vec<u8>>) -> Self {
        Self { method: method.into(), request: request.into() }
    }

    /// Creates a call of `method` with a protobuf message.
    pub fn of(method: impl Into<String>, request: &impl prost::Message) -> Self {
        Self::new(method, request.encode_to_vec())
    }
}

impl Reply {
    /// Creates a reply with the bytes of a response message and no events.
    pub fn new(response: impl Into<Vec<u8>>) -> Self {
        Self { response: response.into(), events: Vec::new() }
    }

    /// Creates a reply with a protobuf message and no events.
    pub fn of(response: &impl prost::Message) -> Self {
        Self::new(response.encode_to_vec())
    }

    /// Adds an event for all subscriptions whose range of topics contains `topic`. `payload` is a
    /// complete response message of the subscription's method.
    #[must_use]
    pub fn event(mut self, topic: impl Into<Vec<u8>>, payload: impl Into<Vec<u8>>) -> Self {
        self.events.push(Event { topic: topic.into(), payload: payload.into() });
        self
    }

    /// Adds an event whose payload is a protobuf message, a response of the subscription's method.
    /// Put the entry's index into the message: a subscriber that lost its connection resumes from
    /// that index.
    #[must_use]
    pub fn event_of(self, topic: impl Into<Vec<u8>>, message: &impl prost::Message) -> Self {
        self.event(topic, message.encode_to_vec())
    }

    /// Converts to the contract's reply.
    pub(crate) fn waking_at(self, wake_at_ms: Option<u64>) -> wit::Reply {
        wit::Reply { response: self.response, events: self.events, wake_at_ms }
    }
}

impl Event {
    /// Returns the number of bytes that the event counts towards
    /// [`EVENT_BYTES_MAX`](crate::limits::EVENT_BYTES_MAX).
    pub fn counted_bytes(&self) -> usize {
        self.topic.len() + self.payload.len() + EVENT_OVERHEAD_BYTES
    }
}

impl Subscription {
    /// Subscribes to every event whose topic begins with `prefix`.
    pub fn prefix(prefix: impl Into<Vec<u8>>) -> Self {
        let from_topic = prefix.into();
        let mut to_topic = from_topic.clone();
        // The end of the range is the first topic after all topics with this prefix: drop the
        // trailing 0xff bytes, then increment the last byte. If no byte is left, no such topic
        // exists and the range has no end.
        while to_topic.pop_if(|last| *last == u8::MAX).is_some() {}
        if let Some(last) = to_topic.last_mut() {
            *last += 1;
        }
        Self { from_topic, to_topic, initial: Vec::new() }
    }

    /// Subscribes to every event with exactly this topic.
    pub fn topic(topic: impl Into<Vec<u8>>) -> Self {
        let from_topic = topic.into();
        // The first topic after `from_topic`.
        let to_topic = [&from_topic[..], &[0]].concat();
        Self { from_topic, to_topic, initial: Vec::new() }
    }

    /// Adds a response message that describes the current state.
    #[must_use]
    pub fn initial(mut self, message: &impl prost::Message) -> Self {
        self.initial.push(message.encode_to_vec());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_alone_is_a_range_of_one() {
        let Subscription { from_topic, to_topic, .. } = Subscription::topic(b"a");
        let holds = |topic: &[u8]| topic >= &from_topic[..] && topic < &to_topic[..];
        assert!(holds(b"a"));
        for other in [&b""[..], b"A", b"a\0", b"aa", b"b"] {
            assert!(!holds(other), "{other:?}");
        }
    }

    #[test]
    fn a_prefix_ends_where_the_next_one_begins() {
        for (prefix, end) in [
            (&b"a"[..], &b"b"[..]),
            (b"", b""),
            (b"a\xff", b"b"),
            (b"\xff\xff", b""),
            (b"a\xffc", b"a\xffd"),
        ] {
            assert_eq!(Subscription::prefix(prefix).to_topic, end, "prefix {prefix:?}");
        }
    }
}
