//! Conversions between openraft's types and their protobuf messages, on disk and between peers.
//!
//! Every conversion from the wire validates its input, because a peer or a disk may hold arbitrary
//! bytes. [`conclave_proto::convert`] converts the types that are independent of openraft.

use std::collections::BTreeMap;

use conclave_proto::{
    convert::{Malformed, command_from_wire, command_to_wire, missing},
    raft as wire,
};

use crate::raft_types::{
    Entry, LogId, Member, Membership, Payload, SnapshotMeta, StoredMembership, Vote,
};

/// Converts a log id to the wire.
pub fn log_id_to_wire(log_id: &LogId) -> wire::LogId {
    wire::LogId { term: log_id.leader_id.term, index: log_id.index }
}

/// Converts a log id from the wire.
pub fn log_id_from_wire(log_id: &wire::LogId) -> LogId {
    LogId::new_term_index(log_id.term, log_id.index)
}

/// Converts a vote to the wire.
pub fn vote_to_wire(vote: &Vote) -> wire::Vote {
    wire::Vote {
        term: vote.leader_id.term,
        node_id: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

/// Converts a vote from the wire.
pub fn vote_from_wire(vote: &wire::Vote) -> Vote {
    if vote.committed {
        Vote::new_committed(vote.term, vote.node_id)
    } else {
        Vote::new(vote.term, vote.node_id)
    }
}

/// Converts a membership to the wire.
pub fn membership_to_wire(membership: &Membership) -> wire::Membership {
    let configs = membership.get_joint_config().iter();
    let members = membership.nodes();
    wire::Membership {
        configs: configs
            .map(|voters| wire::Voters { node_ids: voters.iter().copied().collect() })
            .collect(),
        members: members
            .map(|(node_id, member)| wire::Member {
                node_id: *node_id,
                peer_address: member.peer_address.clone(),
                client_address: member.client_address.clone(),
            })
            .collect(),
    }
}

/// Converts a membership from the wire.
pub fn membership_from_wire(membership: wire::Membership) -> Result<Membership, Malformed> {
    let configs =
        membership.configs.into_iter().map(|voters| voters.node_ids.into_iter().collect());
    let members: BTreeMap<_, _> = membership
        .members
        .into_iter()
        .map(|member| {
            let wire::Member { node_id, peer_address, client_address } = member;
            (node_id, Member { peer_address, client_address })
        })
        .collect();
    Membership::new(configs.collect(), members)
        .map_err(|error| Malformed::caused_by("membership", error))
}

/// Converts a stored membership to the wire.
pub fn stored_membership_to_wire(stored: &StoredMembership) -> wire::StoredMembership {
    wire::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_to_wire),
        membership: Some(membership_to_wire(stored.membership())),
    }
}

/// Converts a stored membership from the wire. It is empty for a cluster that was never initialized.
pub fn stored_membership_from_wire(
    stored: wire::StoredMembership,
) -> Result<StoredMembership, Malformed> {
    let membership = stored.membership.ok_or_else(|| missing("stored membership", "membership"))?;
    if stored.log_id.is_none() && membership.configs.is_empty() {
        return Ok(StoredMembership::default());
    }
    Ok(StoredMembership::new(
        stored.log_id.as_ref().map(log_id_from_wire),
        membership_from_wire(membership)?,
    ))
}

/// Converts an entry to the wire.
pub fn entry_to_wire(entry: &Entry) -> wire::Entry {
    let payload = match &entry.payload {
        Payload::Blank => None,
        Payload::Normal(command) => Some(wire::entry::Payload::Command(command_to_wire(command))),
        Payload::Membership(membership) => {
            Some(wire::entry::Payload::Membership(membership_to_wire(membership)))
        }
    };
    wire::Entry { log_id: Some(log_id_to_wire(&entry.log_id)), payload }
}

/// Converts an entry from the wire.
pub fn entry_from_wire(entry: wire::Entry) -> Result<Entry, Malformed> {
    let log_id = entry.log_id.as_ref().ok_or_else(|| missing("entry", "log_id"))?;
    let payload = match entry.payload {
        None => Payload::Blank,
        Some(wire::entry::Payload::Command(command)) => {
            Payload::Normal(command_from_wire(command)?)
        }
        Some(wire::entry::Payload::Membership(membership)) => {
            Payload::Membership(membership_from_wire(membership)?)
        }
    };
    Ok(Entry { log_id: log_id_from_wire(log_id), payload })
}

/// Returns the metadata that openraft needs of a snapshot, from the snapshot's header.
pub fn snapshot_meta_from_wire(header: &wire::SnapshotHeader) -> Result<SnapshotMeta, Malformed> {
    let membership =
        header.membership.clone().ok_or_else(|| missing("snapshot header", "membership"))?;
    Ok(SnapshotMeta {
        last_log_id: header.last_log_id.as_ref().map(log_id_from_wire),
        last_membership: stored_membership_from_wire(membership)?,
    })
}
