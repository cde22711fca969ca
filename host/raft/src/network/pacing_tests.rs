#![allow(clippy::unwrap_used, reason = "tests")]

use futures::{FutureExt, channel::mpsc};
use openraft::EntryPayload;

use super::*;
use conclave_storage::raft_types::{Entry, LogId, Vote};

/// The input of a stream that has sent its first request, with commit index 5.
struct Begun<S> {
    input: mpsc::UnboundedSender<Request>,
    wanted: watch::Sender<u64>,
    paced: std::pin::Pin<Box<S>>,
}

fn request(last: Option<u64>, commit: u64) -> Request {
    let log_id = |index| LogId::new_term_index(1, index);
    let entry = |index| Entry { log_id: log_id(index), payload: EntryPayload::Blank };
    Request {
        vote: Vote::new_committed(1, 1),
        prev_log_id: Some(log_id(commit)),
        entries: last.map(entry).into_iter().collect(),
        leader_commit: Some(log_id(commit)),
    }
}

fn begin() -> Begun<impl Stream<Item = Request>> {
    let (input, requests) = mpsc::unbounded();
    // Panics if it is polled after its end, as openraft's stream does.
    let requests = Box::pin(stream::unfold(requests, |mut requests| async {
        Some((requests.next().await?, requests))
    }));
    let (wanted, needed) = watch::channel(0);
    let (batches, _) = watch::channel(false);
    let mut paced = Box::pin(paced(requests, BatchWindow::new(batches.subscribe()), needed));
    input.unbounded_send(request(None, 5)).unwrap();
    let first = paced.next().now_or_never().flatten();
    assert_eq!(commit_index(&first.unwrap()), 5, "a probe does not wait");
    Begun { input, wanted, paced }
}

#[tokio::test]
async fn a_commit_index_travels_with_the_entries_that_follow() {
    let Begun { input, wanted: _wanted, mut paced } = begin();
    input.unbounded_send(request(None, 6)).unwrap();
    assert!(paced.next().now_or_never().is_none(), "withheld");
    input.unbounded_send(request(None, 7)).unwrap();
    input.unbounded_send(request(Some(8), 7)).unwrap();
    let sent = paced.next().now_or_never().flatten().unwrap();
    assert_eq!((sent.entries.len(), commit_index(&sent)), (1, 7));
    input.unbounded_send(request(Some(9), 7)).unwrap();
    assert!(paced.next().now_or_never().flatten().is_some(), "entries do not wait");
}

#[tokio::test]
async fn a_commit_index_without_entries_is_sent_after_the_limit_and_at_the_end() {
    let Begun { input, wanted: _wanted, mut paced } = begin();
    let begun = std::time::Instant::now();
    input.unbounded_send(request(None, 6)).unwrap();
    assert_eq!(commit_index(&paced.next().await.unwrap()), 6);
    assert!(begun.elapsed() >= WITHHELD_MAX);
    input.unbounded_send(request(None, 7)).unwrap();
    drop(input);
    assert_eq!(commit_index(&paced.next().now_or_never().flatten().unwrap()), 7);
    assert!(paced.next().await.is_none());
}

#[tokio::test]
async fn a_commit_index_that_the_peer_needs_does_not_wait() {
    let Begun { input, wanted, mut paced } = begin();
    // Wanted before the commit index is in the stream, and after it.
    wanted.send_replace(6);
    input.unbounded_send(request(None, 6)).unwrap();
    assert_eq!(commit_index(&paced.next().now_or_never().flatten().unwrap()), 6);
    input.unbounded_send(request(None, 7)).unwrap();
    let mut next = paced.next();
    assert!((&mut next).now_or_never().is_none(), "withheld");
    wanted.send_replace(7);
    assert_eq!(commit_index(&next.now_or_never().flatten().unwrap()), 7);
}
