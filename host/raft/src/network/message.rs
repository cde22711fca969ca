//! Checks of the peers' messages, before openraft receives them.
//!
//! openraft assumes that its peers follow the protocol, and asserts it in places. This module
//! instead rejects every request and response that no member could have sent. Terms and indexes are
//! in range and in order, a leader or candidate sends its own vote, and nothing contradicts the
//! entries that this node knows to be committed.

use std::{collections::BTreeMap, ops::Range};

use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, VoteRequest, VoteResponse,
};
use tonic::Status;

use conclave_proto::{convert::Malformed, raft as wire};
use conclave_storage::{
    LogStore,
    convert::{entry_from_wire, log_id_from_wire, vote_from_wire},
    raft_types::{LogId, TypeConfig, Vote},
};
use conclave_types::NodeId;

/// The maximum size of the entries that are read from this node's log at once, to
/// compare them with a request.
const READ_BYTES_MAX: usize = 1 << 20;

/// The upper bound of indexes and terms. No log reaches it, and counting on from it never overflows.
const COUNT_MAX: u64 = u64::MAX / 2;

fn invalid(reason: impl Into<String>) -> Status {
    Status::invalid_argument(reason)
}

pub(super) fn malformed(error: Malformed) -> Status {
    invalid(error.to_string())
}

pub(super) fn required<T>(field: Option<T>, name: &str) -> Result<T, Status> {
    field.ok_or_else(|| invalid(format!("{name} is missing")))
}

fn vote(field: Option<wire::Vote>) -> Result<Vote, Status> {
    let vote = vote_from_wire(&required(field, "vote")?);
    if vote.leader_id.term > COUNT_MAX {
        return Err(invalid(format!("no cluster has a term of {}", vote.leader_id.term)));
    }
    Ok(vote)
}

/// Returns the vote of a leader, which must be the sender. openraft would lead if it
/// received a vote for this node.
pub(super) fn leader_vote(field: Option<wire::Vote>, from: NodeId) -> Result<Vote, Status> {
    let vote = vote(field)?;
    if !vote.committed {
        return Err(invalid("the sender's vote is not that of an elected leader"));
    }
    speaks_for_itself(vote, from)
}

fn speaks_for_itself(vote: Vote, from: NodeId) -> Result<Vote, Status> {
    if vote.leader_id.voted_for == from {
        Ok(vote)
    } else {
        Err(invalid(format!("node {from} sends the vote of node {}", vote.leader_id.voted_for)))
    }
}

pub(super) fn log_id(field: Option<wire::LogId>) -> Result<Option<LogId>, Status> {
    match field {
        Some(log_id) if log_id.index > COUNT_MAX => {
            Err(invalid(format!("no log has an index of {}", log_id.index)))
        }
        log_id => Ok(log_id.as_ref().map(log_id_from_wire)),
    }
}

fn log_id_until(
    field: Option<wire::LogId>,
    name: &str,
    vote: &Vote,
) -> Result<Option<LogId>, Status> {
    let log_id = log_id(field)?;
    match log_id {
        Some(log_id) if log_id.leader_id.term > vote.leader_id.term => Err(invalid(format!(
            "{name} {log_id} has a later term than the sender, which is in term {}",
            vote.leader_id.term
        ))),
        log_id => Ok(log_id),
    }
}

/// Checks an append request. Its entries are consecutive. Their terms neither decrease nor exceed
/// the leader's: a log with such terms would be rejected as damaged at the next start.
pub(super) fn append(
    request: wire::AppendRequest,
    from: NodeId,
) -> Result<AppendEntriesRequest<TypeConfig>, Status> {
    let vote = leader_vote(request.vote, from)?;
    let previous = log_id_until(request.previous, "the previous entry", &vote)?;
    let entries = request.entries.into_iter().map(entry_from_wire).collect::<Result<Vec<_>, _>>();
    let entries = entries.map_err(malformed)?;
    let mut before = previous;
    for entry in &entries {
        let log_id = entry.log_id;
        if log_id.index != before.map_or(0, |before| before.index + 1) {
            return Err(invalid("the entries are not consecutive"));
        }
        if before.is_some_and(|before| log_id.leader_id < before.leader_id) {
            return Err(invalid(format!(
                "the term of {log_id} is lower than that of the entry before"
            )));
        }
        before = Some(log_id);
    }
    if before.is_some_and(|last| last.leader_id.term > vote.leader_id.term) {
        return Err(invalid("an entry has a later term than its leader"));
    }
    Ok(AppendEntriesRequest {
        leader_commit: log_id_until(request.leader_commit, "the committed entry", &vote)?,
        vote,
        prev_log_id: previous,
        entries,
    })
}

