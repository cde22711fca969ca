//! What a node says of itself and of its cluster, and how a read is asked for and answered.
//!
//! Plain data between the raft layer, which knows, and the api layer, which tells.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{ComponentId, Digest, Failure, NodeId, limits::ClusterLimits};

/// How fresh the state that answers a query has to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Everything that was acknowledged before the query was sent is seen.
    #[default]
    Linearizable,
    /// As linearizable as the clocks are good: the leader answers on its lease, without asking anyone.
    Lease,
    /// The answering node's state as it is.
    Stale,
}

impl Consistency {
    /// The name, as it travels in metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linearizable => "linearizable",
            Self::Lease => "lease",
            Self::Stale => "stale",
        }
    }

    /// The consistency with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Linearizable, Self::Lease, Self::Stale].into_iter().find(|this| this.name() == name)
    }
}

/// A machine's answer to a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The log index up to which the state that answered had been applied.
    pub index: u64,
    /// The response message's bytes, or the machine's no.
    pub result: Result<Bytes, Failure>,
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Its number.
    pub node_id: NodeId,
    /// `host:port` of its client port; empty if that is not known.
    pub client_address: Arc<str>,
}

/// Whether a node does its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Commands and queries are served.
    Serving,
    /// They are not.
    NotServing(NotServing),
}

/// Why a node does not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotServing {
    /// The node has not finished starting.
    Starting,
    /// The node is about to stop. This is final.
    ShuttingDown,
    /// The node rejects calls because of a fault: the text names it.
    Fatal(String),
    /// No leader is known.
    NoLeader,
    /// The leader has not been heard of for two election timeouts.
    LeaderSilent(NodeId),
    /// This node leads, and no majority has answered it for an election timeout.
    NoMajority,
    /// The state is far behind the log that the leader has committed.
    Behind {
        /// Entries that are committed and not applied here.
        entries: u64,
        /// The age of the state in milliseconds: the time since everything was applied that was committed then.
        age_ms: u64,
    },
}

impl NotServing {
    /// The reason's name, the same for all figures and texts.
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
                write!(f, "leader {leader} has not been heard of for a while")
            }
            Self::NoMajority => f.write_str("a majority does not answer"),
            Self::Behind { entries, age_ms } => write!(
                f,
                "the state is {entries} entries and {:.1} s behind the leader",
                *age_ms as f64 / 1000.0
            ),
        }
    }
}

/// The part that a node plays in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Orders the log.
    Leader,
    /// Votes, and copies the leader's log.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Copies the leader's log without a vote.
    Learner,
    /// Did not answer.
    Unreachable,
}

impl Role {
    /// The name, as status answers show it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
            Self::Unreachable => "unreachable",
        }
    }

    /// The role with this name.
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

/// One node, as it sees itself; of an unreachable one only its id and addresses are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its number.
    pub id: NodeId,
    /// Its part in the cluster.
    pub role: Role,
    /// The term that it is in.
    pub term: u64,
    /// Whom it follows.
    pub leader: Option<NodeId>,
    /// The last index of its log.
    pub last_log: u64,
    /// Up to which index it knows the log to be committed.
    pub committed: u64,
    /// Up to which index its machine has applied the log.
    pub applied: u64,
    /// The index that its newest snapshot reaches; 0: it has none.
    pub snapshot: u64,
    /// Up to which index it has removed the log's beginning.
    pub purged: u64,
    /// The machine that it runs; absent if it could not be asked.
    pub component: Option<ComponentId>,
    /// Its version of Conclave.
    pub version: String,
    /// `host:port` of its client port.
    pub client_address: String,
    /// `host:port` of its peer port.
    pub peer_address: String,
    /// Its engine's fingerprint.
    pub engine: String,
    /// Empty while it works; otherwise what is wrong.
    pub fatal_error: String,
    /// How often its machine has diverged from the others since it started.
    pub divergences: u64,
    /// The last time that was repaired, for people.
    pub divergence: String,
    /// Its clock; absent if it could not be asked.
    pub clock: Option<ClockStatus>,
    /// Its connections to the other members.
    pub links: Vec<PeerLink>,
    /// The problems that an operator should look at, although the node works.
    pub alarms: Vec<String>,
}

/// How a node's clock, and the log's time, compare with the clock of a majority of the voters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClockStatus {
    /// The node's clock minus the majority's, in milliseconds; absent: no majority of clocks agrees, or the node
    /// has not compared its own yet.
    pub offset_ms: Option<i64>,
    /// The log's time, as the node estimates it: milliseconds since the Unix epoch.
    pub log_time_ms: u64,
    /// The log's time minus the majority's clock, in milliseconds.
    pub log_offset_ms: Option<i64>,
    /// Empty while the clocks are right.
    pub alarm: String,
}

/// The log's time was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeSet {
    /// The entry's index.
    pub index: u64,
    /// The log's time before, in milliseconds since the Unix epoch.
    pub before_ms: u64,
    /// And from then on.
    pub time_ms: u64,
}

/// The limits in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitsSet {
    /// The entry that has set them, or the first call, which found those of the beginning. 0: neither was applied.
    pub index: u64,
    /// The limits.
    pub limits: ClusterLimits,
}

/// The connection of a node to another member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerLink {
    /// The other member.
    pub node_id: NodeId,
    /// Whether the two have introduced themselves and still reach each other.
    pub connected: bool,
    /// The smoothed round trip; zero: not measured yet.
    pub round_trip: Duration,
    /// Empty: nothing is wrong. Otherwise why it is not connected, or which setting does not fit.
    pub problem: String,
}

impl NodeStatus {
    /// A member that did not answer.
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

/// The cluster as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterStatus {
    /// The cluster's name.
    pub cluster_id: String,
    /// Who leads, if that is known.
    pub leader: Option<NodeId>,
    /// The term that the answering node is in.
    pub term: u64,
    /// The node that answered.
    pub answered_by: NodeId,
    /// All members, by their ids.
    pub nodes: Vec<NodeStatus>,
    /// The limits in force, as far as the answering node has applied the log.
    pub limits: LimitsSet,
}

/// What a node found of its machine's state after an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The digest of what came of all entries up to there.
    pub digest: Digest,
    /// BLAKE3 of the snapshot's bytes.
    pub state: [u8; 32],
    /// How many bytes those are.
    pub bytes: u64,
}

/// What every voter found after the same entry, or why it found nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// The entry's index.
    pub index: u64,
    /// By node.
    pub nodes: Vec<(NodeId, Result<Verified, String>)>,
}

impl Verification {
    /// Every voter found the same.
    pub fn is_equal(&self) -> bool {
        let mut found = self.nodes.iter().map(|(_, found)| found.as_ref().ok());
        let first = found.next().flatten();
        first.is_some() && found.all(|other| other == first)
    }
}
