//! The digest: a running hash over the outcomes of all entries that the state machine has applied.
//!
//! Replicas that agree have the same digest after the same entry. Replicas that have once disagreed
//! never have the same digest again. The digest covers outcomes, not the state, so a diverged state
//! is detected only when it affects an answer.

use std::collections::VecDeque;

use xxhash_rust::xxh3::xxh3_128;

use conclave_types::{ComponentId, Digest, Outcome, TrapKind};

/// The number of recent digests that are kept, of 40 bytes each. At some 10,000 entries per second
/// they cover more than one second, far more than the distance between voters.
const RECENT_MAX: usize = 16_384;

/// The digest after the last entry, and after recent entries before it. Their indexes only go
/// forward.
pub(super) struct Digests {
    /// The oldest index whose digest is known.
    from: (u64, Digest),
    recent: VecDeque<(u64, Digest)>,
    /// Whether the digest is comparable with that of other nodes.
    kept: bool,
}

impl Digests {
    /// Creates the digests of a state machine whose state was saved without a digest of this
    /// version. There is none until one begins.
    pub(super) fn none(index: u64) -> Self {
        Self { from: (index, Digest::default()), recent: VecDeque::new(), kept: false }
    }

    /// Creates the digests of a state machine that continues after `index`, from a state that was
    /// saved with this digest or without one.
    pub(super) fn of(index: u64, digest: Option<Digest>) -> Self {
        match digest {
            Some(digest) => Self::new(index, digest),
            None if index == 0 => Self::new(0, Digest::default()),
            None => Self::none(index),
        }
    }

    pub(super) fn is_kept(&self) -> bool {
        self.kept
    }

    /// Creates the digests of a state machine that stands after `index`.
    pub(super) fn new(index: u64, digest: Digest) -> Self {
        Self { from: (index, digest), recent: VecDeque::new(), kept: true }
    }

    /// Adds the outcome of another entry.
    pub(super) fn push(&mut self, index: u64, outcome: OutcomeHash) {
        if !self.kept {
            return;
        }
        let (last_index, last) = self.recent.back().copied().unwrap_or(self.from);
        // A log may begin at index 0, where a digest without entries stands.
        let is_later = index > last_index || (index, last_index) == (0, 0);
        assert!(is_later, "the digest is at entry {last_index}, and entry {index} is not later");
        if self.recent.len() >= RECENT_MAX
            && let Some(oldest) = self.recent.pop_front()
        {
            self.from = oldest;
        }
        self.recent.push_back((index, next(last, index, outcome)));
    }

    /// Returns the digest at an index that has been reached. Entries that the state machine does
    /// not see do not change the digest. `None` if the index is too old.
    pub(super) fn at(&self, index: u64) -> Option<Digest> {
        if index < self.from.0 || !self.kept {
            return None;
        }
        let after = self.recent.partition_point(|(known, _)| *known <= index);
        let last = after.checked_sub(1).and_then(|at| self.recent.get(at)).unwrap_or(&self.from);
        Some(last.1)
    }
}

fn next(last: Digest, index: u64, outcome: OutcomeHash) -> Digest {
    // Keyed with the last digest, the input is a single block.
    let mut hasher = blake3::Hasher::new_keyed(&last.0);
    hasher.update(&index.to_le_bytes()).update(&outcome.0);
    Digest(*hasher.finalize().as_bytes())
}

/// The hash of one entry's outcome, for the digest, and for the standby to compare its own outcome with
/// the primary's. XXH3 with 128 bits: replicas differ by mistake, and an attacker who could provoke a
/// collision would only hide their own divergence. A cryptographic hash took a seventh of an apply.
///
/// Nodes of different versions of Conclave compare digests, so the hash input does not change within
/// a [`DIGEST_VERSION`](conclave_types::DIGEST_VERSION). It consists of numbers and of the state
/// machine's own messages. The host's messages may change with every version, so they are left out.
/// Every number is little-endian, and everything of variable length is preceded by its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutcomeHash([u8; 16]);

/// The capacity that suffices for most outcomes.
const USUAL_BYTES: usize = 512;

impl OutcomeHash {
    pub(super) fn of(outcome: &Outcome) -> Self {
        let mut text = Vec::with_capacity(USUAL_BYTES);
        match outcome {
            Outcome::Reply(reply) => {
                text.push(1);
                bytes(&mut text, &reply.response);
                text.extend_from_slice(&(reply.events.len() as u64).to_le_bytes());
                for event in &reply.events {
                    bytes(&mut text, &event.topic);
                    bytes(&mut text, &event.payload);
                }
                text.push(reply.wake_at_ms.is_some().into());
                text.extend_from_slice(&reply.wake_at_ms.unwrap_or(0).to_le_bytes());
            }
            Outcome::Failure(failure) => {
                text.push(2);
                text.extend_from_slice(&(failure.code as i32).to_le_bytes());
                bytes(&mut text, failure.message.as_bytes());
            }
            // Without the message, because the host writes it.
            Outcome::Trap(trap) => text.extend([3, code(trap.kind)]),
        }
        Self(xxh3_128(&text).to_le_bytes())
    }

    /// Hashes whether this component was activated, without the host's reason.
    pub(super) fn of_activation(component: ComponentId, activated: bool) -> Self {
        let mut text = vec![4, activated.into()];
        text.extend_from_slice(&component.0);
        Self(xxh3_128(&text).to_le_bytes())
    }
}

