//! `conclave status`: overview of the cluster.

use clap::Args;
use conclave_client::proto::cluster::{Node, PeerLink, StatusResponse};
use serde_json::{Value, json};

use super::{
    Result,
    output::{Output, table},
    remote::Remote,
};

/// Show the state of the cluster: leader, progress of each node, problems
///
/// Any node answers, even without a leader, and fetches the state of every other node from that
/// node. APPLIED is the index of the last entry that a node has applied; it differs between nodes
/// for moments while the cluster is at work. FATAL ERROR is empty on a node that works.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave status
  conclave status --endpoints node1:7101
  conclave status --json | jq .leader

With --json: {\"cluster_id\", \"leader\" (null if none), \"term\", \"answered_by\", \"nodes\": [{\"id\", \"role\",
\"applied\", \"committed\", \"last_log\", \"snapshot\", \"purged\", \"component\", \"version\", \"client\", \"peer\",
\"engine\", \"fatal_error\" (null if none), \"divergences\", \"divergence\" (the last one that was repaired, null if none),
\"clock\" (null if unreachable): {\"offset_ms\" (the node's clock minus the majority's), \"log_time_ms\",
\"log_offset_ms\" (the log's time minus the majority's clock), \"alarm\" (null if none)},
\"links\": [{\"node\", \"connected\", \"round_trip_ms\", \"problem\" (null if none)}],
\"alarms\": [text (what an operator should look at, although the node works)]}]}")]
pub struct Arguments {
    #[command(flatten)]
    remote: Remote,
}

/// Runs the verb.
pub async fn run(arguments: Arguments, output: &mut Output) -> Result {
    let remote = &arguments.remote;
    output.set_json(remote.json);
    let status = remote.client()?.status().await.map_err(|error| remote.failed(&error))?;
    if remote.json {
        output.value(&as_json(&status));
        return Ok(());
    }
    let leader = match status.leader {
        0 => "no leader".to_owned(),
        id => format!("leader {id}"),
    };
    output.line(format!("cluster {}: {leader}, term {}", status.cluster_id, status.term));
    let head = ["ID", "ROLE", "APPLIED", "LOG", "SNAPSHOT", "COMPONENT", "CLIENT", "FATAL ERROR"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(status.nodes.iter().map(row));
    for line in table(&rows) {
        output.line(line);
    }
    let engines = status.nodes.iter().map(|node| &*node.engine).filter(|engine| !engine.is_empty());
    let engines: std::collections::BTreeSet<&str> = engines.collect();
    if engines.len() > 1 {
        output.remark(format!(
            "the nodes' engines differ ({}): calls that reach a limit may have different outcomes, so that nodes diverge",
            engines.into_iter().collect::<Vec<_>>().join(", ")
        ));
    }
    for node in &status.nodes {
        let alarm =
            node.clock.as_ref().map(|clock| &*clock.alarm).filter(|alarm| !alarm.is_empty());
        for alarm in alarm.into_iter().chain(node.alarms.iter().map(String::as_str)) {
            output.remark(format!("node {}: {alarm}", node.id));
        }
    }
    for node in status.nodes.iter().filter(|node| node.divergences > 0) {
        let (id, times, last) = (node.id, node.divergences, &node.divergence);
        let last = if last.is_empty() { "it is not repaired yet" } else { last };
        output.remark(format!(
            "node {id} has diverged {times} times since it started, the last time: {last}"
        ));
    }
    for node in &status.nodes {
        for link in node.links.iter().filter(|link| !link.problem.is_empty()) {
            let (id, peer, problem) = (node.id, link.node_id, &link.problem);
            output.remark(format!("node {id} to node {peer}: {problem}"));
        }
    }
    Ok(())
}

fn row(node: &Node) -> Vec<String> {
    let reached = node.role != "unreachable";
    let number = |number: u64| if reached { number.to_string() } else { "-".to_owned() };
    let component: String = match node.component.is_empty() {
        true => "-".to_owned(),
        false => node.component.chars().take(12).collect(),
    };
    vec![
        node.id.to_string(),
        node.role.clone(),
        number(node.applied),
        number(node.last_log),
        number(node.snapshot),
        component,
        node.client_address.clone(),
        node.fatal_error.clone(),
    ]
}

fn link_as_json(link: &PeerLink) -> Value {
    json!({
        "node": link.node_id,
        "connected": link.connected,
        "round_trip_ms": link.round_trip_us as f64 / 1000.0,
        "problem": (!link.problem.is_empty()).then_some(&link.problem),
    })
}

/// Formats the status as JSON.
pub fn as_json(status: &StatusResponse) -> Value {
    let nodes: Vec<_> = status.nodes.iter().map(node_as_json).collect();
    json!({
        "cluster_id": status.cluster_id,
        "leader": (status.leader != 0).then_some(status.leader),
        "term": status.term,
        "answered_by": status.answered_by,
        "nodes": nodes,
    })
}

fn node_as_json(node: &Node) -> Value {
    json!({
        "id": node.id,
        "role": node.role,
        "last_log": node.last_log,
        "committed": node.committed,
        "applied": node.applied,
        "snapshot": node.snapshot,
        "purged": node.purged,
        "component": node.component,
        "version": node.version,
        "client": node.client_address,
        "peer": node.peer_address,
        "engine": node.engine,
        "divergences": node.divergences,
        "divergence": (!node.divergence.is_empty()).then_some(&node.divergence),
        "fatal_error": (!node.fatal_error.is_empty()).then_some(&node.fatal_error),
        "clock": node.clock.as_ref().map(|clock| json!({
            "offset_ms": clock.offset_ms,
            "log_time_ms": clock.log_time_ms,
            "log_offset_ms": clock.log_offset_ms,
            "alarm": (!clock.alarm.is_empty()).then_some(&clock.alarm),
        })),
        "links": node.links.iter().map(link_as_json).collect::<Vec<_>>(),
        "alarms": node.alarms,
    })
}
