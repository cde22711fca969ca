//! The one public error: why a call was not served, or why a node could not start.
//!
//! The type is opaque so that kinds can be added. Programs ask its predicates: whether to try again,
//! where, and whether a command may have been applied. People read its text, which ends in what to do
//! next. `api/status.rs` holds the one table from here to gRPC.

use std::{error::Error as StdError, fmt, io};

use crate::{Failure, Trap, status::Leader};

type Source = Box<dyn StdError + Send + Sync>;

/// Why a call was not served, or why a node could not start.
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
    /// Another node leads; the call was not proposed.
    NotLeader { leader: Option<Leader> },
    /// No leader is known, or it cannot reach a majority; the call was not proposed.
    NoQuorum,
    /// Time ran out.
    Deadline { outcome_unknown: bool },
    /// A command was proposed, and then the one who would have heard of its outcome was lost.
    Lost(String),
    /// A limit that the same call would meet again.
    Limit(String),
    /// A limit that will have passed in a moment.
    Busy(String),
    /// Events that a subscription was to go on from are not kept any more.
    Gone(String),
    /// Nobody serves a method of that name.
    UnknownMethod(String),
    /// The method exists and this version does not serve it.
    Unsupported(String),
    /// The call is not what the method takes.
    Invalid(String),
    /// The request is compressed, which this node does not read.
    Compressed(String),
    /// The call breaks the framing of gRPC.
    Malformed(String),
    /// The cluster is not in the state that the call needs.
    Refused(String),
    /// The machine broke over the call.
    Trap(Trap),
    /// The machine said no.
    Failure(Failure),
    /// Something in this node is broken.
    Fatal(String),
    /// This node is about to stop.
    ShuttingDown,
    /// This node has met a fault and serves no calls; this one was refused before it had any effect.
    Stopped(String),
    /// The address for one of the ports cannot be listened on.
    Listen { port: String, address: String },
}

impl Error {
    fn new(kind: ErrorKind) -> Self {
        Self(Box::new(Inner { kind, index: None, source: None }))
    }

    /// Another node leads, if known which; the call was not proposed.
    pub fn not_leader(leader: Option<Leader>) -> Self {
        Self::new(ErrorKind::NotLeader { leader })
    }

    /// No leader is known, or it cannot reach a majority; the call was not proposed.
    pub fn no_quorum() -> Self {
        Self::new(ErrorKind::NoQuorum)
    }

    /// Time ran out before the call could have had an effect.
    pub fn deadline() -> Self {
        Self::new(ErrorKind::Deadline { outcome_unknown: false })
    }

    /// Time ran out after a command may have been proposed.
    pub fn deadline_outcome_unknown() -> Self {
        Self::new(ErrorKind::Deadline { outcome_unknown: true })
    }

    /// A command was proposed and its outcome will not be heard of; `why` is a clause.
    pub fn lost(why: impl Into<String>) -> Self {
        Self::new(ErrorKind::Lost(why.into()))
    }

