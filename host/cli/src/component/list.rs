//! `conclave component list`: the cluster's components, and which nodes are ready for them.

use clap::Args;
use conclave_client::proto::cluster::Component;
use serde_json::json;

use super::show;
use crate::{
    Result,
    output::{Output, table},
    remote::Remote,
};

/// List the cluster's components and show which nodes are ready for them
///
/// The active component comes first, then the others from the newest to the oldest. A node is ready
/// once it has compiled a component and rehearsed it (a dry run of the activation on the node's own
/// state). It repeats each rehearsal whenever another component has become active.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave component list
  conclave component list --json | jq -r '.components[] | select(.active).component'

With --json: {\"components\": [{\"component\", \"name\", \"version\", \"state_version\", \"bytes\", \"index\", \"activated_index\",
\"active\", \"previous\", \"nodes\": [{\"id\", \"state\", \"reason\" (null if none), \"migration_ms\", \"entries\"}]}]}")]
pub(super) struct List {}

impl List {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let components =
            remote.client()?.components().await.map_err(|error| remote.failed(&error))?;
        if remote.json {
            let components: Vec<_> = components.iter().map(show::as_json).collect();
            output.value(&json!({ "components": components }));
            return Ok(());
        }
        let head = ["COMPONENT", "NAME", "VERSION", "STATE", "BYTES", "INDEX", "", "NODES"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(components.iter().map(row));
        for line in table(&rows) {
            output.line(line);
        }
        for component in &components {
            for node in component.nodes.iter().filter(|node| !node.reason.is_empty()) {
                let (id, short) = (node.node_id, show::short(&component.id));
                output.remark(format!("{short} on node {id}: {}", show::node(node)));
            }
        }
        Ok(())
    }
}

fn row(component: &Component) -> Vec<String> {
    let role = match (component.active, component.previous) {
        (true, _) => "active",
        (_, true) => "previous",
        _ => "",
    };
    let nodes: Vec<_> =
        component.nodes.iter().map(|node| format!("{} {}", node.node_id, node.state)).collect();
    vec![
        show::short(&component.id).to_owned(),
        component.name.clone(),
        component.version.clone(),
        component.state_version.to_string(),
        component.bytes.to_string(),
        component.index.to_string(),
        role.to_owned(),
        if component.active { String::new() } else { nodes.join(", ") },
    ]
}