/// Rejects a request that would replace entries of this log that are known to be committed. Does
/// not block: entries that are not in memory are read on another thread.
pub(super) async fn check_against_log(
    request: &AppendEntriesRequest<TypeConfig>,
    log: &LogStore,
) -> Result<(), Status> {
    let committed = log.extent().committed;
    let mut known = BTreeMap::new();
    let Range { start: mut next, end } = compared(request, committed);
    while next < end {
        let entries = match log.read(next..end, READ_BYTES_MAX).await {
            Ok(entries) => entries,
            // A damaged entry does not prevent the comparison of the others.
            Err(_) => log.read(next..next + 1, READ_BYTES_MAX).await.unwrap_or_default(),
        };
        next = entries.last().map_or(next, |last| last.log_id.index) + 1;
        known.extend(entries.iter().map(|entry| (entry.log_id.index, entry.log_id)));
    }
    check_committed(request, committed, |index| known.get(&index).copied())
}

/// Returns the indexes of a request that lie before the committed entry.
fn compared(request: &AppendEntriesRequest<TypeConfig>, committed: Option<LogId>) -> Range<u64> {
    let first = request.prev_log_id.or_else(|| Some(request.entries.first()?.log_id));
    let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
    match (first, last, committed) {
        (Some(first), Some(last), Some(committed)) => {
            first.index..(last.index + 1).min(committed.index)
        }
        _ => 0..0,
    }
}

/// Rejects a request that would replace committed entries. `local` returns the log id of this
/// node's own entry at an index, if it is known.
fn check_committed(
    request: &AppendEntriesRequest<TypeConfig>,
    committed: Option<LogId>,
    local: impl Fn(u64) -> Option<LogId>,
) -> Result<(), Status> {
    let Some(committed) = committed else { return Ok(()) };
    let sent = request.prev_log_id.into_iter();
    let sent = sent.chain(request.entries.iter().map(|entry| entry.log_id));
    for log_id in sent.take_while(|log_id| log_id.index <= committed.index) {
        let known = match log_id.index == committed.index {
            true => Some(committed),
            false => local(log_id.index),
        };
        // If the entry is unknown, at least the order must be right.
        if known.map_or(log_id > committed, |known| known != log_id) {
            return Err(Status::failed_precondition(format!(
                "the sender's entry {log_id} contradicts this node's log, which is committed up to {committed}"
            )));
        }
    }
    // Later entries must follow the committed entry.
    let later = request.entries.iter().find(|entry| entry.log_id.index > committed.index);
    if later.is_some_and(|entry| entry.log_id < committed) {
        return Err(Status::failed_precondition(format!(
            "the sender's entries have an earlier term than the committed entry {committed}"
        )));
    }
    Ok(())
}

/// Checks a vote request, which a candidate sends for itself.
pub(super) fn vote_request(
    message: &wire::VoteRequest,
    from: NodeId,
) -> Result<VoteRequest<TypeConfig>, Status> {
    let vote = speaks_for_itself(vote(message.vote)?, from)?;
    if vote.committed {
        return Err(invalid("a candidate's vote must not be that of an elected leader"));
    }
    let last = log_id_until(message.last_log_id, "the last entry", &vote)?;
    let mut request = VoteRequest::new(vote, last);
    request.leadership_transfer = message.leadership_transfer;
    Ok(request)
}

