//! The host's own unary methods: calls by method name, the state machine's description, and the cluster.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use tokio::time::{Instant, timeout_at};

use super::{
    Backend, MethodKind, Shared,
    codec::{decode, encode},
    invoke, message,
    response::Served,
    table::Target,
};
use conclave_proto::{cluster, machine as wire};
use conclave_types::{
    error::Error,
    limits::{ClusterLimits, LimitsChange},
    status::{LimitsSet, NodeStatus, PeerLink, TimeSet, Verified},
};

/// Maximum size of a generic call's message beside the inner request: its framing and a method name.
pub(super) const ENVELOPE_BYTES_MAX: usize = 4096;
/// The limit that `wit/` promises to state machines.
const METHOD_BYTES_MAX: usize = 256;

pub(super) async fn apply<B: Backend>(
    shared: &Shared<B>,
    message: Bytes,
    parts: &Parts,
    deadline: Instant,
) -> Result<Served, Error> {
    let wire::ApplyRequest { method, request } = decode(message)?;
    let kind = MethodKind::Command;
    let served = by_name(shared, &method, kind, request, parts, deadline).await?;
    let index = served.index.unwrap_or_default();
    Ok(encode(&wire::ApplyResponse { response: served.response, index }, served.index))
}

pub(super) async fn query<B: Backend>(
    shared: &Shared<B>,
    message: Bytes,
    parts: &Parts,
    deadline: Instant,
) -> Result<Served, Error> {
    let wire::QueryRequest { method, request } = decode(message)?;
    let kind = MethodKind::Query;
    let served = by_name(shared, &method, kind, request, parts, deadline).await?;
    let index = served.index.unwrap_or_default();
    Ok(encode(&wire::QueryResponse { response: served.response, index }, served.index))
}

async fn by_name<B: Backend>(
    shared: &Shared<B>,
    name: &str,
    kind: MethodKind,
    request: Bytes,
    parts: &Parts,
    deadline: Instant,
) -> Result<Served, Error> {
    if name.is_empty() || name.len() > METHOD_BYTES_MAX {
        return Err(Error::invalid(format!(
            "the method name has {} bytes: give the name of a state machine's method, of at most \
             {METHOD_BYTES_MAX} bytes",
            name.len()
        )));
    }
    let bytes_max = shared.options.request_bytes_max;
    if request.len() > bytes_max {
        return Err(message::too_large(request.len(), bytes_max));
    }
    let method = shared.table.load().named(name).cloned();
    match method.as_deref().map(|method| method.target) {
        Some(Target::Machine(MethodKind::Query)) if kind == MethodKind::Command => {
            return Err(Error::invalid(format!("{name} is a query: call Query with it")));
        }
        Some(Target::Machine(MethodKind::Command)) if kind == MethodKind::Query => {
            return Err(Error::invalid(format!("{name} is a command: call Apply with it")));
        }
        Some(Target::Machine(MethodKind::Subscription)) => {
            return Err(Error::unsupported(format!(
                "{name} is a subscription: call it as a server-streaming method"
            )));
        }
        _ => {}
    }
    let known = method.as_ref().map(|method| method.name.clone());
    let name = known.unwrap_or_else(|| Arc::from(name));
    invoke::machine(shared, method.as_deref(), kind, name, request, parts, deadline).await
}

pub(super) fn describe<B: Backend>(shared: &Shared<B>) -> Result<Served, Error> {
    let machine = shared.table.load().machine.clone();
    let methods = machine.methods.iter().map(|method| {
        let kind = match method.kind {
            MethodKind::Command => wire::method::Kind::Command,
            MethodKind::Query => wire::method::Kind::Query,
            MethodKind::Subscription => wire::method::Kind::Unspecified,
        };
        wire::Method { name: method.name.to_string(), kind: kind.into() }
    });
    let description = wire::DescribeResponse {
        name: machine.name.clone(),
        version: machine.version.clone(),
        state_version: machine.state_version,
        component_id: machine.component_id.to_string(),
        methods: methods.collect(),
    };
    Ok(encode(&description, None))
}

pub(super) async fn status<B: Backend>(
    shared: &Shared<B>,
    deadline: Instant,
) -> Result<Served, Error> {
    let status = timeout_at(deadline, shared.backend.cluster_status());
    let status = status.await.map_err(|_| Error::deadline())?;
    let answer = cluster::StatusResponse {
        cluster_id: status.cluster_id,
        leader: status.leader.unwrap_or(0),
        term: status.term,
        answered_by: status.answered_by,
        nodes: status.nodes.into_iter().map(node_to_wire).collect(),
        limits: Some(limits_to_wire(&status.limits.limits)),
        limits_index: status.limits.index,
    };
    Ok(encode(&answer, None))
}

