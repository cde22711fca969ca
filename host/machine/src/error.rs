//! The errors of this layer, grouped by who has to act on them.

use std::{error::Error as _, fmt, sync::Arc};

use thiserror::Error;

use conclave_types::Trap;

/// A fatal error, which concerns only this node: the host ran out of memory, the two instances
/// disagree, or the entry source cannot be read. Never an outcome. After a fatal error while
/// applying, the node applies no more entries.
///
/// Its text includes the text of its cause, because callers report it as one line. The cause itself is
/// the source, with its type.
#[derive(Clone, Debug)]
pub struct FatalError {
    message: Arc<str>,
    cause: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl FatalError {
    /// Creates a fatal error. The message names the problem and the remedy.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into().into(), cause: None }
    }

    /// Creates a fatal error with a cause. The message names what failed.
    pub fn caused_by(
        message: impl Into<String>,
        cause: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self { message: message.into().into(), cause: Some(Arc::new(cause)) }
    }

    /// Returns the first error of type `E` among the causes.
    pub(super) fn cause<E: std::error::Error + 'static>(&self) -> Option<&E> {
        let mut next = self.source();
        while let Some(cause) = next {
            if let Some(cause) = cause.downcast_ref() {
                return Some(cause);
            }
            next = cause.source();
        }
        None
    }
}

impl fmt::Display for FatalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Some(cause) => write!(f, "{}: {cause}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for FatalError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as &(dyn std::error::Error + 'static))
    }
}

/// Two fatal errors are equal if their texts are.
impl PartialEq for FatalError {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for FatalError {}

/// The reasons why work ends without an outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The worker shuts down, or the work was cancelled.
    Stopped,
    /// A fatal error of this node.
    Fatal(FatalError),
}

impl From<FatalError> for Ended {
    fn from(fatal_error: FatalError) -> Self {
        Self::Fatal(fatal_error)
    }
}

impl From<Ended> for FatalError {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Stopped => Self::new("the state machine is shutting down"),
            Ended::Fatal(fatal_error) => fatal_error,
        }
    }
}

/// The reasons why a call gave no answer. The instance is unusable afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A trap, which a node records as an outcome.
    Trap(Trap),
    /// The call was interrupted, or failed because of the host. Never an outcome.
    Ended(Ended),
}

impl Broken {
    /// Converts to a fatal error, where a trap is not an outcome but a reason to stop, such as
    /// while a state is restored. `what` names the work.
    pub(super) fn ended(self, what: &str) -> Ended {
        match self {
            Self::Trap(trap) => Ended::Fatal(FatalError::new(format!(
                "{what}: {} ({})",
                trap.message,
                trap.kind.name()
            ))),
            Self::Ended(Ended::Fatal(cause)) => Ended::Fatal(FatalError::caused_by(what, cause)),
            Self::Ended(Ended::Stopped) => Ended::Stopped,
        }
    }
}

/// The reasons why an engine cannot be created.
#[derive(Debug, Error)]
pub enum Error {
    /// A limit is out of its range.
    #[error("the limit {name} is {value}, but must be {must}")]
    Limit {
        /// The field of `Limits`.
        name: &'static str,
        /// The configured value.
        value: u64,
        /// The permitted range.
        must: &'static str,
    },
    /// wasmtime rejected the options.
    #[error("the WebAssembly engine cannot be created: {0}")]
    Engine(String),
}

/// The reasons why a component is not served. Each message tells the component's author what to change.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The component is larger than the limit.
    #[error("the component has {bytes} bytes; the limit is {bytes_max}")]
    TooLarge {
        /// The component's size in bytes.
        bytes: usize,
        /// The limit in bytes.
        bytes_max: usize,
    },
    /// The bytes are not WebAssembly.
    #[error("this is not WebAssembly: it does not begin with \\0asm{hint}")]
    NotWasm {
        /// A guess at what the bytes are.
        hint: &'static str,
    },
    /// The bytes are a core module, not a component.
    #[error(
        "this is a core WebAssembly module, not a component: convert it with `conclave build FILE`"
    )]
    CoreModule,
    /// The component is composed of other components.
    #[error(
        "the component contains other components with code of their own: data that passes between them is not metered, so one \
         call could stop every node. Link its parts into one component"
    )]
    Composed,
    /// The engine cannot compile the component.
    #[error("the component does not compile: {0}")]
    Compile(String),
    /// The component imports something that is not served.
    #[error(
        "the component imports `{name}`, which is not available: a state machine is a pure function \
         of the log. {}", advice(.name)
    )]
    ForeignImport {
        /// The import's full name. For one function of an interface, `#` and the function's name follow.
        name: String,
    },
    /// The component was built against a draft of WASI, or against a later version.
    #[error(
        "the component imports `{found}`, but the host serves only released versions of WASI 0.2: rebuild it with \
         a toolchain for WASI 0.2"
    )]
    WasiVersion {
        /// The import's full name.
        found: String,
    },
    /// The component was built against another version of the contract.
    #[error(
        "the component was built against {found}, but this host serves conclave:fsm 0.1: rebuild it"
    )]
    WrongVersion {
        /// The name with the version.
        found: String,
    },
    /// The component lacks an export of the contract.
    #[error("the component does not implement the world `machine` of conclave:fsm@0.1.0: {0}")]
    NotAMachine(String),
    /// The description that `describe` returned is invalid.
    #[error("the state machine's description is invalid: {0}")]
    Description(String),
    /// The descriptor set cannot be served.
    #[error("the state machine's descriptor set cannot be served: {0}")]
    Descriptor(String),
    /// The component traps while it is instantiated or described.
    #[error("the state machine traps when it is started and described: {} ({})", .0.message, .0.kind.name())]
    Traps(Trap),
    /// This node failed, not the component.
    #[error("this node could not load the component: {0}")]
    Fatal(#[from] FatalError),
}

