//! `conclave component rehearse`: rehearses a component on every node and waits for the results.

use clap::Args;
use serde_json::json;

use super::show;
use crate::{Failed, Result, output::Output, remote::Remote};

/// Rehearse a component on every node's real state, and wait for the results
///
/// A rehearsal is a dry run of an activation. Each voter restores its present state into the
/// component, as the activation would. Then it restores its newest snapshot and applies the log
/// entries since. The instances that serve are not touched. Every component is rehearsed
/// automatically once it is pushed; this verb repeats that and reports the result. Fails if a node
/// is not ready.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave component rehearse 3f8a02
  conclave component rehearse 3f8a02 && conclave component activate 3f8a02")]
pub(super) struct Rehearse {
    /// Component id or its beginning, at least six digits
    #[arg(value_name = "COMPONENT")]
    component: String,
}

impl Rehearse {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let answer = remote.client()?.rehearse_component(&self.component).await;
        let answer = answer.map_err(|error| remote.failed(&error))?;
        let component = answer.component.unwrap_or_default();
        if remote.json {
            let ready = json!({"ready": answer.ready, "component": show::as_json(&component)});
            output.value(&ready);
        } else {
            for node in &component.nodes {
                output.line(format!("node {}: {}", node.node_id, show::node(node)));
            }
        }
        let short = show::short(&component.id);
        if !answer.ready {
            return Err(Failed::local(format!(
                "not every node is ready for component {short}: fix the reported causes and run `conclave component rehearse` again"
            )));
        }
        if !remote.json {
            output.remark(format!(
                "every node is ready; next: `conclave component activate {short}`"
            ));
        }
        Ok(())
    }
}
