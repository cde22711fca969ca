//! The public error: the reason why a call was not served, or why a node could not start.
//!
//! The type is opaque so that kinds can be added. Programs use its predicates: whether to retry, on
//! which node, and whether a command may have been applied. Its text is for people, and ends in
//! what to do next. Causes are its sources; [`chain`] prints them. The one table from errors to
//! gRPC codes is in `api/status.rs`.

use std::{error::Error as StdError, fmt, io};

use crate::{Failure, Trap, status::Leader};

type Source = Box<dyn StdError + Send + Sync>;

/// Returns the text of an error with its causes: "a: b: c".
///
/// The only place that makes text of causes. Called at the edges: the command line, messages of
/// gRPC, log lines, and the reason why a node is not healthy. An error whose text ends with advice
/// already shows its cause before the advice, so a cause that the text contains is not repeated.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The reason why a call was not served, or why a node could not start.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    index: Option<u64>,
    source: Option<Source>,
}

/// The kinds of errors, for the tables in `api` and `raft`.
#[derive(Debug)]
#[doc(hidden)]
pub enum ErrorKind {
    /// Another node leads. The call was not proposed.
    NotLeader { leader: Option<Leader> },
    /// No leader is known, or it cannot reach a majority. The call was not proposed.
    NoQuorum,
    /// The deadline passed.
    Deadline { outcome_unknown: bool },
    /// A command was proposed, and its outcome was lost.
    Lost(String),
    /// The call exceeds a limit. A retry would exceed it again.
    Limit(String),
    /// A limit is exceeded for the moment. A later retry may succeed.
    Busy(String),
    /// The events after which a subscription was to continue are no longer retained.
    Gone(String),
    /// No service has a method of that name.
    UnknownMethod(String),
    /// The method exists, but this version does not serve it.
    Unsupported(String),
    /// The request is not valid for the method.
    Invalid(String),
    /// The request is compressed, which this node does not support.
    Compressed(String),
    /// The call violates the framing of gRPC.
    Malformed(String),
    /// The cluster's state does not allow the call.
    Refused(String),
    /// The state machine trapped.
    Trap(Trap),
    /// The state machine returned an error.
    Failure(Failure),
    /// This node has failed internally.
    Fatal(String),
    /// This node is shutting down.
    ShuttingDown,
    /// This node has had a fatal error and serves no calls. The call was rejected before it had any effect.
    Stopped(String),
    /// This node cannot listen on the address of a port.
    Listen { port: String, address: String },
}

impl Error {
    fn new(kind: ErrorKind) -> Self {
        Self(Box::new(Inner { kind, index: None, source: None }))
    }

    /// Another node leads, given if known. The call was not proposed.
    pub fn not_leader(leader: Option<Leader>) -> Self {
        Self::new(ErrorKind::NotLeader { leader })
    }

    /// No leader is known, or it cannot reach a majority. The call was not proposed.
    pub fn no_quorum() -> Self {
        Self::new(ErrorKind::NoQuorum)
    }

    /// The deadline passed before the call could have any effect.
    pub fn deadline() -> Self {
        Self::new(ErrorKind::Deadline { outcome_unknown: false })
    }

    /// The deadline passed after a command may have been proposed.
    pub fn deadline_outcome_unknown() -> Self {
        Self::new(ErrorKind::Deadline { outcome_unknown: true })
    }

    /// A command was proposed, and its outcome cannot be reported. `why` is a clause.
    pub fn lost(why: impl Into<String>) -> Self {
        Self::new(ErrorKind::Lost(why.into()))
    }

