//! The openraft types of a Conclave cluster.

use std::fmt;

use openraft::impls::leader_id_std;

use conclave_types::{Command, NodeId, Receipt};

/// The addresses of a member. Part of the replicated membership.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// `host:port` of the peer port, for the other members.
    pub peer_address: String,
    /// `host:port` of the client port, for clients.
    pub client_address: String,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.peer_address)
    }
}

openraft::declare_raft_types!(
    /// The types of a Conclave cluster. Leader ids follow the Raft paper: at most one leader per term.
    pub TypeConfig:
        D = Command,
        R = Receipt,
        NodeId = NodeId,
        Node = Member,
        LeaderId = leader_id_std::LeaderId<u64, NodeId>,
);

/// The term and index of an entry.
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// A vote for a candidate, or the committed vote of a leader.
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// An entry of the log.
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
/// The content of an entry.
pub type Payload = openraft::EntryPayload<Command, NodeId, Member>;
/// The members of a cluster.
pub type Membership = openraft::Membership<NodeId, Member>;
/// A membership, and the log id of its entry.
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
/// The metadata of a snapshot: its last log id and membership.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
