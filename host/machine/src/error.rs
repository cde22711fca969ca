//! What can go wrong in this layer, by who has to act on it.

use std::fmt;

use thiserror::Error;

use conclave_types::Trap;

/// Something that is this node's own: the host ran out of memory, the two instances disagree, the
/// history cannot be read. Never an outcome. A node that met one while applying applies no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FatalError(String);

impl FatalError {
    /// A fault with a message that says what happened and what to do about it.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for FatalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for FatalError {}

/// Why an engine could not be made.
#[derive(Debug, Error)]
pub enum Error {
    /// A limit lies outside of what the layer can keep.
    #[error("machine limit {name} is {value}, but must be {must}")]
    Limit {
        /// The field of `Limits`.
        name: &'static str,
        /// What it was set to.
        value: u64,
        /// What would do.
        must: &'static str,
    },
    /// wasmtime refused the options.
    #[error("the WebAssembly engine does not start: {0}")]
    Engine(String),
}

/// Why a component is not served. Each message tells the machine's author what to change.
#[derive(Debug, Error)]
pub enum LoadError {
    /// Larger than a component may be.
    #[error("the component has {bytes} bytes; the limit is {bytes_max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// Not WebAssembly.
    #[error("this is not WebAssembly: it does not begin with \\0asm{hint}")]
    NotWasm {
        /// What it may be instead.
        hint: &'static str,
    },
    /// A core module.
    #[error(
        "this is a core WebAssembly component, not a component: `conclave build FILE` makes one of it"
    )]
    CoreModule,
    /// Composed of components.
    #[error(
        "the component contains other components with code of their own: what passes between them is not metered, so one \
         call could stop every node. Link its parts into one component"
    )]
    Composed,
    /// A component that the engine does not take.
    #[error("the component does not compile: {0}")]
    Compile(String),
    /// It asks for more than a machine gets.
    #[error(
        "the component imports `{name}`, which a machine does not get: a machine is a pure function \
         of the log. {}", advice(.name)
    )]
    ForeignImport {
        /// The import's full name; for one function of an interface, with `#` and the function's.
        name: String,
    },
    /// It was built against a draft of WASI, or a later one.
    #[error(
        "the component imports `{found}`, but a machine gets WASI 0.2, as it was released: rebuild it with \
         a toolchain for that"
    )]
    WasiVersion {
        /// The import's full name.
        found: String,
    },
    /// It was built against another version of the contract.
    #[error(
        "the component was built against {found}, but this host serves conclave:fsm 0.1: rebuild it"
    )]
    WrongVersion {
        /// The name with the version.
        found: String,
    },
    /// It does not export what a machine must.
    #[error("the component is not a machine of conclave:fsm@0.1.0: {0}")]
    NotAMachine(String),
    /// What `describe` says cannot be.
    #[error("the machine's description cannot be: {0}")]
    Description(String),
    /// The descriptor set cannot be served.
    #[error("the machine's descriptor set cannot be served: {0}")]
    Descriptor(String),
    /// It traps when asked what it is.
    #[error("the machine traps when it is started and described: {} ({})", .0.message, .0.kind.name())]
    Traps(Trap),
    /// This node's fault, not the component's.
    #[error("the component could not be tried: {0}")]
    Fatal(#[from] FatalError),
}

impl LoadError {
    pub(super) fn foreign(name: &str) -> Self {
        Self::ForeignImport { name: name.to_owned() }
    }
}

/// What to do about an import.
fn advice(import: &str) -> &'static str {
    if import.starts_with("wasi:http/") {
        "There is no network: let the program that calls the machine make the requests, and build without \
         HTTP (ComponentizeJS: `--disable http fetch-event`)"
    } else if import.starts_with("wasi:") {
        "It may import conclave:fsm/log, and of WASI 0.2 clocks, random, cli and io, with no files and no \
         sockets. Build without what needs more"
    } else {
        "It may import conclave:fsm/log, and of WASI 0.2 what depends on the log alone. Take the other import \
         out of the world that it is built for"
    }
}

/// Why a query has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum QueryError {
    /// The machine broke on it. The standby is built anew.
    #[error("the query trapped: {}", .0.message)]
    Trap(Trap),
    /// The node does not apply any more, so its state is not to be read.
    #[error("this node's machine has stopped: {0}")]
    Fatal(FatalError),
    /// The worker shuts down.
    #[error("the machine is shutting down")]
    Stopped,
    /// The node has no standby and cannot build one now; and why.
    #[error("this node has no standby instance now, and only that can begin a subscription: {0}")]
    NoStandby(String),
    /// Too many queries wait already.
    #[error("too many queries wait for this node's machine; try again or ask another node")]
    Busy,
    /// A subscription cannot go on from where it was to.
    #[error("{0}")]
    Watch(#[from] WatchError),
}

impl QueryError {
    /// The worker has ended, by a fault or not.
    pub(super) fn stopped(fatal_error: Option<&FatalError>) -> Self {
        fatal_error.map_or(Self::Stopped, |fatal_error| Self::Fatal(fatal_error.clone()))
    }
}

/// Why there are no more events for a subscriber.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WatchError {
    /// It was slower than the events, or has been away for too long.
    #[error(
        "the events after index {index} are not kept any more, only those after {floor}: subscribe anew, \
         without an index to go on from"
    )]
    Gone {
        /// What the subscriber has seen.
        index: u64,
        /// From where on events are kept.
        floor: u64,
    },
    /// The node's state was replaced, or is about to be, because it had diverged from the other nodes'.
    #[error(
        "this node's state differs from the other nodes' and is replaced: what it sent, up to index {index}, may be \
         wrong: subscribe again, without an index to resume from"
    )]
    Replaced {
        /// The index up to which the subscriber was sent events.
        index: u64,
    },
    /// The node does not apply any more.
    #[error("this node's machine has stopped: {0}")]
    Fatal(FatalError),
    /// The worker shuts down.
    #[error("the machine is shutting down")]
    Stopped,
}

/// Why a snapshot was not taken, or ended early. None of these stops the node: ask again.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SnapshotError {
    /// The standby has gone past the index.
    #[error("the state at index {index} is gone: the standby is at {applied}")]
    Passed {
        /// The index asked for.
        index: u64,
        /// Where the standby is.
        applied: u64,
    },
    /// The instance that held the snapshot is gone: it became the primary, or trapped, or was restored, or
    /// another component went on.
    #[error("the instance that held the snapshot is gone; take another")]
    Lost,
    /// The machine trapped while taking or reading it.
    #[error("the machine trapped while it was snapshotted: {}", .0.message)]
    Trap(Trap),
    /// The node has no standby and cannot build one now; and why.
    #[error("this node has no standby instance to take a snapshot from: {0}")]
    NoStandby(String),
    /// Too many snapshots are being read.
    #[error("too many snapshots are being read at once")]
    Busy,
    /// The node does not apply any more.
    #[error("this node's machine has stopped: {0}")]
    Fatal(FatalError),
    /// The worker shuts down.
    #[error("the machine is shutting down")]
    Stopped,
}

/// Why the history could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EntrySourceError {
    /// The entries have been purged meanwhile; there is a newer snapshot to start from.
    #[error("entry {0} has been purged")]
    Gap(u64),
    /// Anything else, in the history's own words.
    #[error("{0}")]
    Unreadable(String),
}
