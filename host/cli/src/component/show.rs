//! How components and nodes are shown, to people and to scripts.

use conclave_client::proto::cluster::{ActivateComponentResponse, Component, ComponentNode};
use serde_json::{Value, json};

use crate::output::Output;

/// As much of an id as people need.
pub(crate) fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// `counter 2.0 (3f8a02…)`
pub(super) fn name(component: &Component) -> String {
    format!("{} {} ({})", component.name, component.version, short(&component.id))
}

/// A node's state, with what belongs to it.
pub(crate) fn node(node: &ComponentNode) -> String {
    match node.state.as_str() {
        "ready" => format!(
            "ready: state carried over in {} ms, {} entries applied",
            node.migration_ms, node.entries
        ),
        state if node.reason.is_empty() => state.to_owned(),
        state => format!("{state}: {}", node.reason),
    }
}

/// What scripts read of a component.
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

/// Says what is active now.
pub(super) fn activated(response: &ActivateComponentResponse, json: bool, output: &mut Output) {
    let ActivateComponentResponse { component, previous, index } = response;
    if json {
        output.value(&json!({"component": component, "previous": previous, "index": index}));
        return;
    }
    output.line(format!("component {} is active since index {index}", short(component)));
    if component != previous {
        output.remark(format!(
            "before it was {}: `conclave component rollback` goes back to it",
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
        assert_eq!(node(&ready), "ready: state carried over in 12 ms, 34 entries applied");
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
