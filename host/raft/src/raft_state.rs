//! Queries of openraft's state, and waits for its changes.

use std::time::Duration;

use openraft::{RaftState, async_runtime::WatchReceiver, error::Fatal};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::state_machine::Raft;
use conclave_storage::raft_types::TypeConfig;
use conclave_types::NodeId;

/// Runs `look` on the state of openraft's core. openraft's own `with_raft_state` logs an error
/// if the caller is cancelled; this function does not.
pub(super) async fn raft_state<T: Send + 'static>(
    raft: &Raft,
    look: impl FnOnce(&RaftState<TypeConfig>) -> T + Send + 'static,
) -> Result<T, Fatal<TypeConfig>> {
    let (answer, answered) = oneshot::channel();
    let ask = move |state: &RaftState<TypeConfig>| {
        // The caller was cancelled.
        let _ = answer.send(look(state));
    };
    raft.external_request(ask).await?;
    match answered.await {
        Ok(answer) => Ok(answer),
        // The core ended before it ran the request. The next request returns the reason.
        Err(_) => match raft.external_request(|_| ()).await {
            Err(fatal) => Err(fatal),
            Ok(()) => Err(Fatal::Stopped),
        },
    }
}

/// Waits a short time for news of another leader.
pub(super) async fn leader_changed(raft: &Raft) {
    const MOMENT: Duration = Duration::from_millis(20);
    let mut metrics = raft.server_metrics();
    let _ = timeout(MOMENT, metrics.changed()).await;
    sleep(Duration::from_millis(1)).await;
}

/// Returns once another node or no node leads, as far as this node knows.
pub(super) async fn leader_is_not(raft: &Raft, leader: NodeId) {
    let mut metrics = raft.server_metrics();
    while metrics.borrow_watched().current_leader == Some(leader) {
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

/// Returns the new leader once a node other than `leader` is known to lead.
pub(super) async fn superseded(raft: &Raft, leader: Option<NodeId>) -> NodeId {
    let mut metrics = raft.server_metrics();
    loop {
        let known = metrics.borrow_watched().current_leader;
        if let Some(known) = known.filter(|known| Some(*known) != leader) {
            return known;
        }
        if metrics.changed().await.is_err() {
            // Raft has stopped. The caller's deadline ends the wait.
            std::future::pending::<()>().await;
        }
    }
}
