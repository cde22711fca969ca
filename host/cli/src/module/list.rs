//! `conclave module list`: which modules there are, and how far the nodes are with them.

use clap::Args;
use conclave_client::proto::cluster::Module;
use serde_json::json;

use super::show;
use crate::{
    Result,
    output::{Output, table},
    remote::Remote,
};

/// Show the cluster's modules and which nodes are ready for them
///
/// The active one first, then the newest. A node is ready once it has compiled a module and rehearsed it on its
/// own state. It rehearses each again whenever another has become active.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave module list
  conclave module list --json | jq -r '.modules[] | select(.active).module'

With --json: {\"modules\": [{\"module\", \"name\", \"version\", \"state_version\", \"bytes\", \"index\", \"activated_index\",
\"active\", \"previous\", \"nodes\": [{\"id\", \"state\", \"reason\" (null if none), \"carry_over_ms\", \"entries\"}]}]}")]
pub(super) struct List {}

impl List {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let modules = remote.client()?.modules().await.map_err(|error| remote.failed(&error))?;
        if remote.json {
            let modules: Vec<_> = modules.iter().map(show::as_json).collect();
            output.value(&json!({ "modules": modules }));
            return Ok(());
        }
        let head = ["MODULE", "NAME", "VERSION", "STATE", "BYTES", "INDEX", "", "NODES"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(modules.iter().map(row));
        for line in table(&rows) {
            output.line(line);
        }
        for module in &modules {
            for node in module.nodes.iter().filter(|node| !node.reason.is_empty()) {
                let (id, short) = (node.node_id, show::short(&module.id));
                output.remark(format!("{short} on node {id}: {}", show::node(node)));
            }
        }
        Ok(())
    }
}

fn row(module: &Module) -> Vec<String> {
    let role = match (module.active, module.previous) {
        (true, _) => "active",
        (_, true) => "before",
        _ => "",
    };
    let nodes: Vec<_> =
        module.nodes.iter().map(|node| format!("{} {}", node.node_id, node.state)).collect();
    vec![
        show::short(&module.id).to_owned(),
        module.name.clone(),
        module.version.clone(),
        module.state_version.to_string(),
        module.bytes.to_string(),
        module.index.to_string(),
        role.to_owned(),
        if module.active { String::new() } else { nodes.join(", ") },
    ]
}
