//! The rules for retries, independent of any network.
//!
//! A [`Failure`] classifies one failed attempt: whether the failure is temporary, and whether the
//! request may have been applied. A read is retried after every temporary failure. A write is
//! retried only if it is known not to have been applied, or if its caller declared it repeatable.

use std::{error::Error as _, time::Duration};

use rand::RngExt;
use tonic::{Code, ConnectError, Status, TimeoutExpired};

/// Metadata of responses and errors: the leader's client address.
pub(crate) const LEADER: &str = "conclave-leader";
/// Metadata of errors. `unknown`: the command may have been applied. `not-applied`: it was not and
/// never will be.
pub(crate) const OUTCOME: &str = "conclave-outcome";
/// Metadata of errors: the kind of a trap. The call was rolled back.
pub(crate) const TRAP: &str = "conclave-trap";

const PAUSE_FIRST: Duration = Duration::from_millis(25);
/// An election takes about a second. Longer pauses would only delay the call after its end.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// One failed attempt.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
    /// True if another attempt may succeed.
    pub(crate) passing: bool,
    /// True if the request may have been applied, or may still be.
    pub(crate) maybe_applied: bool,
    /// True if the node itself did not respond and should be avoided for a while.
    pub(crate) silent: bool,
    /// The leader's address, as the responding node knows it.
    pub(crate) leader: Option<String>,
    /// The kind of the trap, if the state machine trapped.
    pub(crate) trap: Option<String>,
}

impl Failure {
    /// The connection failed, so nothing was sent.
    pub(crate) fn connect(message: String) -> Self {
        Self {
            code: Code::Unavailable,
            message,
            passing: true,
            maybe_applied: false,
            silent: true,
            leader: None,
            trap: None,
        }
    }

    /// The node accepted the request and did not respond in time.
    pub(crate) fn timeout(message: String) -> Self {
        Self { code: Code::DeadlineExceeded, maybe_applied: true, ..Self::connect(message) }
    }

    /// Classifies a status.
    pub(crate) fn read(status: &Status) -> Self {
        let text = |key| status.metadata().get(key).and_then(|value| value.to_str().ok());
        let leader = text(LEADER).filter(|address| !address.is_empty()).map(str::to_owned);
        // A status made by tonic itself has a source. A status sent by the node has none.
        let Some(cause) = status.source() else {
            let outcome = text(OUTCOME);
            let trap = text(TRAP).map(str::to_owned);
            // A node returns UNAVAILABLE only for calls that it did not propose. A proxy may return
            // it for a call that it lost. Only nodes name a leader.
            let node_refused = status.code() == Code::Unavailable && leader.is_some();
            let maybe_applied = match outcome {
                Some("unknown") => true,
                Some("not-applied") => false,
                _ if trap.is_some() => false,
                _ => may_hide_an_effect(status.code()) && !node_refused,
            };
            let passing = match status.code() {
                Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => true,
                // The command was proposed, and the node waiting for its outcome failed.
                Code::Unknown => outcome == Some("unknown"),
                _ => false,
            };
            return Self {
                code: status.code(),
                message: status.message().to_owned(),
                passing,
                maybe_applied,
                silent: false,
                leader,
                trap,
            };
        };
        let (message, stage) = root_cause(cause);
        match stage {
            Stage::Unsent => Self::connect(message),
            Stage::Waiting => Self::timeout("no answer in time".to_owned()),
            Stage::Under => Self { maybe_applied: true, ..Self::connect(message) },
        }
    }
}

/// Returns whether a command may have been applied although it failed with this code.
fn may_hide_an_effect(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Unknown
            | Code::Internal
            | Code::DataLoss
    )
}

/// The progress of an attempt that ended without a response.
enum Stage {
    /// The node has not processed the request.
    Unsent,
    /// The connection was lost during the request.
    Under,
    /// tonic's own timer, which runs in parallel to ours, ended the attempt.
    Waiting,
}

/// Returns the innermost message, and the progress of the attempt.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> (String, Stage) {
    let mut stage = Stage::Under;
    let mut at = error;
    loop {
        if at.is::<ConnectError>() || is_unprocessed(at) {
            stage = Stage::Unsent;
        } else if at.is::<TimeoutExpired>() {
            stage = Stage::Waiting;
        }
        match at.source() {
            Some(inner) => at = inner,
            None => return (plain_io(at), stage),
        }
    }
}

