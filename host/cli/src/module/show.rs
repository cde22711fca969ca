//! How modules and nodes are shown, to people and to scripts.

use conclave_client::proto::cluster::{ActivateModuleResponse, Module, ModuleNode};
use serde_json::{Value, json};

use crate::output::Output;

/// As much of an id as people need.
pub(crate) fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// `counter 2.0 (3f8a02…)`
pub(super) fn name(module: &Module) -> String {
    format!("{} {} ({})", module.name, module.version, short(&module.id))
}

/// A node's state, with what belongs to it.
pub(crate) fn node(node: &ModuleNode) -> String {
    match node.state.as_str() {
        "ready" => format!(
            "ready: state carried over in {} ms, {} entries applied",
            node.carry_over_ms, node.entries
        ),
        state if node.reason.is_empty() => state.to_owned(),
        state => format!("{state}: {}", node.reason),
    }
}

/// What scripts read of a module.
pub(super) fn as_json(module: &Module) -> Value {
    let nodes = module.nodes.iter().map(|node| {
        json!({
            "id": node.node_id,
            "state": node.state,
            "reason": (!node.reason.is_empty()).then_some(&node.reason),
            "carry_over_ms": node.carry_over_ms,
            "entries": node.entries,
        })
    });
    json!({
        "module": module.id,
        "name": module.name,
        "version": module.version,
        "state_version": module.state_version,
        "bytes": module.bytes,
        "index": module.index,
        "activated_index": module.activated_index,
        "active": module.active,
        "previous": module.previous,
        "nodes": nodes.collect::<Vec<_>>(),
    })
}

/// Says what is active now.
pub(super) fn activated(response: &ActivateModuleResponse, json: bool, output: &mut Output) {
    let ActivateModuleResponse { module, previous, index } = response;
    if json {
        output.value(&json!({"module": module, "previous": previous, "index": index}));
        return;
    }
    output.line(format!("module {} is active since index {index}", short(module)));
    if module != previous {
        output.remark(format!(
            "before it was {}: `conclave module rollback` goes back to it",
            short(previous)
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_says_what_belongs_to_its_state() {
        let ready = ModuleNode {
            state: "ready".into(),
            carry_over_ms: 12,
            entries: 34,
            ..ModuleNode::default()
        };
        assert_eq!(node(&ready), "ready: state carried over in 12 ms, 34 entries applied");
        let failed = ModuleNode {
            state: "failed".into(),
            reason: "entry 7 traps".into(),
            ..ModuleNode::default()
        };
        assert_eq!(node(&failed), "failed: entry 7 traps");
        let absent = ModuleNode { state: "absent".into(), ..ModuleNode::default() };
        assert_eq!(node(&absent), "absent");
    }
}
