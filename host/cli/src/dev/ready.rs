//! Waits until a development cluster serves.

use std::time::{Duration, Instant};

use conclave_client::Client;

use super::plan::{Node, Plan};
use crate::{Failed, Result};
use conclave_types::error::chain;

/// Time for all nodes to compile the initial and the active component, all at once. In Python a
/// component has 20 MB, which takes minutes with two busy processors. A node that ends is not
/// waited for.
const START_WAIT: Duration = Duration::from_secs(900);
const ASK_EVERY: Duration = Duration::from_millis(100);
const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// Waits until every node reports that it serves, and returns the leader's id. A node reports it
/// only when it can serve linearizable reads.
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

/// Returns the leader if the node serves and knows one, or the reason why the node does not serve.
pub(super) async fn state(client: &Client) -> std::result::Result<u64, String> {
    match client.is_serving().await {
        Ok(true) => {}
        Ok(false) => return Err("its health status is NOT_SERVING".to_owned()),
        Err(error) => return Err(chain(&error)),
    }
    let status = client.status().await.map_err(|error| chain(&error))?;
    match status.leader {
        0 => Err("it knows no leader".to_owned()),
        leader => Ok(leader),
    }
}

/// Returns a client of this node alone.
pub(super) fn of(node: &Node) -> Result<Client> {
    Client::builder()
        .endpoints([&node.client])
        .deadline(ANSWER_WAIT)
        .follow_leader(false)
        .build()
        .map_err(|error| Failed::of(&error))
}
