//! The methods for upgrades of the cluster service: `PushComponent`, `ListComponents` and so on.

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::{
    Backend, Shared,
    codec::{decode, encode},
    response::Served,
    table::Verb,
};
use conclave_proto::cluster as wire;
use conclave_types::{
    ComponentId, NodeId,
    components::{
        Activated, Change, ComponentPart, ComponentStatus, Difference, Permissions, Readiness,
    },
    error::Error,
};

/// Maximum size of a piece of a component.
pub(super) const PIECE_BYTES_MAX: usize = 1 << 20;

pub(super) async fn serve<B: Backend>(
    shared: &Shared<B>,
    verb: Verb,
    request: Bytes,
    deadline: Instant,
) -> Result<Served, Error> {
    let served = answer(shared, verb, request, deadline);
    // An activation that was proposed may still take effect.
    let ran_out = || match verb {
        Verb::Activate | Verb::Rollback | Verb::Push => Error::deadline_outcome_unknown(),
        Verb::Pull | Verb::List | Verb::Rehearse | Verb::Diff => Error::deadline(),
    };
    timeout_at(deadline, served).await.map_err(|_| ran_out())?
}

async fn answer<B: Backend>(
    shared: &Shared<B>,
    verb: Verb,
    request: Bytes,
    deadline: Instant,
) -> Result<Served, Error> {
    let backend = &*shared.backend;
    match verb {
        Verb::Push => {
            let pushed = backend.push_component(piece(decode(request)?)?, deadline).await?;
            let component = pushed.component.map(component_to_wire);
            Ok(encode(&wire::PushComponentResponse { next_at: pushed.next_at, component }, None))
        }
        Verb::Pull => {
            let wire::PullComponentRequest { component, at } = decode(request)?;
            let id = backend.find_component(&component, deadline).await?;
            Ok(encode(&pulled(id, &backend.component_bytes(id)?, at)?, None))
        }
        Verb::List => {
            let wire::ListComponentsRequest {} = decode(request)?;
            let components =
                backend.list_components().await.into_iter().map(component_to_wire).collect();
            Ok(encode(&wire::ListComponentsResponse { components }, None))
        }
        Verb::Rehearse => {
            let wire::RehearseComponentRequest { component } = decode(request)?;
            let component = backend.find_component(&component, deadline).await?;
            let status = backend.rehearse_component(component, deadline).await?;
            let ready = status
                .nodes
                .iter()
                .all(|(_, readiness)| matches!(readiness, Readiness::Ready(_) | Readiness::Active));
            let component = Some(component_to_wire(status));
            Ok(encode(&wire::RehearseComponentResponse { component, ready }, None))
        }
        Verb::Diff => {
            let wire::DiffComponentRequest { component } = decode(request)?;
            let component = backend.find_component(&component, deadline).await?;
            let difference = backend.diff_component(component).await?;
            Ok(encode(&difference_to_wire(difference), None))
        }
        Verb::Activate => {
            let wire::ActivateComponentRequest { component, allow_breaking, without } =
                decode(request)?;
            let component = backend.find_component(&component, deadline).await?;
            let without = without.into_iter().collect();
            let permissions = Permissions { allow_breaking, without };
            let activated = backend.activate_component(component, &permissions, deadline).await?;
            Ok(activated_to_wire(activated))
        }
        Verb::Rollback => {
            let wire::RollbackComponentRequest { from, allow_breaking, without } = decode(request)?;
            let from = backend.find_component(&from, deadline).await?;
            let without = without.into_iter().collect();
            let permissions = Permissions { allow_breaking, without };
            let activated = backend.rollback_component(from, &permissions, deadline).await?;
            Ok(activated_to_wire(activated))
        }
    }
}

fn piece(request: wire::PushComponentRequest) -> Result<ComponentPart, Error> {
    let wire::PushComponentRequest { component, total_bytes, at, bytes } = request;
    let id: Result<[u8; 32], _> = component.as_ref().try_into();
    let id = id.map_err(|_| {
        Error::invalid(format!("a component id is a SHA-256 of 32 bytes, not {}", component.len()))
    })?;
    Ok(ComponentPart { component: ComponentId(id), total_bytes, at, bytes, about: None })
}

/// Returns the part of a component from an offset on.
fn pulled(id: ComponentId, bytes: &Bytes, at: u64) -> Result<wire::PullComponentResponse, Error> {
    let from = usize::try_from(at).ok().filter(|at| *at <= bytes.len()).ok_or_else(|| {
        Error::invalid(format!("component {id} has {} bytes, fewer than {at}", bytes.len()))
    })?;
    let end = bytes.len().min(from + PIECE_BYTES_MAX);
    Ok(wire::PullComponentResponse {
        component: id.0.to_vec().into(),
        total_bytes: bytes.len() as u64,
        bytes: bytes.slice(from..end),
    })
}

fn activated_to_wire(activated: Activated) -> Served {
    let Activated { component, previous, index } = activated;
    let (component, previous) = (component.to_string(), previous.to_string());
    encode(&wire::ActivateComponentResponse { component, previous, index }, Some(index))
}

fn component_to_wire(status: ComponentStatus) -> wire::Component {
    wire::Component {
        id: status.id.to_string(),
        name: status.about.name.to_string(),
        version: status.about.version.to_string(),
        state_version: status.about.state_version,
        bytes: status.bytes,
        index: status.index,
        activated_index: status.activated_index,
        active: status.active,
        previous: status.previous,
        nodes: status.nodes.into_iter().map(node_to_wire).collect(),
    }
}

fn node_to_wire((node_id, readiness): (NodeId, Readiness)) -> wire::ComponentNode {
    let state = readiness.name().to_owned();
    let mut node = wire::ComponentNode { node_id, state, ..wire::ComponentNode::default() };
    match readiness {
        Readiness::Failed(reason) | Readiness::Unreachable(reason) => node.reason = reason,
        Readiness::Ready(rehearsed) => {
            node.migration_ms = rehearsed.migration_ms;
            node.entries = rehearsed.entries;
        }
        Readiness::Absent | Readiness::Preparing | Readiness::Active => {}
    }
    node
}

fn difference_to_wire(difference: Difference) -> wire::DiffComponentResponse {
    let changes = difference.changes.into_iter().map(|change| {
        let Change { subject, text, breaking } = change;
        wire::Change { subject, text, breaking }
    });
    wire::DiffComponentResponse {
        from: difference.from.to_string(),
        to: difference.to.to_string(),
        from_state_version: difference.from_state_version,
        to_state_version: difference.to_state_version,
        restores: difference.restores,
        changes: changes.collect(),
    }
}