    /// The call exceeds a limit, and a retry would exceed it again. The text names the limit, the
    /// excess, and the setting.
    pub fn limit(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Limit(text.into()))
    }

    /// A limit is exceeded for the moment, and a later retry may succeed. The text names the limit.
    pub fn busy(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Busy(text.into()))
    }

    /// The events after which a subscription was to continue are no longer retained. The text says
    /// what to do.
    pub fn gone(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Gone(text.into()))
    }

    /// No service has the method. The text names the available methods.
    pub fn unknown_method(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::UnknownMethod(text.into()))
    }

    /// This version does not serve the method.
    pub fn unsupported(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported(text.into()))
    }

    /// The request is not valid for the method.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid(text.into()))
    }

    /// The request is compressed. The text names the encoding.
    pub fn compressed(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Compressed(text.into()))
    }

    /// The call violates the framing of gRPC.
    pub fn malformed(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Malformed(text.into()))
    }

    /// The cluster's state does not allow the call. The text names the condition.
    pub fn refused(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused(text.into()))
    }

    /// The state machine trapped, and the call was rolled back.
    pub fn trap(trap: Trap) -> Self {
        Self::new(ErrorKind::Trap(trap))
    }

    /// The state machine returned an error.
    pub fn failure(failure: Failure) -> Self {
        Self::new(ErrorKind::Failure(failure))
    }

    /// This node has failed internally. The text names the failure and how to repair it.
    pub fn fatal(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Fatal(text.into()))
    }

    /// This node is shutting down.
    pub fn shutting_down() -> Self {
        Self::new(ErrorKind::ShuttingDown)
    }

    /// This node has had a fatal error and serves no calls. The call was neither proposed nor
    /// answered. `why` is the fatal error, which includes how to repair it.
    pub fn stopped(why: impl Into<String>) -> Self {
        Self::new(ErrorKind::Stopped(why.into()))
    }

    /// This node cannot listen on the `client`, `peer` or `admin` port.
    pub fn listen(port: &str, address: &str, source: io::Error) -> Self {
        let (port, address) = (port.to_owned(), address.to_owned());
        Self::new(ErrorKind::Listen { port, address }).with_source(source)
    }

    /// Returns the error of a kind for a cause whose text already says what failed, as in
    /// `Error::caused_by(Error::fatal, cause)`. The cause is the source.
    pub fn caused_by(kind: impl FnOnce(String) -> Self, cause: impl Into<Source>) -> Self {
        let cause = cause.into();
        kind(cause.to_string()).with_source(cause)
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Adds a log index: that of the applied entry, or the applied index of the state that answered.
    #[must_use]
    pub fn at_index(mut self, index: u64) -> Self {
        self.0.index = Some(index);
        self
    }

    #[doc(hidden)]
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// The log index of the outcome.
    pub fn index(&self) -> Option<u64> {
        self.0.index
    }

    /// Whether another node leads.
    pub fn is_not_leader(&self) -> bool {
        matches!(self.kind(), ErrorKind::NotLeader { .. })
    }

    /// Whether no leader is known, or the leader cannot reach a majority.
    pub fn is_no_quorum(&self) -> bool {
        matches!(self.kind(), ErrorKind::NoQuorum)
    }

    /// The leader, if the error names a known leader.
    pub fn leader(&self) -> Option<&Leader> {
        match self.kind() {
            ErrorKind::NotLeader { leader } => leader.as_ref(),
            _ => None,
        }
    }

    /// Whether the call may be retried after a pause, or on another node. It has certainly
    /// not been applied.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind(),
            ErrorKind::NotLeader { .. }
                | ErrorKind::NoQuorum
                | ErrorKind::Busy(_)
                | ErrorKind::ShuttingDown
                | ErrorKind::Stopped(_)
                | ErrorKind::Deadline { outcome_unknown: false }
        )
    }

    /// Whether the command may have been applied, or may still be.
    pub fn is_unknown_outcome(&self) -> bool {
        matches!(self.kind(), ErrorKind::Lost(_) | ErrorKind::Deadline { outcome_unknown: true })
    }

    /// The trap, if the state machine trapped.
    pub fn as_trap(&self) -> Option<&Trap> {
        match self.kind() {
            ErrorKind::Trap(trap) => Some(trap),
            _ => None,
        }
    }

    /// The error that the state machine returned, if any.
    pub fn as_failure(&self) -> Option<&Failure> {
        match self.kind() {
            ErrorKind::Failure(failure) => Some(failure),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind() {
            ErrorKind::NotLeader { leader: Some(leader) } if !leader.client_address.is_empty() => {
                let Leader { node_id, client_address } = leader;
                write!(f, "this node does not lead: send the call to node {node_id} at {client_address}")
            }
            ErrorKind::NotLeader { leader: Some(leader) } => {
                write!(f, "this node does not lead: send the call to node {}", leader.node_id)
            }
            ErrorKind::NotLeader { leader: None } => {
                f.write_str("this node does not lead and knows no leader: try again, or try another node")
            }
            ErrorKind::NoQuorum => f.write_str(
                "a majority of the cluster cannot be reached: try again once enough nodes are up; \
                 the cluster's status names those that do not answer",
            ),
            ErrorKind::Deadline { outcome_unknown: false } => f.write_str(
                "the deadline passed before the call had any effect: try again with a longer deadline",
            ),
            ErrorKind::Deadline { outcome_unknown: true } => f.write_str(
                "the deadline passed, and the command may or may not have been applied: read the state \
                 before sending it again",
            ),
            ErrorKind::Lost(why) => write!(
                f,
                "{why}, and the command may or may not have been applied: read the state before \
                 sending it again"
            ),
            ErrorKind::Limit(text)
            | ErrorKind::Busy(text)
            | ErrorKind::Gone(text)
            | ErrorKind::UnknownMethod(text)
            | ErrorKind::Unsupported(text)
            | ErrorKind::Invalid(text)
            | ErrorKind::Compressed(text)
            | ErrorKind::Malformed(text)
            | ErrorKind::Refused(text)
            | ErrorKind::Fatal(text) => f.write_str(text),
            ErrorKind::Trap(Trap { kind, message }) => write!(
                f,
                "the state machine trapped ({}) and the call was rolled back: {message}",
                kind.name()
            ),
            ErrorKind::Failure(failure) => f.write_str(&failure.message),
            ErrorKind::ShuttingDown => {
                f.write_str("this node is shutting down: send the call to another node")
            }
            ErrorKind::Stopped(why) => {
                write!(f, "this node has stopped serving calls; send the call to another node: {why}")
            }
            ErrorKind::Listen { port, address } => {
                write!(f, "cannot listen on {address} for the {port} port")?;
                if let Some(source) = &self.0.source {
                    write!(f, ": {source}")?;
                }
                write!(f, "; free the address, or choose another one with --listen-{port}")
            }
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, index, source } = &*self.0;
        let mut shown = f.debug_struct("Error");
        shown.field("kind", kind).field("index", index).field("source", source).finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open /data")]
    struct Opening(#[source] io::Error);

    fn denied() -> io::Error {
        io::Error::new(io::ErrorKind::PermissionDenied, "permission denied")
    }

    #[test]
    fn causes_are_kept_as_values_and_printed_as_a_chain() {
        let error = Error::fatal("the node cannot start").with_source(Opening(denied()));
        assert_eq!(error.to_string(), "the node cannot start");
        assert_eq!(chain(&error), "the node cannot start: cannot open /data: permission denied");
        let cause = error.source().unwrap().downcast_ref::<Opening>().unwrap();
        assert_eq!(cause.0.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn cause_that_says_everything_is_not_repeated() {
        let error = Error::caused_by(Error::invalid, Opening(denied()));
        assert!(matches!(error.kind(), ErrorKind::Invalid(_)));
        assert_eq!(chain(&error), "cannot open /data: permission denied");
        assert!(error.source().unwrap().is::<Opening>());
        let error = Error::listen("client", "127.0.0.1:1", denied());
        assert_eq!(chain(&error), error.to_string());
        assert!(error.source().unwrap().is::<io::Error>());
    }
}
