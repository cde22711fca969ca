//! The values that a machine takes and gives, as the contract defines them (`wit/types.wit`), with
//! constructors.

pub use crate::bindings::conclave::fsm::types::{
    Call, Code, Context, Description, Event, Failure, Subscription,
};
use crate::{bindings::conclave::fsm::types as wit, limits::EVENT_OVERHEAD_BYTES};

/// The answer to an entry.
///
/// The contract's reply also carries the wake-up time. The SDK fills that in from
/// [`Machine::wake_at`](crate::Machine::wake_at), so that no reply can forget it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// The response message's bytes.
    pub response: Vec<u8>,
    /// The events, in the order in which they happened.
    pub events: Vec<Event>,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $code:ident;)*) => {
        impl Failure {
            /// A failure with `code`. `message` is for the caller to read: what was wrong, and what to
            /// do about it.
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
    /// The request is wrong whatever the state: a missing field, a key that is too long.
    invalid_argument => InvalidArgument;
    /// What the request names does not exist.
    not_found => NotFound;
    /// What the request would create exists.
    already_exists => AlreadyExists;
    /// The caller may not do this.
    permission_denied => PermissionDenied;
    /// The state does not allow it now, and the same request again would not help.
    failed_precondition => FailedPrecondition;
    /// A conflict with another caller: read again, then retry.
    aborted => Aborted;
    /// A position beyond the end, such as a page that is gone.
    out_of_range => OutOfRange;
    /// The machine has no such method.
    unimplemented => Unimplemented;
    /// A limit of the machine is reached.
    resource_exhausted => ResourceExhausted;
    /// An invariant of the machine does not hold. Prefer a panic, which is rolled back.
    internal => Internal;
}

impl Call {
    /// A call of `method` (`package.Service/Method`) with the bytes of its request message.
    pub fn new(method: impl Into<String>, request: impl Into<Vec<u8>>) -> Self {
        Self { method: method.into(), request: request.into() }
    }

    /// A call of `method` with a protobuf message.
    pub fn of(method: impl Into<String>, request: &impl prost::Message) -> Self {
        Self::new(method, request.encode_to_vec())
    }
}

impl Reply {
    /// A reply with the bytes of a response message and no events.
    pub fn new(response: impl Into<Vec<u8>>) -> Self {
        Self { response: response.into(), events: Vec::new() }
    }

    /// A reply with a protobuf message.
    pub fn of(response: &impl prost::Message) -> Self {
        Self::new(response.encode_to_vec())
    }

    /// Adds an event for those subscribed to a range of topics that holds `topic`. `payload` is a
    /// whole response message of the subscribing method.
    #[must_use]
    pub fn event(mut self, topic: impl Into<Vec<u8>>, payload: impl Into<Vec<u8>>) -> Self {
        self.events.push(Event { topic: topic.into(), payload: payload.into() });
        self
    }

    /// Adds an event whose payload is a protobuf message, a response of the subscribing method. Put the
    /// entry's index into it: a subscriber that has lost its connection goes on from there.
    #[must_use]
    pub fn event_of(self, topic: impl Into<Vec<u8>>, message: &impl prost::Message) -> Self {
        self.event(topic, message.encode_to_vec())
    }

    /// The contract's reply.
    pub(crate) fn waking_at(self, wake_at_ms: Option<u64>) -> wit::Reply {
        wit::Reply { response: self.response, events: self.events, wake_at_ms }
    }
}

impl Event {
    /// The bytes that the event counts towards [`EVENT_BYTES_MAX`](crate::limits::EVENT_BYTES_MAX).
    pub fn counted_bytes(&self) -> usize {
        self.topic.len() + self.payload.len() + EVENT_OVERHEAD_BYTES
    }
}

impl Subscription {
    /// Every event whose topic begins with `prefix`.
    pub fn prefix(prefix: impl Into<Vec<u8>>) -> Self {
        let from_topic = prefix.into();
        let mut to_topic = from_topic.clone();
        // The first topic after all that begin with the prefix: drop the 0xff at its end, then add
        // one to what is last. Nothing left means that there is no such topic: no end.
        while to_topic.pop_if(|last| *last == u8::MAX).is_some() {}
        if let Some(last) = to_topic.last_mut() {
            *last += 1;
        }
        Self { from_topic, to_topic, initial: Vec::new() }
    }

    /// Every event of exactly this topic.
    pub fn topic(topic: impl Into<Vec<u8>>) -> Self {
        let from_topic = topic.into();
        // The first topic after it.
        let to_topic = [&from_topic[..], &[0]].concat();
        Self { from_topic, to_topic, initial: Vec::new() }
    }

    /// Adds a response message that describes the state as it is now.
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
