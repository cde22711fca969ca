//! The digests of this node and of the other voters, at one index.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use openraft::async_runtime::WatchReceiver;
use tokio::time::timeout;

use super::lineage::Testimony;
use crate::{network::peer::ConnectionClass, node::Node};
use conclave_proto::{
    convert::digest_from_wire,
    raft::{DigestRequest, DigestResponse},
};
use conclave_storage::raft_types::Member;
use conclave_types::{DIGEST_VERSION, NodeId};

/// The time after which a voter that has not responded does not count.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// The time that a voter waits until it has applied the requested index.
const APPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// A node's response to the request for its digest at an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Digest(Testimony),
    /// The node has no comparable digest, because its state comes from a snapshot of another version.
    Without,
    /// The node has not applied the index, no longer knows the digest, has another
    /// version, or did not respond.
    Nothing,
}

/// The voters' responses.
#[derive(Default)]
pub(super) struct Answers {
    pub(super) answers: BTreeMap<NodeId, Testimony>,
    /// Set if a voter has no comparable digest.
    pub(super) without: bool,
}

/// Requests digests from the voters.
pub(crate) struct Digests {
    node: Arc<Node>,
}

impl Digests {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    /// Returns the sets of voters: one, or two while the membership changes.
    pub(crate) fn voter_sets(&self) -> Vec<BTreeSet<NodeId>> {
        let metrics = self.node.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_joint_config().clone()
    }

    /// Collects the digests at an index from the voters that know theirs.
    pub(super) async fn of(&self, voters: &[(NodeId, Member)], index: u64) -> Answers {
        let requests = voters.iter().map(|(node_id, member)| async move {
            let answer = async {
                match *node_id == self.node.id() {
                    true => self.here(index).await,
                    false => self.there(*node_id, member, index).await,
                }
            };
            (*node_id, timeout(ASK_TIMEOUT, answer).await.unwrap_or(Heard::Nothing))
        });
        let mut digests = Answers::default();
        for (node_id, heard) in join_all(requests).await {
            match heard {
                Heard::Digest(testimony) => _ = digests.answers.insert(node_id, testimony),
                Heard::Without => digests.without = true,
                Heard::Nothing => {}
            }
        }
        digests
    }

    async fn there(&self, node_id: NodeId, member: &Member, index: u64) -> Heard {
        let peer = self.node.peers.peer(node_id, member);
        let Ok(mut client) = peer.client(ConnectionClass::Control).await else {
            return Heard::Nothing;
        };
        let answer = client.digest(DigestRequest { index }).await;
        let answer = match answer.map_err(|status| peer.failed(ConnectionClass::Control, status)) {
            Ok(answer) => answer.into_inner(),
            Err(error) => {
                tracing::debug!(%error, "no digest");
                return Heard::Nothing;
            }
        };
        heard_from_wire(node_id, &answer)
    }

    /// Returns this node's digest at an index, once this node has applied it.
    pub(crate) async fn here(&self, index: u64) -> Heard {
        if !matches!(timeout(APPLY_TIMEOUT, self.node.reaches(index)).await, Ok(Ok(()))) {
            return Heard::Nothing;
        }
        if self.node.fatal_error().is_some() {
            return Heard::Nothing;
        }
        // The origin is read first. If another state is restored in between, the digest counts for
        // the older state's origin. That errs only towards too few votes, if both states are
        // copies, and the digest of the newer state is not known before its index.
        let origin = self.node.divergence.origin();
        let keeps = self.node.worker.keeps_digest();
        match self.node.worker.digest_at(index).await {
            Ok(Some(digest)) => Heard::Digest(Testimony { digest, origin }),
            Ok(None) if !keeps => Heard::Without,
            _ => Heard::Nothing,
        }
    }
}

/// Converts a digest to its wire form.
pub(crate) fn heard_to_wire(heard: Heard) -> DigestResponse {
    let answer = DigestResponse { version: DIGEST_VERSION, ..DigestResponse::default() };
    match heard {
        Heard::Digest(Testimony { digest, origin }) => {
            DigestResponse { digest: digest.0.to_vec().into(), origin, ..answer }
        }
        Heard::Without => DigestResponse { without: true, ..answer },
        Heard::Nothing => answer,
    }
}

/// Converts a digest from its wire form. A digest of another version cannot be compared.
fn heard_from_wire(node_id: NodeId, answer: &DigestResponse) -> Heard {
    if answer.version != DIGEST_VERSION {
        return Heard::Nothing;
    }
    match digest_from_wire(&answer.digest) {
        Ok(Some(digest)) => {
            let origin = if answer.origin == 0 { node_id } else { answer.origin };
            Heard::Digest(Testimony { digest, origin })
        }
        Ok(None) if answer.without => Heard::Without,
        _ => Heard::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use conclave_types::Digest;

    use super::*;

    #[test]
    fn a_digest_of_another_version_is_no_answer() {
        let testimony = Testimony { digest: Digest([3; 32]), origin: 2 };
        for heard in [Heard::Digest(testimony), Heard::Without, Heard::Nothing] {
            assert_eq!(heard_from_wire(1, &heard_to_wire(heard)), heard);
        }
        let other = DigestResponse { version: 1, ..heard_to_wire(Heard::Digest(testimony)) };
        assert_eq!(heard_from_wire(1, &other), Heard::Nothing);
        let anonymous = DigestResponse { origin: 0, ..heard_to_wire(Heard::Digest(testimony)) };
        let own = Testimony { origin: 1, ..testimony };
        assert_eq!(heard_from_wire(1, &anonymous), Heard::Digest(own));
    }
}
