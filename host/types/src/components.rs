//! The distribution of components: their log entries, and the readiness of each node.

use std::{collections::BTreeSet, fmt, sync::Arc};

use bytes::Bytes;

use super::{ComponentId, NodeId};

/// The largest part of a component in one log entry. It is as large as a value of the log's tree,
/// so a write between two parts waits for one part only, and not for the whole component.
pub const PART_BYTES_MAX: usize = 224 << 10;

/// The largest component. This is a constant and not a setting, because all nodes must accept the
/// same log entries.
pub const COMPONENT_BYTES_MAX: usize = 64 << 20;

/// The commands about components in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ComponentCommand {
    /// A part of a component.
    Part(ComponentPart),
    /// Makes another component the active one.
    Activate(Activation),
}

/// A part of a component, which the log distributes to all nodes.
#[derive(Clone, PartialEq, Eq)]
pub struct ComponentPart {
    /// The id of the whole component.
    pub component: ComponentId,
    /// The size of the whole component.
    pub total_bytes: u64,
    /// The offset of the part in the component.
    pub at: u64,
    /// The bytes of the part.
    pub bytes: Bytes,
    /// The component's description of itself. Present in the first part only.
    pub about: Option<About>,
}

impl fmt::Debug for ComponentPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = self.at.saturating_add(self.bytes.len() as u64);
        write!(f, "bytes {} to {to} of component {}", self.at, self.component)
    }
}

/// A component's description of itself, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// The name of the state machine.
    pub name: Arc<str>,
    /// The version of the state machine.
    pub version: Arc<str>,
    /// The version of the format of its snapshots.
    pub state_version: u32,
}

/// Activates a component from one index on, if the checks before the proposal still hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activation {
    /// The component to activate.
    pub component: ComponentId,
    /// The component that must be active until then.
    pub from: ComponentId,
    /// The voters at the time of the proposal. The voters must still be the same.
    pub voters: BTreeSet<NodeId>,
}

/// The permissions of an operator for an activation or a rollback.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    /// The activation may break clients of the active component.
    pub allow_breaking: bool,
    /// The voters that need not be ready, because they are down.
    pub without: BTreeSet<NodeId>,
}

/// A component of the cluster, as one node reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentStatus {
    /// The component's id.
    pub id: ComponentId,
    /// The component's size.
    pub bytes: u64,
    /// The component's description of itself.
    pub about: About,
    /// The index of its last part. 0 for the initial component.
    pub index: u64,
    /// The index of its last activation. 0 if it was never activated, or is the initial component.
    pub activated_index: u64,
    /// Whether this is the active component.
    pub active: bool,
    /// Whether this component was active before the active one.
    pub previous: bool,
    /// The readiness of each voter.
    pub nodes: Vec<(NodeId, Readiness)>,
}

/// The readiness of a node for a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// The node does not have the component, or not all parts of it yet.
    Absent,
    /// The node is compiling or rehearsing the component.
    Preparing,
    /// The rehearsal succeeded.
    Ready(Rehearsed),
    /// The rehearsal failed, with the reason.
    Failed(String),
    /// The node runs the component.
    Active,
    /// The node did not respond, with the reason.
    Unreachable(String),
}

impl Readiness {
    /// The name, as shown in responses.
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

/// The result of a rehearsal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rehearsed {
    /// The component whose state was migrated.
    pub from: ComponentId,
    /// The duration of the state migration, in milliseconds.
    pub migration_ms: u64,
    /// The number of log entries applied after the migration.
    pub entries: u64,
}

/// A change that clients would notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The full name of a service, method, message, field or value.
    pub subject: String,
    /// The change, as the rest of a sentence that begins with the subject.
    pub text: String,
    /// Whether clients built for the active component may fail or be misunderstood.
    pub breaking: bool,
}

/// A component compared with the active one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The active component.
    pub from: ComponentId,
    /// The component compared with it.
    pub to: ComponentId,
    /// The version of the active component's state.
    pub from_state_version: u32,
    /// The version of the other component's state.
    pub to_state_version: u32,
    /// Whether the other component restores the active component's state.
    pub restores: bool,
    /// The changes that clients would notice.
    pub changes: Vec<Change>,
}

/// The progress of a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The offset at which the next part must begin.
    pub next_at: u64,
    /// The component, after the cluster has received all of it.
    pub component: Option<ComponentStatus>,
}

/// The result of an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activated {
    /// The component that is now active.
    pub component: ComponentId,
    /// The component that was active before.
    pub previous: ComponentId,
    /// The index of the activation.
    pub index: u64,
}
