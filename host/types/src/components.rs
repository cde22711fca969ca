//! The words for components on their way: what the log says of them, and how far a node is with one.

use std::{collections::BTreeSet, fmt, sync::Arc};

use bytes::Bytes;

use super::{ComponentId, NodeId};

/// The largest piece of a component in one entry of the log: as large as a value of the log's tree, so that
/// what is written between two pieces waits for one of them and not for the component.
pub const PART_BYTES_MAX: usize = 224 << 10;

/// The largest component. What the log accepts must not depend on a node's settings, so this is no setting.
pub const COMPONENT_BYTES_MAX: usize = 64 << 20;

/// What the log says of components.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ComponentCommand {
    /// A piece of one.
    Part(ComponentPart),
    /// Another one is to be active.
    Activate(Activation),
}

/// A piece of a component on its way to all nodes.
#[derive(Clone, PartialEq, Eq)]
pub struct ComponentPart {
    /// The whole's name.
    pub component: ComponentId,
    /// The whole's size.
    pub total_bytes: u64,
    /// Where in it the piece begins.
    pub at: u64,
    /// The piece.
    pub bytes: Bytes,
    /// With the first piece: what the component says of itself.
    pub about: Option<About>,
}

impl fmt::Debug for ComponentPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = self.at.saturating_add(self.bytes.len() as u64);
        write!(f, "bytes {} to {to} of component {}", self.at, self.component)
    }
}

/// What a component says of itself, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Its machine's name.
    pub name: Arc<str>,
    /// The machine's own version.
    pub version: Arc<str>,
    /// The version of the format that it writes snapshots in.
    pub state_version: u32,
}

/// From an index on another component is to be active, if everything still is as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activation {
    /// Which.
    pub component: ComponentId,
    /// The one that must be active.
    pub from: ComponentId,
    /// The voters when it was proposed: they must be the same.
    pub voters: BTreeSet<NodeId>,
}

/// The permissions of an operator for an activation or a rollback.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    /// Clients of the active component may fail.
    pub allow_breaking: bool,
    /// These voters need not be ready, because they are down.
    pub without: BTreeSet<NodeId>,
}

/// A component that the cluster has, as a node tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentStatus {
    /// Its name.
    pub id: ComponentId,
    /// Its size.
    pub bytes: u64,
    /// What it says of itself.
    pub about: About,
    /// The index of its last piece; 0: the cluster was begun with it.
    pub index: u64,
    /// The index at which it was last activated; 0: never, or the cluster was begun with it.
    pub activated_index: u64,
    /// It is the active one.
    pub active: bool,
    /// It was active before.
    pub previous: bool,
    /// How far the voters are with it.
    pub nodes: Vec<(NodeId, Readiness)>,
}

/// How far a node is with a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It does not have it, or not all of it yet.
    Absent,
    /// It compiles or rehearses it.
    Preparing,
    /// It could go on with it.
    Ready(Rehearsed),
    /// It could not, and why.
    Failed(String),
    /// It runs it.
    Active,
    /// It did not answer, and why.
    Unreachable(String),
}

impl Readiness {
    /// The name, as answers show it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Preparing => "preparing",
            Self::Ready(_) => "ready",
            Self::Failed(_) => "failed",
            Self::Active => "active",
            Self::Unreachable(_) => "unreachable",
        }
    }
}

/// What a rehearsal found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rehearsed {
    /// Whose state it was.
    pub from: ComponentId,
    /// How long the state took to be carried over, in milliseconds.
    pub migration_ms: u64,
    /// How many entries of the log were applied to it.
    pub entries: u64,
}

/// What would be different for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// A service, method, message, field or value, by its full name.
    pub subject: String,
    /// What is different, as the rest of a sentence that begins with the subject.
    pub text: String,
    /// Clients built for the other may fail or be misunderstood.
    pub breaking: bool,
}

/// One component compared with the active one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The active one.
    pub from: ComponentId,
    /// The other.
    pub to: ComponentId,
    /// The version of the active one's state.
    pub from_state_version: u32,
    /// The version of the other's.
    pub to_state_version: u32,
    /// Whether the other restores the active one's state.
    pub restores: bool,
    /// What clients would notice.
    pub changes: Vec<Change>,
}

/// How far a push is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Where the next piece is to begin.
    pub next_at: u64,
    /// Once the cluster has it.
    pub component: Option<ComponentStatus>,
}

/// What an activation led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activated {
    /// What is active now.
    pub component: ComponentId,
    /// What was active before.
    pub previous: ComponentId,
    /// From which index on.
    pub index: u64,
}
