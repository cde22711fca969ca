//! Requests and answers of concurrent clients, with their times.
//!
//! All times come from one monotonic clock in the recording process. An operation's beginning is
//! recorded before its request is sent, and its end after its answer was received. So an operation
//! takes effect between the two, if at all.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A value of a put. Each put of a history has a different value.
pub type Value = u64;

/// One step of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Sets a key.
    Put(String, Value),
    /// Removes a key.
    Delete(String),
    /// Reads a key.
    Get(String),
}

/// A condition on a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key holds this value.
    Holds(String, Value),
    /// The key exists (true) or does not (false).
    Exists(String, bool),
}

/// An atomic operation: conditions, and one of two lists of steps. A single put, delete or get is a
/// request with one step and no condition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Conditions. `then` runs only if all of them hold.
    pub compares: Vec<Compare>,
    /// The steps if all conditions hold.
    pub then: Vec<Step>,
    /// The steps otherwise.
    pub otherwise: Vec<Step>,
}

/// The content of a key in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seen {
    /// The value.
    pub value: Value,
    /// Number of puts since the key was created.
    pub version: u64,
}

/// The result of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gave {
    /// The key's version after the put.
    Put(u64),
    /// Whether the key existed.
    Delete(bool),
    /// The key's content.
    Get(Option<Seen>),
}

/// The answer to an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether all conditions held.
    pub succeeded: bool,
    /// One result for each step that was run.
    pub results: Vec<Gave>,
    /// The log index of the command. For a query, the index up to which the state was applied.
    pub index: u64,
}

/// The outcome of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The operation took effect.
    Done(Answer),
    /// The operation did not and will not take effect, for this reason.
    Failed(String),
    /// The operation may have taken effect, or may still do so, for this reason.
    Unknown(String),
}

/// The kind of an operation, and the required freshness of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A write.
    Write,
    /// A linearizable read.
    Read,
    /// A read under the leader's lease.
    LeaseRead,
    /// A read of the state that a node has applied.
    StaleRead,
}

/// One operation of one client.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The client's number. Each client has one operation in flight at a time.
    pub client: u32,
    /// The node that received the request, and the number of its starts at that time. `None` if any
    /// node could answer, or if the node was restarted meanwhile.
    pub node: Option<(u64, u64)>,
    /// The kind of the operation.
    pub kind: Kind,
    /// The request.
    pub request: Request,
    /// Time of its beginning, relative to the beginning of the history.
    pub begun: Duration,
    /// Time at which the client learned the outcome.
    pub ended: Duration,
    /// The outcome that the client received.
    pub outcome: Outcome,
}

impl Request {
    /// A request with one step.
    pub fn of(step: Step) -> Self {
        Self { then: vec![step], ..Self::default() }
    }

    /// All keys of the request.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        let compared = self.compares.iter().map(Compare::key);
        compared.chain(self.then.iter().chain(&self.otherwise).map(Step::key))
    }

    /// Returns true if the request changes nothing.
    pub fn only_reads(&self) -> bool {
        self.then.iter().chain(&self.otherwise).all(|step| matches!(step, Step::Get(_)))
    }
}

impl Step {
    /// The key of the step.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(key, _) | Self::Delete(key) | Self::Get(key) => key,
        }
    }
}

impl Compare {
    /// The key of the condition.
    pub fn key(&self) -> &str {
        match self {
            Self::Holds(key, _) | Self::Exists(key, _) => key,
        }
    }
}

impl Operation {
    /// The answer, if there is one.
    pub fn answer(&self) -> Option<&Answer> {
        match &self.outcome {
            Outcome::Done(answer) => Some(answer),
            _ => None,
        }
    }

    /// Returns true if the operation must fit into one order with all others. The order respects
    /// beginnings and ends.
    pub fn is_linearizable(&self) -> bool {
        self.kind != Kind::StaleRead
    }
}

/// Collects the operations of one run.
pub struct Recorder {
    origin: Instant,
    operations: Mutex<Vec<Operation>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { origin: Instant::now(), operations: Mutex::default() }
    }
}

impl Recorder {
    /// The time since the history began.
    pub fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Records a finished operation.
    pub fn add(&self, operation: Operation) {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).push(operation);
    }

    /// All recorded operations, in the order of their beginning.
    pub fn operations(&self) -> Vec<Operation> {
        let operations = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        let mut operations = operations.clone();
        operations.sort_by_key(|operation| operation.begun);
        operations
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put(key, value) => write!(f, "put {key}={value}"),
            Self::Delete(key) => write!(f, "delete {key}"),
            Self::Get(key) => write!(f, "get {key}"),
        }
    }
}

impl fmt::Display for Compare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Holds(key, value) => write!(f, "{key}={value}"),
            Self::Exists(key, true) => write!(f, "{key} exists"),
            Self::Exists(key, false) => write!(f, "no {key}"),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.compares.is_empty() {
            write!(f, "if {} then ", Listed(&self.compares))?;
        }
        write!(f, "{}", Listed(&self.then))?;
        if !self.otherwise.is_empty() {
            write!(f, " else {}", Listed(&self.otherwise))?;
        }
        Ok(())
    }
}

impl fmt::Display for Gave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put(version) => write!(f, "version {version}"),
            Self::Delete(true) => write!(f, "deleted"),
            Self::Delete(false) | Self::Get(None) => write!(f, "absent"),
            Self::Get(Some(seen)) => write!(f, "{} (version {})", seen.value, seen.version),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(answer) => {
                let branch = if answer.succeeded { "" } else { "else: " };
                write!(f, "{branch}{} at index {}", Listed(&answer.results), answer.index)
            }
            Self::Failed(why) => write!(f, "not applied: {why}"),
            Self::Unknown(why) => write!(f, "unknown: {why}"),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (begun, ended) = (self.begun.as_secs_f64(), self.ended.as_secs_f64());
        write!(f, "{begun:.4}..{ended:.4} s, client {}", self.client)?;
        if let Some((node, _)) = self.node {
            write!(f, " at node {node}")?;
        }
        let kind = match self.kind {
            Kind::Write | Kind::Read => "",
            Kind::LeaseRead => " (lease)",
            Kind::StaleRead => " (stale)",
        };
        write!(f, ": {}{kind} → {}", self.request, self.outcome)
    }
}

struct Listed<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for Listed<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, item) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{item}")?;
        }
        Ok(())
    }
}
