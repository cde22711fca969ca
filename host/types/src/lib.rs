//! Types shared by all layers.
//!
//! This file holds calls, commands and outcomes, as plain data. [`limits`] holds the limits and
//! their defaults. [`components`] holds the log's entries about components, [`backup`] the pieces of
//! backups, [`duration`] the text of durations, [`services`] the services of a component's
//! descriptor set, [`status`] the status of nodes, and [`error`] the public error.

pub mod backup;
pub mod components;
pub mod duration;
pub mod error;
mod grpc_codes;
pub mod limits;
pub mod services;
pub mod status;

use std::{fmt, sync::Arc};

use bytes::Bytes;

use self::{components::ComponentCommand, limits::ClusterLimits};

/// The id of a node in its cluster. Never zero, never reused.
pub type NodeId = u64;

/// The id of a component: the SHA-256 of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ComponentId(pub [u8; 32]);

impl ComponentId {
    /// Returns the id of the component with these bytes.
    pub fn of(component: &[u8]) -> Self {
        use sha2::Digest;
        Self(sha2::Sha256::digest(component).into())
    }
}

impl fmt::Display for ComponentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ComponentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The version of the algorithm of [`Digest`]. Digests of different versions are never compared.
/// Version 1 hashed the host's own texts. Version 2 hashes kinds and codes of the host's outcomes,
/// and only the state machine's texts.
pub const DIGEST_VERSION: u32 = 2;

/// The running hash over the outcomes of all entries that the state machine has applied. The
/// default is the digest before the first entry.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The sender of a call, for limits per sender: a principal, or the address of a connection. It is
/// part of neither the call nor the log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Caller(pub Arc<str>);

impl Default for Caller {
    /// Returns the unknown caller.
    fn default() -> Self {
        Self(Arc::from(""))
    }
}

/// One call of a method of the state machine.
#[derive(Clone, PartialEq, Eq)]
pub struct Call {
    /// `package.Service/Method`.
    pub method: Arc<str>,
    /// The request message's bytes.
    pub request: Bytes,
    /// The authenticated caller. Empty for an anonymous caller.
    pub principal: Arc<str>,
}

impl Call {
    /// Returns the number of bytes of request, method and principal.
    pub fn bytes(&self) -> usize {
        self.request.len() + self.method.len() + self.principal.len()
    }
}

impl fmt::Debug for Call {
    /// Shows only the size of the request, because requests contain secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({} bytes)", self.method, self.request.len())
    }
}

/// A command: proposed by a node, and stored in an entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The log's time of the proposal, in milliseconds since the Unix epoch. The host makes it
    /// monotone before it passes it to the state machine.
    pub time_ms: u64,
    /// The kind of the command, with its content.
    pub kind: CommandKind,
}

/// The kinds of commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandKind {
    /// Calls the state machine's `apply`.
    Call(Call),
    /// Calls the state machine's `tick`, because its wake-up time has passed.
    Tick,
    /// Stores or activates a component. The host carries out this command. A state machine notices
    /// only that its state was migrated to another component.
    Component(ComponentCommand),
    /// Compares every replica's digest with the digest of the majority.
    ConsistencyCheck(ConsistencyCheck),
    /// Makes every replica hash its state at this entry, for `cluster verify`.
    Verify,
    /// Sets the log's time to that of this entry, as an operator requested. The state machine's
    /// `tick` is called.
    SetTime,
    /// Changes the limits on every node, from the next entry on.
    SetLimits(ClusterLimits),
}

/// A consistency check: the digest of a majority of the voters after one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsistencyCheck {
    /// The index of the entry.
    pub index: u64,
    /// The majority's digest after this entry.
    pub digest: Digest,
    /// The version of the digest's algorithm.
    pub version: u32,
    /// Whether the digests restart instead of being compared: every replica continues with this digest.
    pub begins: bool,
}

impl CommandKind {
    /// Returns the number of bytes of the call or of the component's part. Other commands count as 0.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Call(call) => call.bytes(),
            Self::Component(ComponentCommand::Part(part)) => part.bytes.len(),
            Self::Tick
            | Self::Component(ComponentCommand::Activate(_))
            | Self::ConsistencyCheck(_)
            | Self::Verify
            | Self::SetTime
            | Self::SetLimits(_) => 0,
        }
    }
}