/// Checks a response to an append of the leader with this vote.
pub(super) fn append_result(
    response: wire::AppendResponse,
    leader: &Vote,
) -> Result<StreamAppendResult<TypeConfig>, Status> {
    use wire::append_response::Result as Answer;
    match response.result {
        Some(Answer::Matched(matched)) => {
            Ok(Ok(log_id_until(matched.log_id, "the acknowledged entry", leader)?))
        }
        Some(Answer::Conflict(conflict)) => {
            let conflict = log_id_until(Some(conflict), "the conflicting entry", leader)?;
            Ok(Err(StreamAppendError::Conflict(required(conflict, "conflict")?)))
        }
        Some(Answer::HigherVote(higher)) => {
            let higher = answered_vote(Some(higher), leader)?;
            Ok(Err(StreamAppendError::HigherVote(higher)))
        }
        None => Err(Status::internal("the peer's response has no result")),
    }
}

/// Returns the vote in a response to a node that sent `own`. The response cannot claim that the
/// node leads in another term: openraft would accept that.
fn answered_vote(field: Option<wire::Vote>, own: &Vote) -> Result<Vote, Status> {
    checked_answer(vote(field)?, own)
}

/// Checks the vote in a response in the same way.
pub(super) fn checked_answer(answered: Vote, own: &Vote) -> Result<Vote, Status> {
    let same_node = answered.leader_id.voted_for == own.leader_id.voted_for;
    if same_node && answered.committed && answered.leader_id.term > own.leader_id.term {
        return Err(invalid(format!(
            "the peer claims that this node leads in term {}, but it is in term {}",
            answered.leader_id.term, own.leader_id.term
        )));
    }
    Ok(answered)
}

/// Checks a response to a vote request.
pub(super) fn vote_response(
    answer: wire::VoteResponse,
    own: &Vote,
) -> Result<VoteResponse<TypeConfig>, Status> {
    let answered = answered_vote(answer.vote, own)?;
    Ok(VoteResponse::new(answered, log_id(answer.last_log_id)?, answer.granted))
}

