//! One entry of the log as a replay saw it.

use conclave_machine::{Component, TrapReport};
use conclave_types::{Call, ComponentId, Outcome, limits::ClusterLimits};

/// One entry of the log, and what came of it.
#[derive(Debug)]
pub struct Seen {
    /// Its log index.
    pub index: u64,
    /// The term of the leader that proposed it.
    pub term: u64,
    /// What it is.
    pub kind: Kind,
    /// Milliseconds since the Unix epoch on the proposing leader's clock. Nothing for what Raft itself proposes.
    pub time_ms: Option<u64>,
    /// The component that was active before it.
    pub component: Component,
    /// What came of it. Nothing for what no machine sees.
    pub outcome: Option<Outcome>,
    /// What a trapped instance left behind.
    pub trap_report: Option<TrapReport>,
}

/// What an entry is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A new leader's first entry.
    Blank,
    /// From here on these are the voters.
    Membership {
        /// Their numbers.
        voters: Vec<u64>,
    },
    /// A call of the machine.
    Call(Call),
    /// The machine is woken.
    Tick,
    /// A piece of a component on its way to all nodes.
    ComponentPart {
        /// Which.
        component: ComponentId,
        /// Where in it the piece begins.
        at: u64,
        /// The piece's size.
        bytes: u64,
        /// The component's.
        total_bytes: u64,
    },
    /// Another component is to go on.
    Activation {
        /// Which.
        component: ComponentId,
    },
    /// The digest of a majority, for every replica to compare its own with.
    ConsistencyCheck,
    /// Every replica hashes its state.
    Verify,
    /// An operator has set the log's time; the machine's tick is called.
    SetTime,
    /// Other limits hold from the next entry on.
    SetLimits(ClusterLimits),
}

impl Kind {
    /// The name, as people and programs are told it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Blank => "blank",
            Self::ConsistencyCheck => "consistency_check",
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

    /// Whether its outcome is the machine's own.
    pub fn is_machines(&self) -> bool {
        matches!(self, Self::Call(_) | Self::Tick)
    }
}
