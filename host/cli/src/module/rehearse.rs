//! `conclave module rehearse`: try a module on every node, and wait.

use clap::Args;
use serde_json::json;

use super::show;
use crate::{Failed, Result, output::Output, remote::Remote};

/// Try a module on every node's real state, and wait for all
///
/// Each voter restores its present state into the module, as the activation would, and then its newest snapshot,
/// and applies the entries of the log since. Nothing that is served is touched. Every module is rehearsed by
/// itself once it is pushed; this does it again and tells how it went. Fails if a node is not ready.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave module rehearse 3f8a02
  conclave module rehearse 3f8a02 && conclave module activate 3f8a02")]
pub(super) struct Rehearse {
    /// The module's id, or the beginning of it
    #[arg(value_name = "MODULE")]
    module: String,
}

impl Rehearse {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let answer = remote.client()?.rehearse_module(&self.module).await;
        let answer = answer.map_err(|error| remote.failed(&error))?;
        let module = answer.module.unwrap_or_default();
        if remote.json {
            let ready = json!({"ready": answer.ready, "module": show::as_json(&module)});
            output.value(&ready);
        } else {
            for node in &module.nodes {
                output.line(format!("node {}: {}", node.node_id, show::node(node)));
            }
        }
        let short = show::short(&module.id);
        if !answer.ready {
            return Err(Failed::local(format!(
                "not every node is ready for module {short}: mend what they say, and rehearse again"
            )));
        }
        if !remote.json {
            output.remark(format!("every node is ready: `conclave module activate {short}`"));
        }
        Ok(())
    }
}
