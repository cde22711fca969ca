//! The life of an upgrade, on the wire: `PushModule`, `ListModules` and so on of the cluster service.

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::{
    Backend, Shared,
    call::Served,
    generic::{decode, encode},
    table::Verb,
};
use conclave_proto::cluster as wire;
use conclave_types::{
    ModuleId, NodeId,
    error::Error,
    modules::{Activated, Change, Difference, ModulePart, ModuleStatus, Permissions, Readiness},
};

/// What a client may send of a module at once.
pub(super) const PIECE_BYTES_MAX: usize = 1 << 20;

pub(super) async fn serve<B: Backend>(
    shared: &Shared<B>,
    verb: Verb,
    request: Bytes,
    deadline: Instant,
) -> Result<Served, Error> {
    let served = answer(shared, verb, request, deadline);
    // An activation that was proposed may still come.
    let ran_out = || match verb {
        Verb::Activate | Verb::Rollback | Verb::Push => Error::deadline_outcome_unknown(),
        Verb::List | Verb::Rehearse | Verb::Diff => Error::deadline(),
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
            let pushed = backend.push_module(piece(decode(request)?)?, deadline).await?;
            let module = pushed.module.map(module_to_wire);
            Ok(encode(&wire::PushModuleResponse { next_at: pushed.next_at, module }, None))
        }
        Verb::List => {
            let wire::ListModulesRequest {} = decode(request)?;
            let modules = backend.list_modules().await.into_iter().map(module_to_wire).collect();
            Ok(encode(&wire::ListModulesResponse { modules }, None))
        }
        Verb::Rehearse => {
            let wire::RehearseModuleRequest { module } = decode(request)?;
            let module = backend.find_module(&module, deadline).await?;
            let status = backend.rehearse_module(module, deadline).await?;
            let ready = status
                .nodes
                .iter()
                .all(|(_, readiness)| matches!(readiness, Readiness::Ready(_) | Readiness::Active));
            let module = Some(module_to_wire(status));
            Ok(encode(&wire::RehearseModuleResponse { module, ready }, None))
        }
        Verb::Diff => {
            let wire::DiffModuleRequest { module } = decode(request)?;
            let module = backend.find_module(&module, deadline).await?;
            let difference = backend.diff_module(module).await?;
            Ok(encode(&difference_to_wire(difference), None))
        }
        Verb::Activate => {
            let wire::ActivateModuleRequest { module, allow_breaking, without } = decode(request)?;
            let module = backend.find_module(&module, deadline).await?;
            let without = without.into_iter().collect();
            let permissions = Permissions { allow_breaking, without };
            let activated = backend.activate_module(module, &permissions, deadline).await?;
            Ok(activated_to_wire(activated))
        }
        Verb::Rollback => {
            let wire::RollbackModuleRequest { from, allow_breaking, without } = decode(request)?;
            let from = backend.find_module(&from, deadline).await?;
            let without = without.into_iter().collect();
            let permissions = Permissions { allow_breaking, without };
            let activated = backend.rollback_module(from, &permissions, deadline).await?;
            Ok(activated_to_wire(activated))
        }
    }
}

fn piece(request: wire::PushModuleRequest) -> Result<ModulePart, Error> {
    let wire::PushModuleRequest { module, total_bytes, at, bytes } = request;
    let id: Result<[u8; 32], _> = module.as_ref().try_into();
    let id = id.map_err(|_| {
        Error::invalid(format!("a module's name is its SHA-256, 32 bytes, not {}", module.len()))
    })?;
    Ok(ModulePart { module: ModuleId(id), total_bytes, at, bytes, about: None })
}

fn activated_to_wire(activated: Activated) -> Served {
    let Activated { module, previous, index } = activated;
    let (module, previous) = (module.to_string(), previous.to_string());
    encode(&wire::ActivateModuleResponse { module, previous, index }, Some(index))
}

fn module_to_wire(status: ModuleStatus) -> wire::Module {
    wire::Module {
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

fn node_to_wire((node_id, readiness): (NodeId, Readiness)) -> wire::ModuleNode {
    let state = readiness.name().to_owned();
    let mut node = wire::ModuleNode { node_id, state, ..wire::ModuleNode::default() };
    match readiness {
        Readiness::Failed(reason) | Readiness::Unreachable(reason) => node.reason = reason,
        Readiness::Ready(rehearsed) => {
            node.carry_over_ms = rehearsed.carry_over_ms;
            node.entries = rehearsed.entries;
        }
        Readiness::Absent | Readiness::Preparing | Readiness::Active => {}
    }
    node
}

fn difference_to_wire(difference: Difference) -> wire::DiffModuleResponse {
    let changes = difference.changes.into_iter().map(|change| {
        let Change { subject, text, breaking } = change;
        wire::Change { subject, text, breaking }
    });
    wire::DiffModuleResponse {
        from: difference.from.to_string(),
        to: difference.to.to_string(),
        from_state_version: difference.from_state_version,
        to_state_version: difference.to_state_version,
        restores: difference.restores,
        changes: changes.collect(),
    }
}