impl LoadError {
    pub(super) fn foreign(name: &str) -> Self {
        Self::ForeignImport { name: name.to_owned() }
    }
}

/// Returns advice for a component with an import that is not served.
fn advice(import: &str) -> &'static str {
    if import.starts_with("wasi:http/") {
        "There is no network: let the program that calls the state machine make the requests, and build without \
         HTTP (ComponentizeJS: `--disable http fetch-event`)"
    } else if import.starts_with("wasi:") {
        "A component may import conclave:fsm/log, and from WASI 0.2 clocks, random, cli and io; files and sockets \
         cannot be opened. Build without other imports"
    } else {
        "A component may import conclave:fsm/log, and the parts of WASI 0.2 that depend only on the log. Remove the \
         other import from the world for which it is built"
    }
}

/// The reasons why a query has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum QueryError {
    /// The state machine trapped on the query. The standby is rebuilt.
    #[error("the query trapped: {}", .0.message)]
    Trap(Trap),
    /// The node applies no more entries, so its state must not be read.
    #[error("this node's state machine has stopped: {0}")]
    Fatal(#[source] FatalError),
    /// The worker shuts down.
    #[error("the state machine is shutting down")]
    Stopped,
    /// The node has no standby and cannot build one now, for the given reason.
    #[error(
        "this node has no standby instance now, and only a standby can begin a subscription: {0}"
    )]
    NoStandby(String),
    /// Too many queries are waiting.
    #[error(
        "too many queries are waiting for this node's state machine; retry, or query another node"
    )]
    Busy,
    /// The subscription cannot resume at the requested index.
    #[error("{0}")]
    Watch(#[from] WatchError),
}

impl QueryError {
    /// Returns the error for a worker that has stopped, with or without a fatal error.
    pub(super) fn stopped(fatal_error: Option<&FatalError>) -> Self {
        fatal_error.map_or(Self::Stopped, |fatal_error| Self::Fatal(fatal_error.clone()))
    }
}

/// The reasons why a subscription ends.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WatchError {
    /// The subscriber was slower than the events, or was away for too long.
    #[error(
        "the events after index {index} are no longer kept, only those after {oldest_retained}: subscribe again, \
         without an index to resume from"
    )]
    Gone {
        /// The index up to which the subscriber has received events.
        index: u64,
        /// The oldest retained index: events after it are kept.
        oldest_retained: u64,
    },
    /// The node's state had diverged from that of the other nodes, and was or will be replaced.
    #[error(
        "this node's state differs from the other nodes' and is replaced: what it sent, up to index {index}, may be \
         wrong: subscribe again, without an index to resume from"
    )]
    Replaced {
        /// The index up to which the subscriber was sent events.
        index: u64,
    },
    /// The node applies no more entries.
    #[error("this node's state machine has stopped: {0}")]
    Fatal(#[source] FatalError),
    /// The worker shuts down.
    #[error("the state machine is shutting down")]
    Stopped,
}

/// The reasons why a snapshot was not taken, or ended early. None of them stops the node; the
/// caller can retry.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SnapshotError {
    /// The standby has applied entries after the index.
    #[error("the state at index {index} is gone: the standby is already at {applied}")]
    Passed {
        /// The requested index.
        index: u64,
        /// The index that the standby has applied.
        applied: u64,
    },
    /// The instance that held the snapshot is gone: it was promoted, trapped, or was replaced by a
    /// restored state or another component.
    #[error("the instance that held the snapshot is gone; take another")]
    Lost,
    /// The state machine trapped while the snapshot was taken or read.
    #[error("the state machine trapped while its snapshot was taken: {}", .0.message)]
    Trap(Trap),
    /// The node has no standby and cannot build one now, for the given reason.
    #[error("this node has no standby instance to take a snapshot from: {0}")]
    NoStandby(String),
    /// Too many snapshots are being read.
    #[error("too many snapshots are being read at once")]
    Busy,
    /// The node applies no more entries.
    #[error("this node's state machine has stopped: {0}")]
    Fatal(#[source] FatalError),
    /// The worker shuts down.
    #[error("the state machine is shutting down")]
    Stopped,
}

/// The reasons why the entry source cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EntrySourceError {
    /// The entries have been purged meanwhile. There is a newer snapshot to start from.
    #[error("entry {0} has been purged")]
    Gap(u64),
    /// Any other reason, in the words of the entry source.
    #[error("{0}")]
    Unreadable(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fatal_error_names_its_causes_and_keeps_their_types() {
        let unreadable = FatalError::caused_by("restoring a state", EntrySourceError::Gap(7));
        let Ended::Fatal(error) = Broken::Ended(unreadable.into()).ended("starting") else {
            panic!("it stays fatal");
        };
        assert_eq!(error.to_string(), "starting: restoring a state: entry 7 has been purged");
        assert_eq!(error.cause(), Some(&EntrySourceError::Gap(7)));
        assert_eq!(error.cause::<WatchError>(), None);
        assert_eq!(Broken::Ended(Ended::Stopped).ended("starting"), Ended::Stopped);
    }
}
