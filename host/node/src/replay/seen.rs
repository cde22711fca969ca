//! An entry of the log, as replayed.

use conclave_machine::{Component, TrapReport};
use conclave_types::{Call, ComponentId, Outcome, limits::ClusterLimits};

/// An entry of the log, with its outcome.
#[derive(Debug)]
pub struct Seen {
    /// Its log index.
    pub index: u64,
    /// The term of the leader that proposed it.
    pub term: u64,
    /// The kind of the entry.
    pub kind: Kind,
    /// Milliseconds since the Unix epoch on the proposing leader's clock. `None` for entries
    /// of Raft itself.
    pub time_ms: Option<u64>,
    /// The component that was active before the entry.
    pub component: Component,
    /// The outcome. `None` for entries that are not applied to the state machine.
    pub outcome: Option<Outcome>,
    /// The trap report, if the call trapped.
    pub trap_report: Option<TrapReport>,
}

/// The kinds of entries.
#[derive(Clone, Debug)]
pub enum Kind {
    /// The first entry of a new leader.
    Blank,
    /// A change of the voters, effective from this entry on.
    Membership {
        /// The node ids of the voters.
        voters: Vec<u64>,
    },
    /// A call of the state machine.
    Call(Call),
    /// A tick of the state machine.
    Tick,
    /// A piece of a component, replicated to all nodes.
    ComponentPart {
        /// The component.
        component: ComponentId,
        /// The position of the piece in the component.
        at: u64,
        /// The piece's size.
        bytes: u64,
        /// The size of the component.
        total_bytes: u64,
    },
    /// The activation of another component.
    Activation {
        /// The component.
        component: ComponentId,
    },
    /// The digest of a majority, compared by every replica with its own.
    ConsistencyCheck,
    /// A request to every replica to hash its state.
    Verify,
    /// A change of the log's time by an operator. It also calls the state machine's tick.
    SetTime,
    /// New limits, effective from the next entry on.
    SetLimits(ClusterLimits),
}

impl Kind {
    /// Returns the name of the kind, as shown to users.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Blank => "blank",
            Self::ConsistencyCheck => "consistency-check",
            Self::Verify => "verify",
            Self::SetTime => "set-time",
            Self::SetLimits(_) => "set-limits",
            Self::Membership { .. } => "membership",
            Self::Call(_) => "call",
            Self::Tick => "tick",
            Self::ComponentPart { .. } => "component-part",
            Self::Activation { .. } => "activation",
        }
    }

    /// Returns whether the outcome is one of the state machine.
    pub fn is_machines(&self) -> bool {
        matches!(self, Self::Call(_) | Self::Tick)
    }
}