/// Returns whether the request was not processed. The node refused the stream or stopped accepting new
/// ones (RFC 9113, sections 6.8 and 8.7), or the connection was closed before the request was written.
fn is_unprocessed(error: &(dyn std::error::Error + 'static)) -> bool {
    let refused = error.downcast_ref::<h2::Error>().is_some_and(|error| {
        error.is_remote()
            && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
    });
    refused || error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
}

/// Returns the text of an error, for example "connection refused", without the operating system's number.
fn plain_io(error: &(dyn std::error::Error + 'static)) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => first.to_lowercase().chain(characters).collect(),
        None => "the connection was lost".to_owned(),
    }
}

/// Returns the innermost message of an error that occurred while connecting.
pub(crate) fn connect_cause(error: &(dyn std::error::Error + 'static)) -> String {
    root_cause(error).0
}

/// Returns the pause after a round of attempts, counted from 0. It grows exponentially with full
/// jitter, so that clients that failed together do not retry together.
pub(crate) fn pause(round: u32) -> Duration {
    let ceiling = PAUSE_FIRST.saturating_mul(1 << round.min(16)).min(PAUSE_MAX);
    ceiling.mul_f64(rand::rng().random_range(0.0..1.0))
}

#[cfg(test)]
mod tests {
    use tonic::metadata::MetadataMap;

    use super::*;

    fn from_node(
        code: Code,
        leader: Option<&'static str>,
        outcome: Option<&'static str>,
    ) -> Failure {
        let mut metadata = MetadataMap::new();
        for (key, value) in [(LEADER, leader), (OUTCOME, outcome)] {
            if let Some(value) = value {
                metadata.insert(key, value.parse().unwrap());
            }
        }
        Failure::read(&Status::with_metadata(code, "why", metadata))
    }

    #[test]
    fn unavailable_is_without_effect_only_if_a_node_said_it() {
        let proxy = from_node(Code::Unavailable, None, None);
        assert!(proxy.passing && proxy.maybe_applied && !proxy.silent);
        let promised = from_node(Code::Unavailable, None, Some("not-applied"));
        assert!(promised.passing && !promised.maybe_applied);
        let follower = from_node(Code::Unavailable, Some("10.0.0.2:7100"), None);
        assert!(follower.passing && !follower.maybe_applied);
        assert_eq!(follower.leader.as_deref(), Some("10.0.0.2:7100"));
        let doubtful = from_node(Code::Unavailable, Some("10.0.0.2:7100"), Some("unknown"));
        assert!(doubtful.passing && doubtful.maybe_applied);
    }

    #[test]
    fn a_lost_outcome_may_be_tried_again_by_those_who_may() {
        let lost = from_node(Code::Unknown, None, Some("unknown"));
        assert!(lost.passing && lost.maybe_applied);
        let strange = from_node(Code::Unknown, None, None);
        assert!(!strange.passing && strange.maybe_applied);
    }

    #[test]
    fn an_answer_of_the_machine_is_final() {
        for code in [Code::NotFound, Code::Aborted, Code::ResourceExhausted, Code::InvalidArgument]
        {
            let failure = from_node(code, None, None);
            assert!(!failure.passing && !failure.maybe_applied, "{code:?}");
        }
    }

    #[test]
    fn a_fault_is_final_but_of_unknown_outcome() {
        let failure = from_node(Code::Internal, None, None);
        assert!(!failure.passing && failure.maybe_applied);
    }

    #[test]
    fn a_trap_is_final_and_without_effect() {
        let mut metadata = MetadataMap::new();
        metadata.insert(TRAP, "panic".parse().unwrap());
        let trapped = Failure::read(&Status::with_metadata(Code::Internal, "why", metadata));
        assert!(!trapped.passing && !trapped.maybe_applied);
        assert_eq!(trapped.trap.as_deref(), Some("panic"));
    }

    #[test]
    fn pauses_grow_to_their_limit_and_are_spread() {
        for round in 0..100 {
            assert!(pause(round) < PAUSE_MAX);
        }
        let early = (0..64).map(|_| pause(0)).max().unwrap();
        assert!(early < PAUSE_FIRST);
        let late: Vec<_> = (0..64).map(|_| pause(20)).collect();
        assert!(late.iter().max().unwrap() > &Duration::from_millis(500));
        assert!(late.iter().min().unwrap() < &Duration::from_millis(500));
    }
}
