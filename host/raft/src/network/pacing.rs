//! The timing of the append requests to one peer.
//!
//! Two rules reduce the number of messages. Neither changes which entries and which commit index a peer receives:
//!
//! * When many clients write, each request carries what this node writes to its own disk as one batch ([`BatchWindow`]).
//! * A request that brings only a newer commit index waits up to [`WITHHELD_MAX`]. The next entries usually follow
//!   within that time and carry the commit index too, so a single client's writes cost one message each, not two.
//!
//! The first request of a stream never waits: it may be a probe, whose answer openraft needs. A commit index that
//! the peer needs for a read ([`Peer::want_commit`](super::peer::Peer::want_commit)) does not wait either.

use std::{pin::pin, time::Duration};

use futures::{
    Stream, StreamExt,
    stream::{self, Fuse},
};
use openraft::raft::AppendEntriesRequest;
use tokio::{sync::watch, time::sleep};

use conclave_storage::{BatchWindow, raft_types::TypeConfig};

/// How long a request without entries waits for entries that follow. A put by a single client takes about half of it.
const WITHHELD_MAX: Duration = Duration::from_millis(1);

type Request = AppendEntriesRequest<TypeConfig>;

/// Paces `input`, the requests of one stream. `wanted` is the commit index that the peer needs for its reads.
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
    /// openraft's stream panics if it is polled after its end, which is observed while a request is withheld.
    input: Fuse<S>,
    pace: BatchWindow,
    wanted: watch::Receiver<u64>,
    /// The commit index of the last request; absent before the first.
    sent_commit: Option<u64>,
}

impl<S: Stream<Item = Request> + Unpin> Paced<S> {
    /// Takes the next request, which holds all that there is to send by then.
    async fn next(&mut self) -> Option<Request> {
        self.pace.step().await;
        let mut request = self.input.next().await?;
        if self.may_wait(&request) {
            let mut over = pin!(sleep(WITHHELD_MAX));
            while self.may_wait(&request) {
                tokio::select! {
                    biased;
                    // A request that follows has everything that the withheld one has.
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
