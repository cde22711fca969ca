//! Compares `conclave replay` of all stopped nodes: each log index must have the same outcome on all nodes.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    cluster::Cluster,
    history::{Kind, Operation},
    invariants::Violations,
};

/// Two nodes have different entries or outcomes at one index.
pub(super) const TWO_OUTCOMES: &str = "two nodes have different entries or outcomes at one index";
/// An acknowledged write is missing.
pub(super) const LOST: &str = "an acknowledged write is not in the log of a node";

/// The outcome of an entry that `conclave recover` marked as skipped.
const SKIPPED: &str = "trap fault";

/// Stops all nodes and compares their logs. Returns the number of compared entries.
pub(super) async fn compare(
    cluster: &Cluster,
    history: &[Operation],
    violations: &mut Violations,
) -> Result<u64> {
    for id in cluster.ids() {
        cluster.stop(id).await?;
    }
    let mut compared = 0;
    let mut known: BTreeMap<u64, (u64, Value)> = BTreeMap::new();
    for id in cluster.ids() {
        let (first, entries) = match listed(cluster, id) {
            Ok(listed) => listed,
            Err(error) => {
                violations.add(TWO_OUTCOMES, format!("node {id} cannot be replayed: {error:#}"));
                continue;
            }
        };
        let last = entries.last_key_value().map_or(0, |(index, _)| *index);
        for write in history.iter().filter(|operation| operation.kind == Kind::Write) {
            let Some(answer) = write.answer() else { continue };
            // Older entries are only in the snapshot. Newer ones may not be committed on this node.
            if answer.index <= first || answer.index > last {
                continue;
            }
            let entry = entries.get(&answer.index);
            let sound = entry.is_some_and(|entry| {
                let replied =
                    entry["outcome"].as_str().is_some_and(|text| text.starts_with("reply"));
                replied && entry["method"] == method_of(write)
            });
            if !sound {
                let entry = entry.map(Value::to_string).unwrap_or_else(|| "none".to_owned());
                violations.add(LOST, format!("node {id} has {entry} of {write}"));
            }
        }
        for (index, entry) in entries {
            compared += 1;
            match known.get(&index) {
                None => _ = known.insert(index, (id, entry)),
                Some((other, theirs)) if *theirs != entry => {
                    let text = format!("index {index}: node {other} {theirs}, node {id} {entry}");
                    violations.add(TWO_OUTCOMES, text);
                }
                Some(_) => {}
            }
        }
    }
    Ok(compared)
}

fn method_of(write: &Operation) -> &'static str {
    crate::workload::method_of(&write.request)
}

/// The index at which a node's replay begins, and the entries after it with their outcomes. For a
/// node that was made to diverge, it is the index of the snapshot that repaired the node.
fn listed(cluster: &Cluster, id: u64) -> Result<(u64, BTreeMap<u64, Value>)> {
    let (first, entries) = listed_from(cluster, id, 0)?;
    let skipped = entries.iter().filter(|(_, entry)| entry["outcome"] == SKIPPED);
    let Some(skipped) = skipped.map(|(index, _)| *index).max() else {
        return Ok((first, entries));
    };
    let snapshot = replayed(cluster, id, &[])?["began_at"].as_u64().unwrap_or(0);
    ensure!(snapshot >= skipped, "entry {skipped} is skipped, and the snapshot is of {snapshot}");
    listed_from(cluster, id, snapshot)
}

fn listed_from(cluster: &Cluster, id: u64, after: u64) -> Result<(u64, BTreeMap<u64, Value>)> {
    let range = if after == 0 { "..".to_owned() } else { format!("{}..", after + 1) };
    let listed = replayed(cluster, id, &["--entries", &range])?;
    let first = listed["began_at"].as_u64().unwrap_or(0).max(after);
    let entries = listed["listed"].as_array().context("no list of entries")?;
    let entries = entries.iter().filter_map(|entry| {
        let index = entry["index"].as_u64().filter(|index| *index > first)?;
        Some((index, entry.clone()))
    });
    Ok((first, entries.collect()))
}

fn replayed(cluster: &Cluster, id: u64, flags: &[&str]) -> Result<Value> {
    let mut replay = Command::new(cluster.binary());
    replay.arg("replay").arg("--data-dir").arg(&cluster.node(id).data_dir);
    replay.arg("--master-key-file").arg(cluster.master_key());
    replay.arg("--work-dir").arg(cluster.dir.path());
    let output = replay.args(flags).arg("--json").output()?;
    let why = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", why.trim());
    Ok(serde_json::from_slice(&output.stdout)?)
}
