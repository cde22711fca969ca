//! The state hash check: at one index every voter hashes its snapshot bytes.
//!
//! The index is that of an entry of a separate kind. A node that applies the entry captures its
//! standby's state at that index, and hashes it while further entries are applied. So all nodes
//! hash the state of the same index, whatever they apply meanwhile.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use crate::{Replica, network::peer::ConnectionClass};
use conclave_machine::Worker;
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

/// The number of results that are kept. Only the last few are requested.
const KEPT_MAX: usize = 8;
/// The interval at which the results are checked again, in case a notification is missed.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The margin before the deadline of a check, so that the caller gets the responses that have arrived.
const MARGIN: Duration = Duration::from_millis(300);

type Found = Result<Verified, String>;

/// This node's results, by index.
#[derive(Default)]
pub(crate) struct Verifications {
    found: Mutex<BTreeMap<u64, Found>>,
    added: Notify,
}

impl Verifications {
    fn add(&self, index: u64, found: Found) {
        let mut all = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(index, found);
        if all.len() > KEPT_MAX {
            all.pop_first();
        }
        drop(all);
        self.added.notify_waiters();
    }

    fn get(&self, index: u64) -> Option<Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).get(&index).cloned()
    }
}

impl super::Divergence {
    /// Hashes the state after `index`, the last entry that was fed to the worker. Runs when it is polled.
    pub(crate) fn hash_state(
        self: std::sync::Arc<Self>,
        worker: &Worker,
        index: u64,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (state, worker) = (worker.snapshot(index), worker.clone());
        async move {
            let found = async {
                let (state, digest) = tokio::join!(state, worker.digest_at(index));
                let mut state = state.map_err(|error| error.to_string())?;
                let digest = digest.map_err(|fatal_error| fatal_error.to_string())?;
                let digest = digest.ok_or("the digest is no longer known")?;
                let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
                while let Some(chunk) = state.next().await {
                    let chunk = chunk.map_err(|error| error.to_string())?;
                    bytes += chunk.len() as u64;
                    hasher.update(&chunk);
                }
                Ok(Verified { digest, state: *hasher.finalize().as_bytes(), bytes })
            };
            let found = found.await;
            self.verifications.add(index, found);
        }
    }
}

impl Replica {
    /// Makes every voter hash its state after one entry, which this node proposes as the leader.
    pub async fn verify(&self, deadline: Instant) -> Result<Verification, Error> {
        self.check_leader()?;
        let index = self.propose_kind(CommandKind::Verify, deadline).await?.index;
        let answer_by = deadline.checked_sub(MARGIN).unwrap_or(deadline);
        let voters = self.voters();
        let asked = voters.iter().map(|(node_id, member)| async move {
            let answer = async {
                match *node_id == self.0.node_id() {
                    true => self.verify_here(index).await,
                    false => self.verify_there(*node_id, member, index).await,
                }
            };
            let answer = timeout_at(answer_by, answer).await;
            (*node_id, answer.unwrap_or_else(|_| Err("it did not respond in time".to_owned())))
        });
        Ok(Verification { index, nodes: join_all(asked).await })
    }

    /// Returns this node's result for the entry at `index`, once it is available.
    pub(crate) async fn verify_here(&self, index: u64) -> Result<Verified, String> {
        loop {
            let added = self.0.divergence.verifications.added.notified();
            if let Some(found) = self.0.divergence.verifications.get(index) {
                return found;
            }
            if let Some(why) = self.0.fatal_error() {
                return Err(why);
            }
            let _ = tokio::time::timeout(POLL_INTERVAL, added).await;
        }
    }

    async fn verify_there(
        &self,
        node_id: NodeId,
        member: &Member,
        index: u64,
    ) -> Result<Verified, String> {
        let peer = self.0.peers.peer(node_id, member);
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