fn code(kind: TrapKind) -> u8 {
    match kind {
        TrapKind::Panic => 1,
        TrapKind::Invalid => 2,
        TrapKind::FuelExhausted => 3,
        TrapKind::MemoryExhausted => 4,
        TrapKind::StackExhausted => 5,
        TrapKind::BadAnswer => 6,
    }
}

fn bytes(text: &mut Vec<u8>, bytes: &[u8]) {
    text.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    text.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use conclave_types::{Code, Event, Failure, Reply, Trap, TrapKind};

    fn reply(response: &'static [u8]) -> Outcome {
        Outcome::Reply(Reply { response: Bytes::from_static(response), ..Reply::default() })
    }

    /// Every part of an outcome affects the hash, and none can be mistaken for its neighbour.
    #[test]
    fn whatever_differs_shows() {
        let event = |topic: &'static [u8], payload: &'static [u8]| {
            let (topic, payload) = (Bytes::from_static(topic), Bytes::from_static(payload));
            Outcome::Reply(Reply { events: vec![Event { topic, payload }], ..Reply::default() })
        };
        let failure =
            |code, message: &str| Outcome::Failure(Failure { code, message: message.into() });
        let trap = |kind, message: &str| Outcome::Trap(Trap { kind, message: message.into() });
        let wake = |at| Outcome::Reply(Reply { wake_at_ms: at, ..Reply::default() });
        let outcomes = [
            reply(b""),
            reply(b"a"),
            event(b"ab", b"c"),
            event(b"a", b"bc"),
            wake(Some(0)),
            wake(Some(1)),
            failure(Code::NotFound, "a"),
            failure(Code::Internal, "a"),
            failure(Code::NotFound, "b"),
        ];
        let mut digests: Vec<_> = outcomes.iter().map(OutcomeHash::of).collect();
        digests.extend(TrapKind::ALL.map(|kind| OutcomeHash::of(&trap(kind, "a"))));
        for (component, activated) in [(1, true), (1, false), (2, true)] {
            digests.push(OutcomeHash::of_activation(ComponentId([component; 32]), activated));
        }
        for (at, digest) in digests.iter().enumerate() {
            assert!(!digests[..at].contains(digest), "{at}");
        }
        // A version of Conclave with another text for a trap has not diverged.
        let worded = |message| OutcomeHash::of(&trap(TrapKind::Panic, message));
        assert_eq!(worded("the machine panicked"), worded("the state machine panicked"));
        assert_ne!(
            next(Digest::default(), 1, OutcomeHash::of(&reply(b"a"))),
            next(Digest::default(), 2, OutcomeHash::of(&reply(b"a")))
        );
        assert_ne!(
            next(Digest([1; 32]), 1, OutcomeHash::of(&reply(b"a"))),
            next(Digest::default(), 1, OutcomeHash::of(&reply(b"a")))
        );
    }

    #[test]
    fn the_digest_does_not_change_within_its_version() {
        let event = Event { topic: Bytes::from_static(b"t"), payload: Bytes::from_static(b"p") };
        let response = Bytes::from_static(b"r");
        let reply = Reply { response, events: vec![event], wake_at_ms: Some(7) };
        let failure = Failure { code: Code::NotFound, message: "no".into() };
        let trap = Trap { kind: TrapKind::Panic, message: "broke".into() };
        let mut digests = Digests::new(0, Digest::default());
        digests.push(1, OutcomeHash::of(&Outcome::Reply(reply)));
        digests.push(2, OutcomeHash::of(&Outcome::Failure(failure)));
        digests.push(3, OutcomeHash::of(&Outcome::Trap(trap)));
        digests.push(4, OutcomeHash::of_activation(ComponentId([5; 32]), true));
        assert_eq!(digests.at(4).map(|digest| digest.to_string()).as_deref(), Some(GOLDEN));
    }

    /// The expected digest, recorded once for each [`DIGEST_VERSION`](conclave_types::DIGEST_VERSION).
    const GOLDEN: &str = "b2c0ab176aecc06bdf980554b89a600c99a12174dc15c76faf0cbc2669b564be";

    #[test]
    #[should_panic(expected = "the digest is at entry 10, and entry 10 is not later")]
    fn an_index_that_does_not_go_forward_is_a_bug() {
        Digests::new(10, Digest::default()).push(10, OutcomeHash::of(&reply(b"x")));
    }

    #[test]
    fn without_a_beginning_there_is_no_digest() {
        let mut digests = Digests::none(10);
        digests.push(11, OutcomeHash::of(&reply(b"x")));
        assert_eq!((digests.at(10), digests.at(11), digests.is_kept()), (None, None, false));
    }

    #[test]
    fn what_is_kept_answers_for_every_index_since_and_nothing_before() {
        let first = Digest([9; 32]);
        let mut digests = Digests::new(10, first);
        assert_eq!(
            (digests.at(9), digests.at(10), digests.at(11)),
            (None, Some(first), Some(first))
        );
        digests.push(12, OutcomeHash::of(&reply(b"x")));
        let at_12 = digests.at(12);
        assert_eq!((digests.at(11), digests.at(13)), (Some(first), at_12));
        assert_ne!(at_12, Some(first));
        for index in 13..12 + RECENT_MAX as u64 + 1 {
            digests.push(index, OutcomeHash::of(&reply(b"x")));
        }
        assert_eq!(
            (digests.at(11), digests.at(12)),
            (None, at_12),
            "the oldest is where it begins"
        );
        assert_eq!(digests.recent.len(), RECENT_MAX);
    }
}
