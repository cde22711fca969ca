//! Upgrades the cluster to the component in a file: the steps of `conclave component` in sequence.

use std::{path::Path, time::Instant};

use bytes::Bytes;
use conclave_client::{
    Client, Error,
    proto::cluster::{Component, DiffComponentResponse, RehearseComponentResponse},
};
use sha2::{Digest, Sha256};

use crate::{component::show, output::Output};
use conclave_types::error::chain;

/// Upgrades the cluster. Returns `false` if the component is already active.
///
/// # Errors
/// The reason why the previous component remains active.
pub(super) async fn upgrade(
    client: &Client,
    file: &Path,
    output: &mut Output,
) -> Result<bool, String> {
    let component = tokio::fs::read(file).await;
    let component = component.map_err(|cause| format!("{}: {}", file.display(), chain(&cause)))?;
    let id: [u8; 32] = Sha256::digest(&component).into();
    let name = hex::encode(id);
    let began = Instant::now();
    let components = client.components().await.map_err(said)?;
    if components.iter().any(|component| component.active && component.id == name) {
        return Ok(false);
    }
    output.remark(format!(
        "sending a component of {} kB to the nodes, which compile and rehearse it",
        component.len().div_ceil(1000)
    ));
    let component =
        client.push_component(id, Bytes::from(component), |_| {}).await.map_err(said)?;
    let difference = client.diff_component(&name).await.map_err(said)?;
    check_state(&component, &difference)?;
    check_rehearsed(&client.rehearse_component(&name).await.map_err(said)?)?;
    let activated = client.activate_component(&name, true).await.map_err(said)?;
    for change in difference.changes.iter().filter(|change| change.breaking) {
        output.remark(format!("breaking: {} {}", change.subject, change.text));
    }
    output.line(format!(
        "upgraded to {} {} (sha256 {}…) at log index {} in {} ms",
        component.name,
        component.version,
        show::short(&name),
        activated.index,
        began.elapsed().as_millis()
    ));
    Ok(true)
}

fn said(error: Error) -> String {
    chain(&error)
}

fn check_state(component: &Component, difference: &DiffComponentResponse) -> Result<(), String> {
    if difference.restores {
        return Ok(());
    }
    Err(format!(
        "{} {} does not restore the cluster's state, which has version {}: add this version to the ones that it \
         restores, or start without the data with --reset",
        component.name, component.version, difference.from_state_version
    ))
}

fn check_rehearsed(rehearsed: &RehearseComponentResponse) -> Result<(), String> {
    if rehearsed.ready {
        return Ok(());
    }
    let nodes = rehearsed.component.iter().flat_map(|component| &component.nodes);
    let unready = nodes.filter(|node| node.state != "ready");
    let unready: Vec<_> =
        unready.map(|node| format!("node {} is {}", node.node_id, show::node(node))).collect();
    Err(unready.join("; "))
}

#[cfg(test)]
mod tests {
    use conclave_client::proto::cluster::ComponentNode;

    use super::*;

    #[test]
    fn who_is_not_ready_is_named_with_the_reason() {
        let node = |node_id, state: &str, reason: &str| ComponentNode {
            node_id,
            state: state.to_owned(),
            reason: reason.to_owned(),
            ..ComponentNode::default()
        };
        let nodes = vec![node(1, "ready", ""), node(2, "failed", "entry 7 traps")];
        let component = Some(Component { nodes, ..Component::default() });
        let rehearsed = RehearseComponentResponse { ready: false, component };
        assert_eq!(check_rehearsed(&rehearsed).unwrap_err(), "node 2 is failed: entry 7 traps");
    }

    #[test]
    fn a_state_that_is_not_restored_leads_to_reset() {
        let difference = DiffComponentResponse { from_state_version: 3, ..Default::default() };
        let why = check_state(&Component::default(), &difference).unwrap_err();
        assert!(why.contains("version 3") && why.contains("--reset"), "{why}");
    }
}
