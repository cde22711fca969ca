//! The request for another node's status, and its wire form.

use std::time::Duration;

use super::network::{peer::ConnectionClass, peers::Peers};
use conclave_proto::{
    raft as wire,
    raft::{NodeStatusRequest, NodeStatusResponse},
};
use conclave_storage::raft_types::Member;
use conclave_types::{
    ComponentId, NodeId,
    error::Error,
    status::{ClockStatus, NodeStatus, PeerLink, Role},
};

/// Requests the status of another node.
pub(super) async fn ask(
    peers: &Peers,
    node_id: NodeId,
    member: &Member,
) -> Result<NodeStatus, Error> {
    let peer = peers.peer(node_id, member);
    let client = peer.client(ConnectionClass::Control).await;
    let mut client = client.map_err(|error| Error::caused_by(Error::fatal, error))?;
    let answer = client.node_status(NodeStatusRequest {}).await;
    let answer = answer.map_err(|status| {
        Error::fatal(peer.failed(ConnectionClass::Control, status).to_string())
    })?;
    Ok(from_wire(answer.into_inner(), member))
}

fn from_wire(status: NodeStatusResponse, member: &Member) -> NodeStatus {
    NodeStatus {
        id: status.node_id,
        role: Role::from_name(&status.role).unwrap_or(Role::Unreachable),
        term: status.term,
        leader: (status.leader_node_id != 0).then_some(status.leader_node_id),
        last_log: status.last_log_index,
        committed: status.committed_index,
        applied: status.applied_index,
        snapshot: status.snapshot_index,
        purged: status.purged_index,
        component: status.component_id.as_ref().try_into().ok().map(ComponentId),
        version: status.version,
        client_address: member.client_address.clone(),
        peer_address: member.peer_address.clone(),
        engine: status.engine_fingerprint,
        fatal_error: status.fatal_error,
        divergences: status.divergences,
        divergence: status.divergence,
        clock: status.clock.map(clock_from_wire),
        links: status.links.into_iter().map(link_from_wire).collect(),
        alarms: status.alarms,
    }
}

fn clock_from_wire(clock: wire::ClockStatus) -> ClockStatus {
    let wire::ClockStatus { offset_ms, log_time_ms, log_offset_ms, alarm } = clock;
    ClockStatus { offset_ms, log_time_ms, log_offset_ms, alarm }
}

/// Converts a node's status to its wire form.
pub(super) fn to_wire(status: &NodeStatus) -> NodeStatusResponse {
    NodeStatusResponse {
        node_id: status.id,
        role: status.role.name().to_owned(),
        term: status.term,
        leader_node_id: status.leader.unwrap_or_default(),
        last_log_index: status.last_log,
        committed_index: status.committed,
        applied_index: status.applied,
        snapshot_index: status.snapshot,
        purged_index: status.purged,
        component_id: status
            .component
            .map(|component| component.0.to_vec())
            .unwrap_or_default()
            .into(),
        engine_fingerprint: status.engine.clone(),
        version: status.version.clone(),
        fatal_error: status.fatal_error.clone(),
        divergences: status.divergences,
        divergence: status.divergence.clone(),
        clock: status.clock.clone().map(|clock| wire::ClockStatus {
            offset_ms: clock.offset_ms,
            log_time_ms: clock.log_time_ms,
            log_offset_ms: clock.log_offset_ms,
            alarm: clock.alarm,
        }),
        links: status.links.iter().map(link_to_wire).collect(),
        alarms: status.alarms.clone(),
    }
}

fn link_from_wire(link: wire::PeerLink) -> PeerLink {
    PeerLink {
        node_id: link.node_id,
        connected: link.connected,
        round_trip: Duration::from_micros(link.round_trip_us),
        problem: link.problem,
    }
}

fn link_to_wire(link: &PeerLink) -> wire::PeerLink {
    wire::PeerLink {
        node_id: link.node_id,
        connected: link.connected,
        round_trip_us: link.round_trip.as_micros() as u64,
        problem: link.problem.clone(),
    }
}
