//! `conclave cluster verify`: compares the states of all nodes.

use clap::Args;
use conclave_client::proto::cluster::{VerifiedNode, VerifyResponse};
use serde_json::{Value, json};

use crate::{
    Failed, Result,
    output::{Output, table},
    remote::Remote,
};

/// Compare the states of all nodes
///
/// Appends an entry to the log. After it, every voter hashes the snapshot of its state machine byte
/// by byte while the cluster continues to serve. The hashes must be equal.
///
/// DIGEST is the running hash over all outcomes up to the entry, which the nodes also compare by
/// themselves every few seconds. STATE is the hash of the state. It also reveals a difference that
/// has not affected any outcome yet. Exits with 1 if any hash differs, or if a voter does not
/// respond in time.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave cluster verify
  conclave cluster verify --timeout 5m
  conclave cluster verify --json | jq .equal

With --json: {\"index\", \"equal\", \"nodes\": [{\"id\", \"digest\", \"state\", \"bytes\" (null if the node has
none), \"reason\" (null if it has)}]}")]
pub(super) struct Verify {}

impl Verify {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let found = remote.client()?.verify().await.map_err(|error| remote.failed(&error))?;
        if remote.json {
            output.value(&as_json(&found));
        } else {
            let head = ["NODE", "INDEX", "DIGEST", "STATE", "BYTES"];
            let mut rows = vec![head.map(str::to_owned).to_vec()];
            rows.extend(found.nodes.iter().map(|node| row(node, found.index)));
            for line in table(&rows) {
                output.line(line);
            }
            for node in found.nodes.iter().filter(|node| !node.reason.is_empty()) {
                output.remark(format!("node {}: {}", node.node_id, node.reason));
            }
        }
        if found.equal { Ok(()) } else { Err(Failed::local(why(&found))) }
    }
}

/// Returns the problem and the next step.
fn why(found: &VerifyResponse) -> String {
    if found.nodes.iter().any(|node| !node.reason.is_empty()) {
        return "not every voter could be compared; the reasons are above, and `conclave status` shows the state \
                of the nodes"
            .to_owned();
    }
    format!(
        "the nodes have different states at index {}: a node that differs from the majority has a wrong state. If \
         its digest differs as well, it is repaired automatically; otherwise replace the node by a new one, and \
         check that the state machine is deterministic (`conclave check`)",
        found.index
    )
}

fn row(node: &VerifiedNode, index: u64) -> Vec<String> {
    let short = |hash: &str| hash.chars().take(16).collect::<String>();
    let mut row = vec![node.node_id.to_string()];
    match node.reason.is_empty() {
        true => row.extend([
            index.to_string(),
            short(&node.digest),
            short(&node.state),
            node.bytes.to_string(),
        ]),
        false => row.extend(["-"; 4].map(str::to_owned)),
    }
    row
}

fn as_json(found: &VerifyResponse) -> Value {
    let nodes = found.nodes.iter().map(|node| {
        let whole = node.reason.is_empty();
        json!({
            "id": node.node_id,
            "digest": whole.then_some(&node.digest),
            "state": whole.then_some(&node.state),
            "bytes": whole.then_some(node.bytes),
            "reason": (!whole).then_some(&node.reason),
        })
    });
    json!({ "index": found.index, "equal": found.equal, "nodes": nodes.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_an_answer_has_a_row_and_a_reason() {
        let node = VerifiedNode { node_id: 3, reason: "away".into(), ..VerifiedNode::default() };
        assert_eq!(row(&node, 7), ["3", "-", "-", "-", "-"]);
        let found = VerifyResponse { index: 7, equal: false, nodes: vec![node] };
        assert_eq!(as_json(&found)["nodes"][0]["digest"], Value::Null);
        assert!(why(&found).contains("reasons"));
    }
}