    /// A limit that the same call would meet again. The text names the limit, what met it, and where
    /// it is set.
    pub fn limit(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Limit(text.into()))
    }

    /// A limit that will have passed in a moment. The text names the limit.
    pub fn busy(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Busy(text.into()))
    }

    /// The events that a subscription was to go on from are not kept any more. The text says what to do.
    pub fn gone(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Gone(text.into()))
    }

    /// Nobody serves the method. The text says what is served.
    pub fn unknown_method(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::UnknownMethod(text.into()))
    }

    /// This version does not serve the method.
    pub fn unsupported(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported(text.into()))
    }

    /// The call is not what the method takes.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid(text.into()))
    }

    /// The request is compressed. The text names how.
    pub fn compressed(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Compressed(text.into()))
    }

    /// The call breaks the framing of gRPC.
    pub fn malformed(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Malformed(text.into()))
    }

    /// The cluster is not in the state that the call needs. The text says what has to change.
    pub fn refused(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused(text.into()))
    }

    /// The machine broke over the call and was rolled back.
    pub fn trap(trap: Trap) -> Self {
        Self::new(ErrorKind::Trap(trap))
    }

    /// The machine said no.
    pub fn failure(failure: Failure) -> Self {
        Self::new(ErrorKind::Failure(failure))
    }

    /// Something in this node is broken. The text says what, and how to mend it.
    pub fn fatal(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Fatal(text.into()))
    }

    /// This node is about to stop.
    pub fn shutting_down() -> Self {
        Self::new(ErrorKind::ShuttingDown)
    }

    /// This node has met a fault before and serves no calls any more; this one was neither proposed nor
    /// answered. `why` is the fault, which says how to mend it.
    pub fn stopped(why: impl Into<String>) -> Self {
        Self::new(ErrorKind::Stopped(why.into()))
    }

    /// The `client`, `peer` or `admin` port cannot be listened on.
    pub fn listen(port: &str, address: &str, source: io::Error) -> Self {
        let (port, address) = (port.to_owned(), address.to_owned());
        Self::new(ErrorKind::Listen { port, address }).with_source(source)
    }

    /// Keeps what caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Names the log index at which it happened: where the entry was applied, or how far the state
    /// that answered had come.
    #[must_use]
    pub fn at_index(mut self, index: u64) -> Self {
        self.0.index = Some(index);
        self
    }

    #[doc(hidden)]
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// The log index at which it happened, for outcomes.
    pub fn index(&self) -> Option<u64> {
        self.0.index
    }

    /// Another node leads.
    pub fn is_not_leader(&self) -> bool {
        matches!(self.kind(), ErrorKind::NotLeader { .. })
    }

    /// Nobody leads, or the leader cannot reach a majority.
    pub fn is_no_quorum(&self) -> bool {
        matches!(self.kind(), ErrorKind::NoQuorum)
    }

    /// Who leads, if the error is about that and it is known.
    pub fn leader(&self) -> Option<&Leader> {
        match self.kind() {
            ErrorKind::NotLeader { leader } => leader.as_ref(),
            _ => None,
        }
    }

    /// The same call, sent again after a pause or to another node, may be served and cannot have been
    /// applied yet.
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

    /// The command may have been applied, or may still be.
    pub fn is_unknown_outcome(&self) -> bool {
        matches!(self.kind(), ErrorKind::Lost(_) | ErrorKind::Deadline { outcome_unknown: true })
    }

    /// The trap, if the machine broke over the call.
    pub fn as_trap(&self) -> Option<&Trap> {
        match self.kind() {
            ErrorKind::Trap(trap) => Some(trap),
            _ => None,
        }
    }

    /// The machine's own no.
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
                f.write_str("this node does not lead and knows no leader: try again, or another node")
            }
            ErrorKind::NoQuorum => f.write_str(
                "a majority of the cluster cannot be reached: try again once enough nodes are up; \
                 the cluster's status names those that do not answer",
            ),
            ErrorKind::Deadline { outcome_unknown: false } => f.write_str(
                "the deadline passed before the call had any effect: try again, with more time",
            ),
            ErrorKind::Deadline { outcome_unknown: true } => f.write_str(
                "the deadline passed and the command may or may not have been applied: read the state \
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
                "the machine trapped ({}) and the call was rolled back: {message}",
                kind.name()
            ),
            ErrorKind::Failure(failure) => f.write_str(&failure.message),
            ErrorKind::ShuttingDown => {
                f.write_str("this node is shutting down: send the call to another node")
            }
            ErrorKind::Stopped(why) => {
                write!(f, "this node has stopped serving, send the call to another: {why}")
            }
            ErrorKind::Listen { port, address } => {
                write!(f, "cannot listen on {address} for the {port} port")?;
                if let Some(source) = &self.0.source {
                    write!(f, ": {source}")?;
                }
                write!(f, "; free it, or choose another address with --listen-{port}")
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