/// The gRPC codes that a state machine may return, with gRPC's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
#[allow(missing_docs, reason = "the names are gRPC's and say it all")]
pub enum Code {
    InvalidArgument = 3,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
}

impl Code {
    /// All codes, for conversions.
    pub const ALL: [Self; 10] = [
        Self::InvalidArgument,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
    ];

    /// Returns gRPC's name of the code.
    pub fn name(self) -> &'static str {
        GRPC_CODE_NAMES[self as usize]
    }
}

/// The names of all gRPC codes, in the order of their numbers.
pub const GRPC_CODE_NAMES: [&str; 17] = grpc_codes::NAMES;

/// An error that the state machine returned. Changes of state made before it was returned are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The code, for programs.
    pub code: Code,
    /// The description, for people.
    pub message: String,
}

/// The reason why a call was rolled back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrapKind {
    /// The guest panicked or reached `unreachable`.
    Panic,
    /// An invalid operation of the guest: out of bounds, division by zero, a bad indirect call.
    Invalid,
    /// The call used up its fuel.
    FuelExhausted,
    /// The instance reached its limit of memory or tables.
    MemoryExhausted,
    /// The call reached the limit of the stack.
    StackExhausted,
    /// The guest returned a value that is larger than allowed, or that violates the contract.
    BadAnswer,
}

impl TrapKind {
    /// All kinds, for tables and conversions.
    pub const ALL: [Self; 6] = [
        Self::Panic,
        Self::Invalid,
        Self::FuelExhausted,
        Self::MemoryExhausted,
        Self::StackExhausted,
        Self::BadAnswer,
    ];

    /// The trap's name, as shown to callers and in the log messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Invalid => "invalid",
            Self::FuelExhausted => "fuel-exhausted",
            Self::MemoryExhausted => "memory-exhausted",
            Self::StackExhausted => "stack-exhausted",
            Self::BadAnswer => "bad-answer",
        }
    }
}

/// A call that was rolled back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trap {
    /// The class of the trap. The same on every replica.
    pub kind: TrapKind,
    /// The description, for people. The same on every replica: it contains limits but never addresses.
    pub message: String,
}

/// An event, for the subscribers to its topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The topic. Topics are ordered bytewise.
    pub topic: Bytes,
    /// The bytes of a complete response message.
    pub payload: Bytes,
}

/// The state machine's reply to an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// The response message's bytes.
    pub response: Bytes,
    /// The events, in the order in which they occurred.
    pub events: Vec<Event>,
    /// The wake-up time: when the state machine wants its next tick.
    pub wake_at_ms: Option<u64>,
}

/// The outcome of applying an entry. The same on every replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The state machine replied.
    Reply(Reply),
    /// The state machine returned an error.
    Failure(Failure),
    /// The state machine trapped. Its state is the same as before the entry.
    Trap(Trap),
}

/// The receipt of an entry, which its proposer gets after the entry was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The log index.
    pub index: u64,
    /// `None` for entries that no state machine applies: blank entries and membership changes.
    pub outcome: Option<Outcome>,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            CommandKind::Call(call) => write!(f, "{call:?}"),
            CommandKind::Tick => f.write_str("tick"),
            CommandKind::ConsistencyCheck(ConsistencyCheck { index, .. }) => {
                write!(f, "consistency_check of {index}")
            }
            CommandKind::Verify => f.write_str("verify"),
            CommandKind::SetTime => f.write_str("set time"),
            CommandKind::SetLimits(limits) => write!(f, "set limits {:?}", limits.by_name()),
            CommandKind::Component(ComponentCommand::Part(part)) => write!(f, "{part:?}"),
            CommandKind::Component(ComponentCommand::Activate(activation)) => {
                write!(f, "activate component {}", activation.component)
            }
        }
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match &self.outcome {
            None => "no outcome",
            Some(Outcome::Reply(_)) => "reply",
            Some(Outcome::Failure(_)) => "failure",
            Some(Outcome::Trap(trap)) => trap.kind.name(),
        };
        write!(f, "{}: {what}", self.index)
    }
}

/// The text of a panic.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