pub(super) async fn snapshot<B: Backend>(
    shared: &Shared<B>,
    deadline: Instant,
) -> Result<Served, Error> {
    let index = timeout_at(deadline, shared.backend.snapshot_now());
    let index = index.await.map_err(|_| Error::deadline_outcome_unknown())??;
    Ok(encode(&cluster::SnapshotResponse { index }, Some(index)))
}

pub(super) async fn verify<B: Backend>(
    shared: &Shared<B>,
    deadline: Instant,
) -> Result<Served, Error> {
    let found = timeout_at(deadline, shared.backend.verify(deadline));
    let found = found.await.map_err(|_| Error::deadline())??;
    let (index, equal) = (found.index, found.is_equal());
    let nodes = found.nodes.into_iter().map(|(node_id, found)| match found {
        Ok(Verified { digest, state, bytes }) => cluster::VerifiedNode {
            node_id,
            digest: digest.to_string(),
            state: hex::encode(state),
            bytes,
            reason: String::new(),
        },
        Err(reason) => {
            cluster::VerifiedNode { node_id, reason, ..cluster::VerifiedNode::default() }
        }
    });
    let answer = cluster::VerifyResponse { index, equal, nodes: nodes.collect() };
    Ok(encode(&answer, Some(index)))
}

pub(super) async fn set_time<B: Backend>(
    shared: &Shared<B>,
    message: Bytes,
    deadline: Instant,
) -> Result<Served, Error> {
    let cluster::SetTimeRequest { time_ms } = decode(message)?;
    let set = timeout_at(deadline, shared.backend.set_time(time_ms, deadline));
    let set = set.await.map_err(|_| Error::deadline_outcome_unknown())??;
    let TimeSet { index, before_ms, time_ms } = set;
    Ok(encode(&cluster::SetTimeResponse { index, before_ms, time_ms }, Some(index)))
}

pub(super) async fn set_limits<B: Backend>(
    shared: &Shared<B>,
    message: Bytes,
    deadline: Instant,
) -> Result<Served, Error> {
    let cluster::SetLimitsRequest { limits } = decode(message)?;
    let change = limits_from_wire(&limits.unwrap_or_default())?;
    let set = timeout_at(deadline, shared.backend.set_limits(change, deadline));
    let LimitsSet { index, limits } =
        set.await.map_err(|_| Error::deadline_outcome_unknown())??;
    let answer = cluster::SetLimitsResponse { index, limits: Some(limits_to_wire(&limits)) };
    Ok(encode(&answer, Some(index)))
}

fn limits_from_wire(limits: &cluster::Limits) -> Result<LimitsChange, Error> {
    let bytes = |name, value: Option<u64>| {
        let bytes = value.map(usize::try_from).transpose();
        bytes.map_err(|_| Error::invalid(format!("{name} = {}: too large", value.unwrap_or(0))))
    };
    Ok(LimitsChange {
        memory_bytes_max: bytes("memory_bytes_max", limits.memory_bytes_max)?,
        fuel_per_call: limits.fuel_per_call,
        fuel_per_query: limits.fuel_per_query,
        fuel_per_state_call: limits.fuel_per_state_call,
        response_bytes_max: bytes("response_bytes_max", limits.response_bytes_max)?,
        event_bytes_max: bytes("event_bytes_max", limits.event_bytes_max)?,
    })
}

fn limits_to_wire(limits: &ClusterLimits) -> cluster::Limits {
    cluster::Limits {
        memory_bytes_max: Some(limits.memory_bytes_max as u64),
        fuel_per_call: Some(limits.fuel_per_call),
        fuel_per_query: Some(limits.fuel_per_query),
        fuel_per_state_call: Some(limits.fuel_per_state_call),
        response_bytes_max: Some(limits.response_bytes_max as u64),
        event_bytes_max: Some(limits.event_bytes_max as u64),
    }
}

fn node_to_wire(node: NodeStatus) -> cluster::Node {
    cluster::Node {
        id: node.id,
        role: node.role.name().to_owned(),
        last_log: node.last_log,
        committed: node.committed,
        applied: node.applied,
        snapshot: node.snapshot,
        purged: node.purged,
        component: node.component.map(|component| component.to_string()).unwrap_or_default(),
        version: node.version,
        client_address: node.client_address,
        peer_address: node.peer_address,
        engine: node.engine,
        fatal_error: node.fatal_error,
        divergences: node.divergences,
        divergence: node.divergence,
        clock: node.clock.map(|clock| cluster::Clock {
            offset_ms: clock.offset_ms,
            log_time_ms: clock.log_time_ms,
            log_offset_ms: clock.log_offset_ms,
            alarm: clock.alarm,
        }),
        links: node.links.into_iter().map(link_to_wire).collect(),
        alarms: node.alarms,
    }
}

fn link_to_wire(link: PeerLink) -> cluster::PeerLink {
    cluster::PeerLink {
        node_id: link.node_id,
        connected: link.connected,
        round_trip_us: link.round_trip.as_micros() as u64,
        problem: link.problem,
    }
}
