//! Fuzz targets for messages from peers.

use std::collections::BTreeMap;

use openraft::EntryPayload;
use prost::Message as _;

use super::message;
use conclave_proto::raft as wire;
use conclave_storage::{
    convert::{entry_to_wire, log_id_to_wire, vote_to_wire},
    raft_types::{Entry, LogId, Member, Membership, Vote},
};

/// The sender of the messages.
const FROM: u64 = 2;

/// Decodes append and vote requests. An accepted request must satisfy the assertions of Raft's core.
pub fn peer_message(data: &[u8]) {
    if let Ok(request) = wire::AppendRequest::decode(data)
        && let Ok(request) = message::append(request, FROM)
    {
        let mut before = request.prev_log_id;
        for entry in &request.entries {
            assert_eq!(entry.log_id.index, before.map_or(0, |before| before.index + 1));
            assert!(before.is_none_or(|before| before.leader_id <= entry.log_id.leader_id));
            assert!(entry.log_id.leader_id.term <= request.vote.leader_id.term);
            before = Some(entry.log_id);
        }
        assert!(request.vote.committed, "only a leader appends");
    }
    if let Ok(request) = wire::VoteRequest::decode(data)
        && let Ok(request) = message::vote_request(&request, FROM)
    {
        assert_eq!(request.vote.leader_id.voted_for, FROM);
    }
}

pub(crate) fn vote(committed: bool) -> Vote {
    let mut vote = Vote::new(3, FROM);
    vote.committed = committed;
    vote
}

pub(crate) fn membership() -> Membership {
    let member = |id: u64| {
        (id, Member { peer_address: format!("n{id}:7201"), client_address: format!("n{id}:7101") })
    };
    let members: BTreeMap<_, _> = (1..=3).map(member).collect();
    let voters = vec![members.keys().copied().collect()];
    Membership::new(voters, members).unwrap_or_else(|error| unreachable!("{error}"))
}

fn entries() -> Vec<Entry> {
    let log_id = |index| LogId::new_term_index(3, index);
    vec![
        Entry { log_id: log_id(1), payload: EntryPayload::Membership(membership()) },
        Entry { log_id: log_id(2), payload: EntryPayload::Blank },
    ]
}

/// Returns valid requests.
pub fn peer_message_seeds() -> Vec<Vec<u8>> {
    let append = wire::AppendRequest {
        vote: Some(vote_to_wire(&vote(true))),
        previous: Some(log_id_to_wire(&LogId::new_term_index(3, 0))),
        entries: entries().iter().map(entry_to_wire).collect(),
        leader_commit: Some(log_id_to_wire(&LogId::new_term_index(3, 1))),
    };
    let request = wire::VoteRequest {
        vote: Some(vote_to_wire(&vote(false))),
        last_log_id: Some(log_id_to_wire(&LogId::new_term_index(2, 9))),
        ..wire::VoteRequest::default()
    };
    vec![append.encode_to_vec(), request.encode_to_vec()]
}
