//! The wire form of forwarded calls and their results, between a node and the leader.

use conclave_proto::{
    convert::{failure_from_wire, failure_to_wire, trap_from_wire, trap_to_wire},
    raft as wire,
    raft::refusal::Reason,
};
use conclave_types::{
    Outcome, Receipt, Reply,
    error::{Error, ErrorKind, chain},
    status::Leader,
};

/// Converts the result of a forwarded call to its wire form.
pub(super) fn result_to_wire(result: Result<Receipt, Error>) -> wire::ForwardResponse {
    use wire::{applied::Outcome as Wire, forward_response::Result as Answer};
    let result = match result {
        Ok(applied) => Answer::Applied(wire::Applied {
            index: applied.index,
            outcome: applied.outcome.map(|outcome| match outcome {
                Outcome::Reply(reply) => Wire::Response(reply.response),
                Outcome::Failure(failure) => Wire::Failure(failure_to_wire(&failure)),
                Outcome::Trap(trap) => Wire::Trap(trap_to_wire(&trap)),
            }),
        }),
        Err(error) => Answer::Refusal(refusal_to_wire(&error)),
    };
    wire::ForwardResponse { result: Some(result) }
}

/// Converts the result of a forwarded call from its wire form.
pub(super) fn result_from_wire(response: wire::ForwardResponse) -> Result<Receipt, Error> {
    use wire::{applied::Outcome as Wire, forward_response::Result as Answer};
    match response.result {
        Some(Answer::Applied(applied)) => Ok(Receipt {
            index: applied.index,
            outcome: applied.outcome.map(|outcome| match outcome {
                Wire::Response(response) => Outcome::Reply(Reply { response, ..Reply::default() }),
                Wire::Failure(failure) => Outcome::Failure(failure_from_wire(failure)),
                Wire::Trap(trap) => Outcome::Trap(trap_from_wire(trap)),
            }),
        }),
        Some(Answer::Refusal(refusal)) => Err(refusal_from_wire(refusal)),
        None => Err(Error::fatal("the leader's response has no result")),
    }
}

/// Converts an error to its wire form.
pub(super) fn refusal_to_wire(error: &Error) -> wire::Refusal {
    let reason = match error.kind() {
        ErrorKind::NotLeader { .. } => Reason::NotLeader,
        ErrorKind::NoQuorum => Reason::NoQuorum,
        ErrorKind::Deadline { outcome_unknown: false } => Reason::Deadline,
        ErrorKind::Deadline { outcome_unknown: true } => Reason::DeadlineOutcomeUnknown,
        ErrorKind::Lost(_) => Reason::Lost,
        ErrorKind::Limit(_) => Reason::Limit,
        ErrorKind::Busy(_) => Reason::Busy,
        ErrorKind::ShuttingDown | ErrorKind::Stopped(_) => Reason::ShuttingDown,
        _ => Reason::Fatal,
    };
    let leader = error.leader();
    wire::Refusal {
        reason: reason.into(),
        message: match error.kind() {
            ErrorKind::Lost(why) => why.clone(),
            _ => chain(error),
        },
        leader_node_id: leader.map_or(0, |leader| leader.node_id),
        leader_client_address: leader
            .map(|leader| leader.client_address.to_string())
            .unwrap_or_default(),
    }
}

/// Converts an error from its wire form.
pub(super) fn refusal_from_wire(refusal: wire::Refusal) -> Error {
    match refusal.reason() {
        Reason::NotLeader => Error::not_leader((refusal.leader_node_id != 0).then(|| Leader {
            node_id: refusal.leader_node_id,
            client_address: refusal.leader_client_address.into(),
        })),
        Reason::NoQuorum => Error::no_quorum(),
        Reason::Deadline => Error::deadline(),
        Reason::DeadlineOutcomeUnknown => Error::deadline_outcome_unknown(),
        Reason::Lost => Error::lost(refusal.message),
        Reason::Limit => Error::limit(refusal.message),
        Reason::Busy => Error::busy(refusal.message),
        Reason::ShuttingDown => Error::shutting_down(),
        Reason::Fatal | Reason::Unspecified => Error::fatal(refusal.message),
    }
}
