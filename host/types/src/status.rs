//! Status of nodes and clusters, and the consistency levels of reads.
//!
//! Plain data. The raft layer fills it in, and the api layer returns it to clients.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{ComponentId, Digest, Failure, NodeId, limits::ClusterLimits};

/// The required freshness of the state that answers a query.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// The query observes everything that was acknowledged before it was sent.
    #[default]
    Linearizable,
    /// The leader answers on its lease, without contacting other nodes. Linearizable as long as the
    /// clocks run at similar rates.
    Lease,
    /// The node answers from its current state.
    Stale,
}

impl Consistency {
    /// The name, as sent in metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linearizable => "linearizable",
            Self::Lease => "lease",
            Self::Stale => "stale",
        }
    }

    /// Returns the consistency with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Linearizable, Self::Lease, Self::Stale].into_iter().find(|this| this.name() == name)
    }
}

/// The state machine's answer to a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The applied index of the state that answered.
    pub index: u64,
    /// The bytes of the response message, or the error that the state machine returned.
    pub result: Result<Bytes, Failure>,
}

/// The leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The leader's node id.
    pub node_id: NodeId,
    /// `host:port` of the leader's client port. Empty if unknown.
    pub client_address: Arc<str>,
}

/// Whether a node serves calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// The node serves commands and queries.
    Serving,
    /// The node serves no calls.
    NotServing(NotServing),
}

/// The reason why a node does not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotServing {
    /// The node has not finished starting.
    Starting,
    /// The node is shutting down. This state is final.
    ShuttingDown,
    /// The node rejects calls because of this fatal error.
    Fatal(String),
    /// No leader is known.
    NoLeader,
    /// The leader has not sent a message for two election timeouts.
    LeaderSilent(NodeId),
    /// This node leads, but no majority has responded for an election timeout.
    NoMajority,
    /// The state is far behind the committed log.
    Behind {
        /// The number of committed entries that this node has not applied.
        entries: u64,
        /// The age of the state in milliseconds: the time since this node had last applied
        /// everything that was committed at that time.
        age_ms: u64,
    },
}

impl NotServing {
    /// The name of the reason, used in metrics and messages alike.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::ShuttingDown => "shutting-down",
            Self::Fatal(_) => "fatal-error",
            Self::NoLeader => "no-leader",
            Self::LeaderSilent(_) => "leader-silent",
            Self::NoMajority => "no-majority",
            Self::Behind { .. } => "behind",
        }
    }
}

impl fmt::Display for NotServing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("starting"),
            Self::ShuttingDown => f.write_str("the node is shutting down"),
            Self::Fatal(fatal_error) => f.write_str(fatal_error),
            Self::NoLeader => f.write_str("no leader is known"),
            Self::LeaderSilent(leader) => {
                write!(f, "leader {leader} has not sent a message for two election timeouts")
            }
            Self::NoMajority => f.write_str("no majority of the nodes responds"),
            Self::Behind { entries, age_ms } => write!(
                f,
                "the state is {entries} entries and {:.1} s behind the leader",
                *age_ms as f64 / 1000.0
            ),
        }
    }
}

/// The role of a node in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Decides the order of the log.
    Leader,
    /// Votes, and replicates the leader's log.
    Follower,
    /// Requests votes.
    Candidate,
    /// Replicates the leader's log without a vote.
    Learner,
    /// The node did not respond.
    Unreachable,
}

impl Role {
    /// The name, as shown in status responses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
            Self::Unreachable => "unreachable",
        }
    }

    /// Returns the role with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Leader, Self::Follower, Self::Candidate, Self::Learner, Self::Unreachable]
            .into_iter()
            .find(|this| this.name() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The status of one node, as reported by itself. Only the id and the addresses of an unreachable
/// node are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// The node id.
    pub id: NodeId,
    /// The node's role in the cluster.
    pub role: Role,
    /// The node's current term.
    pub term: u64,
    /// The leader that the node follows, or itself if it leads.
    pub leader: Option<NodeId>,
    /// The last index of the node's log.
    pub last_log: u64,
    /// The commit index that the node knows.
    pub committed: u64,
    /// The applied index of the node's state machine.
    pub applied: u64,
    /// The last index of the node's newest snapshot. 0: the node has no snapshot.
    pub snapshot: u64,
    /// The index up to which the node has purged the log.
    pub purged: u64,
    /// The component that the node runs. Absent if the node did not respond.
    pub component: Option<ComponentId>,
    /// The node's version of Conclave.
    pub version: String,
    /// `host:port` of the node's client port.
    pub client_address: String,
    /// `host:port` of the node's peer port.
    pub peer_address: String,
    /// The fingerprint of the node's engine.
    pub engine: String,
    /// The fatal error. Empty while the node works.
    pub fatal_error: String,
    /// The number of times since its start that the node's state machine has diverged from the
    /// other nodes.
    pub divergences: u64,
    /// A description of the last repaired divergence, for people.
    pub divergence: String,
    /// The comparison of the node's clock. Absent if the node did not respond.
    pub clock: Option<ClockStatus>,
    /// The node's connections to the other members.
    pub links: Vec<PeerLink>,
    /// The problems that need an operator's attention, although the node works.
    pub alarms: Vec<String>,
}

