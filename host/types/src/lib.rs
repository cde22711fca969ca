//! The words that the layers share.
//!
//! This file is plain data: calls, commands, outcomes. [`limits`] has the limits of a cluster and their defaults,
//! [`components`] the log's entries about components, [`services`] the services of a component's descriptor set,
//! [`status`] the status of nodes, and [`error`] the one public error.

pub mod components;
pub mod error;
pub mod limits;
pub mod services;
pub mod status;

use std::{fmt, sync::Arc};

use bytes::Bytes;

use self::{components::ComponentCommand, limits::ClusterLimits};

/// A member's number in its cluster. Never zero, never reused.
pub type NodeId = u64;

/// A machine's component, named by the SHA-256 of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ComponentId(pub [u8; 32]);

impl ComponentId {
    /// The name of the component with these bytes.
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

/// The version of the algorithm of [`Digest`]. Digests of different versions are never compared. 1 hashed the host's
/// own words; 2 hashes kinds and codes of what the host decides, and words of the machine only.
pub const DIGEST_VERSION: u32 = 2;

/// The running hash over what came of every entry that the machine saw. The default is that of a machine that
/// has seen none.
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

/// The sender of a call, for limits per sender: a principal, or the address of a connection. It is neither a part of
/// the call nor of the log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Caller(pub Arc<str>);

impl Default for Caller {
    /// A caller that is not known.
    fn default() -> Self {
        Self(Arc::from(""))
    }
}

/// One call of one method of the machine.
#[derive(Clone, PartialEq, Eq)]
pub struct Call {
    /// `package.Service/Method`.
    pub method: Arc<str>,
    /// The request message's bytes.
    pub request: Bytes,
    /// Who called; empty for an anonymous caller.
    pub principal: Arc<str>,
}

impl Call {
    /// What it brings along, in bytes.
    pub fn bytes(&self) -> usize {
        self.request.len() + self.method.len() + self.principal.len()
    }
}

impl fmt::Debug for Call {
    /// Requests hold secrets: only their size is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({} bytes)", self.method, self.request.len())
    }
}

/// What a node proposes and the log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The log's time when it was proposed, in milliseconds since the Unix epoch. The machine sees it
    /// made monotone.
    pub time_ms: u64,
    /// What is to be done.
    pub kind: CommandKind,
}

/// The kinds of commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandKind {
    /// A call of the machine's `apply`.
    Call(Call),
    /// A call of the machine's `tick`: the time that it asked to be woken at has come.
    Tick,
    /// Something about the cluster's components, which the host does. A machine notices only that another one
    /// goes on with its state.
    Component(ComponentCommand),
    /// What a majority's digest is, for every replica to compare its own with.
    ConsistencyCheck(ConsistencyCheck),
    /// Every replica hashes its state as it is here, for whoever asks.
    Verify,
    /// An operator has set the log's time to that of this entry. The machine's `tick` is called.
    SetTime,
    /// From the next entry on other limits hold for the state machine, on every node.
    SetLimits(ClusterLimits),
}

/// The digest of a majority of the voters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsistencyCheck {
    /// After which entry.
    pub index: u64,
    /// What they have there.
    pub digest: Digest,
    /// The algorithm.
    pub version: u32,
    /// Nothing is compared: every replica's digest begins again here, with this one.
    pub begins: bool,
}

impl CommandKind {
    /// What it brings along, in bytes.
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

/// gRPC's codes, as far as a machine may answer with them. The numbers are gRPC's.
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

/// A machine's ordinary answer that says no. Changes that it made before stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// For programs.
    pub code: Code,
    /// For people.
    pub message: String,
}

/// Why a call was rolled back.
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
    /// What the guest handed over is larger than allowed, or is not what the contract says.
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

    /// The trap's name, as callers and the log see it.
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
    /// Which class, the same on every replica.
    pub kind: TrapKind,
    /// For people. The same on every replica: it names limits and never addresses.
    pub message: String,
}

/// Something that happened, for those subscribed to its topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Ordered bytewise.
    pub topic: Bytes,
    /// A whole response message.
    pub payload: Bytes,
}

/// What a machine answered to an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// The response message's bytes.
    pub response: Bytes,
    /// In the order in which they happened.
    pub events: Vec<Event>,
    /// When the machine next wants to be woken.
    pub wake_at_ms: Option<u64>,
}

/// What applying an entry gave. The same on every replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Reply(Reply),
    /// The machine said no.
    Failure(Failure),
    /// The machine broke; its state is as before the entry.
    Trap(Trap),
}

/// What the proposer of an entry gets once the entry has been applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The log index.
    pub index: u64,
    /// Absent for entries that no machine sees: blank ones and changes of membership.
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
            None => "no machine",
            Some(Outcome::Reply(_)) => "reply",
            Some(Outcome::Failure(_)) => "failure",
            Some(Outcome::Trap(trap)) => trap.kind.name(),
        };
        write!(f, "{}: {what}", self.index)
    }
}

/// The text that a panic was raised with.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
