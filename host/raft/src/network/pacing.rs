//! The timing of the append requests to one peer.
//!
//! Two rules reduce the number of messages. Neither changes which entries and which
//! commit index a peer receives:
//!
//! * When many clients write, each request carries one batch of this node's own disk
//!   writes ([`BatchWindow`]).
//! * A request that carries only a newer commit index waits for up to [`WITHHELD_MAX`]. The next
//!   entries usually follow within that time and carry the commit index too. So a write of a single
//!   client costs one message, not two.
//!
//! The first request of a stream never waits: it may be a probe, whose response openraft needs. A
//! commit index that the peer needs for a read
//! ([`Peer::want_commit`](super::peer::Peer::want_commit)) does not wait either.

use std::{pin::pin, time::Duration};

use futures::{
    Stream, StreamExt,
    stream::{self, Fuse},
};
use openraft::raft::AppendEntriesRequest;
use tokio::{sync::watch, time::sleep};

use conclave_storage::{BatchWindow, raft_types::TypeConfig};

/// The time for which a request without entries waits for entries. A single client's put
/// takes about half of it.
const WITHHELD_MAX: Duration = Duration::from_millis(1);

type Request = AppendEntriesRequest<TypeConfig>;

/// Paces `input`, the requests of one stream. `wanted` is the commit index that the
/// peer needs for its reads.
pub(super) fn paced<S>(
    input: S,
    pace: BatchWindow,
    wanted: watch::Receiver<u64>,
) -> impl Stream<Item = Request> + use<S>
where
    S: Stream<Item = Request> + Unpin,
{
    let paced = Paced { input: input.fuse(), pace, wanted, sent_commit: None };
    stream::unfold(paced, |mut paced| async { Some((paced.next().await?, paced)) })
}

struct Paced<S> {
    /// Fused, because openraft's stream panics if it is polled after its end, which `next` may do.
    input: Fuse<S>,
    pace: BatchWindow,
    wanted: watch::Receiver<u64>,
    /// The commit index of the last request; `None` before the first.
    sent_commit: Option<u64>,
}

impl<S: Stream<Item = Request> + Unpin> Paced<S> {
    /// Returns the next request, which contains everything that can be sent by then.
    async fn next(&mut self) -> Option<Request> {
        self.pace.step().await;
        let mut request = self.input.next().await?;
        if self.may_wait(&request) {
            let mut over = pin!(sleep(WITHHELD_MAX));
            while self.may_wait(&request) {
                tokio::select! {
                    biased;
                    // The next request contains everything that the withheld one contains.
                    next = self.input.next() => match next {
                        Some(next) => request = next,
                        None => break,
                    },
                    Ok(()) = self.wanted.changed() => {}
                    () = &mut over => break,
                }
            }
        }
        self.sent_commit = Some(commit_index(&request));
        Some(request)
    }

    fn may_wait(&mut self, request: &Request) -> bool {
        let Some(sent) = self.sent_commit else { return false };
        let wanted = *self.wanted.borrow_and_update();
        let is_wanted = sent < wanted && wanted <= commit_index(request);
        request.entries.is_empty() && !is_wanted
    }
}

fn commit_index(request: &Request) -> u64 {
    request.leader_commit.map_or(0, |log_id| log_id.index)
}

#[cfg(test)]
#[path = "pacing_tests.rs"]
mod tests;
