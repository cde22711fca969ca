//! Waiting until a cluster serves.

use std::time::{Duration, Instant};

use conclave_client::Client;

use super::plan::{Node, Plan};
use crate::{Failed, Result};

/// Every node compiles the machine that the cluster began with and the one that it has come to, all nodes at once: in
/// Python 20 MB each, which takes two busy processors minutes. A node that ends is not waited for.
const START_WAIT: Duration = Duration::from_secs(900);
const ASK_EVERY: Duration = Duration::from_millis(100);
const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// Waits until every node says that it serves (which it does only when it can answer linearizable
/// reads) and all agree on who leads. Answers with the leader's id.
pub(super) async fn wait(plan: &Plan) -> Result<u64> {
    let ends = Instant::now() + START_WAIT;
    let mut leader = 0;
    for node in &plan.nodes {
        leader = wait_for(node, ends).await?;
    }
    Ok(leader)
}

async fn wait_for(node: &Node, ends: Instant) -> Result<u64> {
    let client = of(node)?;
    loop {
        let why = match state(&client).await {
            Ok(leader) => return Ok(leader),
            Err(why) => why,
        };
        if Instant::now() >= ends {
            return Err(Failed::local(format!(
                "node {} does not serve after {} s ({why}); see {}",
                node.id,
                START_WAIT.as_secs(),
                node.log.display()
            )));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// The leader, if the node serves and knows one; otherwise the reason why not.
pub(super) async fn state(client: &Client) -> std::result::Result<u64, String> {
    match client.is_serving().await {
        Ok(true) => {}
        Ok(false) => return Err("it says NOT_SERVING".to_owned()),
        Err(error) => return Err(error.to_string()),
    }
    let status = client.status().await.map_err(|error| error.to_string())?;
    match status.leader {
        0 => Err("it knows no leader".to_owned()),
        leader => Ok(leader),
    }
}

/// A client that asks this node and no other.
pub(super) fn of(node: &Node) -> Result<Client> {
    Client::builder()
        .endpoints([&node.client])
        .deadline(ANSWER_WAIT)
        .follow_leader(false)
        .build()
        .map_err(|error| Failed::local(error.to_string()))
}