/// The offsets of a node's clock, and of the log's time, from the clock of a majority of the voters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClockStatus {
    /// The node's clock minus the majority's, in milliseconds. Absent if no majority of clocks
    /// agrees, or before the first comparison.
    pub offset_ms: Option<i64>,
    /// The node's estimate of the log's time, in milliseconds since the Unix epoch.
    pub log_time_ms: u64,
    /// The log's time minus the majority's clock, in milliseconds.
    pub log_offset_ms: Option<i64>,
    /// The problem with the clocks. Empty if there is none.
    pub alarm: String,
}

/// The result of setting the log's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeSet {
    /// The index of the entry.
    pub index: u64,
    /// The log's time before the entry, in milliseconds since the Unix epoch.
    pub before_ms: u64,
    /// The log's time from the entry on, in milliseconds since the Unix epoch.
    pub time_ms: u64,
}

/// The limits in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitsSet {
    /// The index of the entry that set the limits. Without such an entry, the index of the first
    /// call, which used the default limits. 0 if neither has been applied.
    pub index: u64,
    /// The limits.
    pub limits: ClusterLimits,
}

/// The connection of a node to another member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerLink {
    /// The node id of the other member.
    pub node_id: NodeId,
    /// Whether the handshake has succeeded and the connection still works.
    pub connected: bool,
    /// The smoothed round-trip time. Zero if not measured yet.
    pub round_trip: Duration,
    /// The reason why the member is not connected, or the setting that does not match. Empty if
    /// there is no problem.
    pub problem: String,
}

impl NodeStatus {
    /// Returns the status of a member that did not respond.
    pub fn unreachable(id: NodeId, client_address: String, peer_address: String) -> Self {
        Self {
            id,
            role: Role::Unreachable,
            term: 0,
            leader: None,
            last_log: 0,
            committed: 0,
            applied: 0,
            snapshot: 0,
            purged: 0,
            component: None,
            version: String::new(),
            client_address,
            peer_address,
            engine: String::new(),
            fatal_error: String::new(),
            divergences: 0,
            divergence: String::new(),
            clock: None,
            links: Vec::new(),
            alarms: Vec::new(),
        }
    }
}

/// The status of the cluster, as reported by one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterStatus {
    /// The cluster id.
    pub cluster_id: String,
    /// The leader, if known.
    pub leader: Option<NodeId>,
    /// The current term of the answering node.
    pub term: u64,
    /// The node that answered.
    pub answered_by: NodeId,
    /// All members, ordered by id.
    pub nodes: Vec<NodeStatus>,
    /// The limits in force at the applied index of the answering node.
    pub limits: LimitsSet,
}

/// The result of the state hash check on one node, after one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The digest of the outcomes of all entries up to this entry.
    pub digest: Digest,
    /// BLAKE3 of the bytes of a snapshot.
    pub state: [u8; 32],
    /// The number of bytes in the snapshot.
    pub bytes: u64,
}

/// The results of a state hash check: for each voter the result after the same entry, or the reason
/// why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// The index of the entry.
    pub index: u64,
    /// The results by node.
    pub nodes: Vec<(NodeId, Result<Verified, String>)>,
}

impl Verification {
    /// Whether every voter has the same result.
    pub fn is_equal(&self) -> bool {
        let mut found = self.nodes.iter().map(|(_, found)| found.as_ref().ok());
        let first = found.next().flatten();
        first.is_some() && found.all(|other| other == first)
    }
}
