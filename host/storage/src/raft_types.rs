//! openraft, bound to our types.

use std::fmt;

use openraft::impls::leader_id_std;

use conclave_types::{Command, NodeId, Receipt};

/// Where a member is reached. Part of the replicated membership.
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
    /// The types of a Conclave cluster. Leader ids are those of the Raft paper: one leader a term.
    pub TypeConfig:
        D = Command,
        R = Receipt,
        NodeId = NodeId,
        Node = Member,
        LeaderId = leader_id_std::LeaderId<u64, NodeId>,
);

/// A position in the log.
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// A vote, or a leader's claim.
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// One entry of the log.
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
/// What an entry holds.
pub type Payload = openraft::EntryPayload<Command, NodeId, Member>;
/// The members of a cluster.
pub type Membership = openraft::Membership<NodeId, Member>;
/// A membership and the entry that brought it.
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
