//! Compares the states themselves: at one index every voter hashes its snapshot bytes.
//!
//! The index is that of an entry of its own kind. Whoever applies it has its reader's state captured right
//! there, and hashes it while entries go on; so the states are of the same index on all nodes, whatever comes
//! meanwhile.

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

/// What was found is kept for so many verifications: only the last few are asked for.
const KEPT_MAX: usize = 8;
/// Looked at again, should a notification be missed.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Before the deadline of a verification, so that whoever asks hears of those that have answered.
const MARGIN: Duration = Duration::from_millis(300);

type Found = Result<Verified, String>;

/// What this node found, by index.
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
    /// Hashes the state after `index`, the last entry that was handed to the machine, when it is polled.
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
                let digest = digest.ok_or("the digest is not known any more")?;
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
    /// Has every voter hash its state after one entry, which this node proposes as the leader.
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
            (*node_id, answer.unwrap_or_else(|_| Err("it did not answer in time".to_owned())))
        });
        Ok(Verification { index, nodes: join_all(asked).await })
    }

    /// What this node finds after the entry at `index`, once it has.
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

/// To the wire.
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
        _ => Err("it answered with something else than two hashes".to_owned()),
    }
}