/// Returns the error for a peer that denies an entry that it has acknowledged to the same leader.
pub(super) fn lost(log_id: LogId) -> Status {
    Status::data_loss(format!("the peer no longer has entry {log_id}, which it acknowledged"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use futures::{FutureExt, poll};
    use openraft::{
        EntryPayload,
        storage::{IOFlushed, RaftLogStorage},
        type_config::TypeConfigExt,
    };

    use super::*;
    use conclave_storage::{Options, Storage, raft_types::Entry};

    fn wire_vote(term: u64, node_id: u64, committed: bool) -> Option<wire::Vote> {
        Some(wire::Vote { term, node_id, committed })
    }

    fn wire_id(term: u64, index: u64) -> Option<wire::LogId> {
        Some(wire::LogId { term, index })
    }

    fn entry(term: u64, index: u64) -> Entry {
        Entry { log_id: LogId::new_term_index(term, index), payload: EntryPayload::Blank }
    }

    fn request(
        previous: Option<(u64, u64)>,
        entries: &[(u64, u64)],
    ) -> AppendEntriesRequest<TypeConfig> {
        AppendEntriesRequest {
            vote: Vote::new_committed(9, 2),
            prev_log_id: previous.map(|(term, index)| LogId::new_term_index(term, index)),
            entries: entries.iter().map(|(term, index)| entry(*term, *index)).collect(),
            leader_commit: None,
        }
    }

    #[test]
    fn committed_entries_are_never_replaced() {
        let committed = Some(LogId::new_term_index(3, 10));
        // This node has the entries from 5 on. Entry 8 is the first of term 3.
        let local = |index| {
            (index >= 5).then(|| LogId::new_term_index(if index < 8 { 2 } else { 3 }, index))
        };
        let check = |request| check_committed(&request, committed, local).is_ok();
        assert!(check(request(Some((3, 10)), &[(3, 11), (4, 12)])));
        assert!(check(request(Some((2, 7)), &[(3, 8), (3, 9), (3, 10), (5, 11)])));
        assert!(check(request(Some((1, 3)), &[(2, 4)])), "purged");
        assert!(check(request(None, &[])));
        assert!(check(request(Some((9, 20)), &[])), "beyond the log");
        assert!(!check(request(Some((4, 10)), &[])));
        assert!(!check(request(Some((9, 3)), &[])), "purged, but of a later term");
        assert!(!check(request(Some((2, 7)), &[(4, 8)])));
        assert!(!check(request(Some((2, 9)), &[])));
        assert!(!check(request(Some((3, 8)), &[(3, 9), (4, 10)])));
        assert!(
            !check(request(Some((3, 10)), &[(2, 11)])),
            "an earlier term than the committed entry"
        );
    }

    fn open(dir: &std::path::Path) -> LogStore {
        Storage::open(Options::for_test(dir)).unwrap().log
    }

    /// The runtime has one thread for blocking work, and the test occupies it. A check
    /// that completes in the meantime has read no disk. A check that does not complete
    /// would have blocked Raft.
    #[test]
    fn committed_entries_on_the_disk_are_compared_without_blocking_the_runtime() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.max_blocking_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut log = open(dir.path());
            let (done, flushed) = TypeConfig::oneshot();
            let entries: Vec<_> = (0..10).map(|index| entry(2, index)).collect();
            log.append(entries, IOFlushed::signal(done)).await.unwrap();
            flushed.await.unwrap().unwrap();
            let committed = Some(LogId::new_term_index(2, 8));
            log.save_committed(committed).await.unwrap();
            let same = request(Some((2, 3)), &[(2, 4), (2, 5)]);
            // Only its last entry differs, and only the comparison with this node's
            // own entry detects that.
            let other = request(Some((2, 3)), &[(2, 4), (1, 5)]);
            let beyond = request(Some((2, 8)), &[(2, 9)]);
            let occupy = || {
                let (release, released) = std::sync::mpsc::channel::<()>();
                (release, tokio::task::spawn_blocking(move || released.recv()))
            };

            let (release, occupied) = occupy();
            for (request, allowed) in [(&same, true), (&other, false), (&beyond, true)] {
                let checked = check_against_log(request, &log).now_or_never().expect("in memory");
                assert_eq!(checked.is_ok(), allowed);
            }
            release.send(()).unwrap();
            occupied.await.unwrap().unwrap();
            drop(log);

            let mut log = open(dir.path());
            log.save_committed(committed).await.unwrap();
            for (request, allowed) in [(&same, true), (&other, false)] {
                let (release, occupied) = occupy();
                let mut checking = std::pin::pin!(check_against_log(request, &log));
                assert!(poll!(checking.as_mut()).is_pending(), "it read the disk on the runtime");
                let at_once = check_against_log(&beyond, &log).now_or_never();
                assert!(at_once.expect("nothing to read").is_ok());
                release.send(()).unwrap();
                occupied.await.unwrap().unwrap();
                assert_eq!(checking.await.is_ok(), allowed);
            }
        });
    }

    /// Each line is an invalid response to the leader of term 5, node 1.
    #[test]
    fn impossible_answers_are_refused() {
        use wire::append_response::Result as Answer;
        let leader = Vote::new_committed(5, 1);
        let matched = |log_id| Answer::Matched(wire::Matched { log_id });
        let answer = |result| {
            append_result(wire::AppendResponse { result: Some(result), process: 1 }, &leader)
        };
        let refused = [
            matched(wire_id(6, 1)),
            matched(wire_id(5, u64::MAX)),
            Answer::Conflict(wire_id(6, 1).unwrap()),
            Answer::HigherVote(wire_vote(7, 1, true).unwrap()),
            Answer::HigherVote(wire_vote(u64::MAX, 2, true).unwrap()),
        ];
        for result in refused {
            assert!(answer(result).is_err(), "{result:?}");
        }
        assert!(append_result(wire::AppendResponse::default(), &leader).is_err());
        assert!(answer(matched(None)).unwrap().is_ok());
        assert!(answer(matched(wire_id(5, 7))).unwrap().is_ok());
        assert!(answer(Answer::HigherVote(wire_vote(7, 2, true).unwrap())).unwrap().is_err());

        let own = Vote::new(5, 1);
        let response = |vote, last| wire::VoteResponse { vote, granted: false, last_log_id: last };
        assert!(vote_response(response(wire_vote(6, 1, true), None), &own).is_err());
        assert!(vote_response(response(None, None), &own).is_err());
        assert!(
            vote_response(response(wire_vote(6, 2, true), wire_id(1, u64::MAX)), &own).is_err()
        );
        assert!(vote_response(response(wire_vote(6, 2, true), wire_id(6, 9)), &own).is_ok());
    }
}
