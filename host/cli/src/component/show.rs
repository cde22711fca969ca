//! Formats of components and nodes, for people and for scripts.

use conclave_client::proto::cluster::{ActivateComponentResponse, Component, ComponentNode};
use serde_json::{Value, json};

use crate::output::Output;

/// Returns the beginning of an id, for people.
pub(crate) fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// Formats a component as `counter 2.0 (3f8a02…)`.
pub(super) fn name(component: &Component) -> String {
    format!("{} {} ({})", component.name, component.version, short(&component.id))
}

/// Formats a node's state with its measurements or its reason.
pub(crate) fn node(node: &ComponentNode) -> String {
    match node.state.as_str() {
        "ready" => format!(
            "ready: state migrated in {} ms, {} entries applied",
            node.migration_ms, node.entries
        ),
        state if node.reason.is_empty() => state.to_owned(),
        state => format!("{state}: {}", node.reason),
    }
}

/// Formats a component as JSON.
pub(super) fn as_json(component: &Component) -> Value {
    let nodes = component.nodes.iter().map(|node| {
        json!({
            "id": node.node_id,
            "state": node.state,
            "reason": (!node.reason.is_empty()).then_some(&node.reason),
            "migration_ms": node.migration_ms,
            "entries": node.entries,
        })
    });
    json!({
        "component": component.id,
        "name": component.name,
        "version": component.version,
        "state_version": component.state_version,
        "bytes": component.bytes,
        "index": component.index,
        "activated_index": component.activated_index,
        "active": component.active,
        "previous": component.previous,
        "nodes": nodes.collect::<Vec<_>>(),
    })
}

/// Prints the active component after an activation.
pub(super) fn activated(response: &ActivateComponentResponse, json: bool, output: &mut Output) {
    let ActivateComponentResponse { component, previous, index } = response;
    if json {
        output.value(&json!({"component": component, "previous": previous, "index": index}));
        return;
    }
    output.line(format!("component {} is active since index {index}", short(component)));
    if component != previous {
        output.remark(format!(
            "the previous component is {}: `conclave component rollback` activates it again",
            short(previous)
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_says_what_belongs_to_its_state() {
        let ready = ComponentNode {
            state: "ready".into(),
            migration_ms: 12,
            entries: 34,
            ..ComponentNode::default()
        };
        assert_eq!(node(&ready), "ready: state migrated in 12 ms, 34 entries applied");
        let failed = ComponentNode {
            state: "failed".into(),
            reason: "entry 7 traps".into(),
            ..ComponentNode::default()
        };
        assert_eq!(node(&failed), "failed: entry 7 traps");
        let absent = ComponentNode { state: "absent".into(), ..ComponentNode::default() };
        assert_eq!(node(&absent), "absent");
    }
}
