//! The state hash check: at one index every voter hashes its snapshot bytes.
//!
//! The index is that of an entry of a separate kind. A node that applies the entry captures its
//! standby's state at that index, and hashes it while further entries are applied. So all nodes
//! hash the state of the same index, whatever they apply meanwhile.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use tokio::time::{Instant, timeout_at};

use super::state_hashes::{StateHash, StateHashes};
use crate::{network::peer::ConnectionClass, node::Node, propose::Proposer};
use conclave_proto::{
    convert::digest_from_wire,
    raft::{VerifyStateRequest, VerifyStateResponse},
};
use conclave_storage::raft_types::Member;
use conclave_types::{
    CommandKind, NodeId,
    error::Error,
    status::{Verification, Verified},
};

/// The margin before the deadline of a check, so that the caller gets the responses that have arrived.
const MARGIN: Duration = Duration::from_millis(300);

/// Compares the hashes of all voters' states, on request.
pub(crate) struct StateHashChecks {
    node: Arc<Node>,
    hashes: Arc<StateHashes>,
    proposer: Arc<Proposer>,
}

impl StateHashChecks {
    pub(crate) fn new(node: Arc<Node>, hashes: Arc<StateHashes>, proposer: Arc<Proposer>) -> Self {
        Self { node, hashes, proposer }
    }

    /// Makes every voter hash its state after one entry, which this node proposes as the leader.
    pub(crate) async fn run(&self, deadline: Instant) -> Result<Verification, Error> {
        self.node.check_leader()?;
        let index = self.proposer.propose(CommandKind::Verify, deadline).await?.index;
        let answer_by = deadline.checked_sub(MARGIN).unwrap_or(deadline);
        let voters = self.node.voters();
        let requests = voters.iter().map(|(node_id, member)| async move {
            let answer = async {
                match *node_id == self.node.id() {
                    true => self.here(index).await,
                    false => self.there(*node_id, member, index).await,
                }
            };
            let answer = timeout_at(answer_by, answer).await;
            (*node_id, answer.unwrap_or_else(|_| Err("it did not respond in time".to_owned())))
        });
        Ok(Verification { index, nodes: join_all(requests).await })
    }

    /// Returns this node's result for the entry at `index`, once it is available.
    pub(crate) async fn here(&self, index: u64) -> StateHash {
        let (mut hashes, mut health) = (self.hashes.watch(), self.node.health.subscribe());
        loop {
            let found = hashes.borrow_and_update().get(&index).cloned();
            if let Some(found) = found {
                return found;
            }
            health.mark_unchanged();
            if let Some(why) = self.node.fatal_error() {
                return Err(why);
            }
            tokio::select! {
                _ = hashes.changed() => {}
                // The health follows a fatal error.
                _ = health.changed() => {}
            }
        }
    }

    async fn there(
        &self,
        node_id: NodeId,
        member: &Member,
        index: u64,
    ) -> Result<Verified, String> {
        let peer = self.node.peers.peer(node_id, member);
        let mut client =
            peer.client(ConnectionClass::Snapshot).await.map_err(|error| error.to_string())?;
        let answer = client.verify_state(VerifyStateRequest { index }).await;
        let answer =
            answer.map_err(|status| peer.failed(ConnectionClass::Snapshot, status).to_string())?;
        from_wire(answer.into_inner())
    }
}

/// Converts a result to its wire form.
pub(crate) fn to_wire(found: Result<Verified, String>) -> VerifyStateResponse {
    match found {
        Ok(Verified { digest, state, bytes }) => VerifyStateResponse {
            digest: digest.0.to_vec().into(),
            state: state.to_vec().into(),
            bytes,
            reason: String::new(),
        },
        Err(reason) => VerifyStateResponse { reason, ..VerifyStateResponse::default() },
    }
}

fn from_wire(answer: VerifyStateResponse) -> Result<Verified, String> {
    if !answer.reason.is_empty() {
        return Err(answer.reason);
    }
    let digest = digest_from_wire(&answer.digest).map_err(|error| error.to_string())?;
    let state = answer.state.as_ref().try_into();
    match (digest, state) {
        (Some(digest), Ok(state)) => Ok(Verified { digest, state, bytes: answer.bytes }),
        _ => Err("the response does not contain two hashes".to_owned()),
    }
}
