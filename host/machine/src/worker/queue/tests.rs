//! Tables of the queue's transitions and of the standby's decisions, without threads and instances.
#![allow(clippy::unwrap_used, reason = "a test")]

mod random;

use tokio::sync::oneshot;

use super::{next::Decision, *};
use crate::worker::requests::{Ask, Step};

/// A queue whose prepared states are their indexes.
type TestQueue = Queue<u64, ()>;

/// A limit that no test reaches.
const NO_LIMIT: usize = usize::MAX;

/// Returns an entry that the state machine does not see.
fn blank(index: u64) -> Finished {
    let after = index - 1;
    Finished { after, index, step: Step::Skip { time_ms: 0 }, outcome: None }
}

/// Appends entries up to this index. `kept_max` is the limit, as a number of entries.
fn push(queue: &mut TestQueue, to: u64, kept_max: usize) -> String {
    let mut entries: Vec<_> = (queue.pushed + 1..=to).map(blank).collect();
    let bytes = entries.len() * ENTRY_BYTES;
    name(queue.push(&mut entries, bytes, kept_max.saturating_mul(ENTRY_BYTES), false))
}

fn name(result: Result<(), NotQueued>) -> String {
    match result {
        Ok(()) => "ok".to_owned(),
        Err(why) => format!("{why:?}").to_lowercase(),
    }
}

/// Leaks the receiver, so that the request stays open.
fn open<T>() -> oneshot::Sender<T> {
    let (reply, answer) = oneshot::channel();
    std::mem::forget(answer);
    reply
}

fn question(index_min: u64, ask: Ask) -> Question {
    let call = Call { method: "m".into(), request: bytes::Bytes::new(), principal: "".into() };
    Question { call, index_min, ask }
}

fn query(index_min: u64) -> Question {
    question(index_min, Ask::Query(open()))
}

fn subscription(index_min: u64) -> Question {
    question(index_min, Ask::Subscribe { resume: None, reply: open() })
}

fn snapshot(index: u64) -> SnapshotRequest {
    SnapshotRequest { index, reply: open() }
}

fn read() -> ReadRequest {
    ReadRequest { stream: 0, reply: open() }
}

fn promotion(index: u64) -> Promotion<()> {
    Promotion { index, reply: std::sync::mpsc::sync_channel(1).0, broken: None }
}

/// The position of a standby with an instance from which no snapshot is read.
fn at(applied: u64) -> Position {
    Position { applied, has_instance: true, is_read: false }
}

/// The position of a standby without an instance.
fn without_instance(applied: u64) -> Position {
    Position { has_instance: false, ..at(applied) }
}

fn show_requests(requests: &Requests) -> String {
    let Requests { closed, snapshots, read } = requests;
    format!("{}c{}s{}r", closed.len(), snapshots.len(), u8::from(read.is_some()))
}

/// The standby's next step in words. Requests are counted: closed snapshots, begun ones, and pieces.
fn next(queue: &mut TestQueue, at: Position) -> String {
    match queue.next(at) {
        Next::Adopt(index) => format!("adopt {index}"),
        Next::Succeed(index) => format!("succeed {index}"),
        Next::Build => "build".to_owned(),
        Next::Promote(promotion, requests) => {
            format!("promote {} {}", promotion.index, show_requests(&requests))
        }
        Next::Fail { promotion } => format!("fail {promotion}"),
        Next::CatchUp { to, requests } => format!("catch up to {to} {}", show_requests(&requests)),
        Next::Follow { entries, questions, requests } => {
            let indexes: Vec<_> = entries.iter().map(|finished| finished.index).collect();
            format!("follow {indexes:?} {}q {}", questions.len(), show_requests(&requests))
        }
        Next::Wait => "wait".to_owned(),
    }
}

fn primary_turn(queue: &mut TestQueue, applied: u64, count: usize) -> String {
    match queue.primary_turn(applied, count, |_| true) {
        PrimaryTurn::Idle => "idle".to_owned(),
        PrimaryTurn::Answer { questions, more } => format!("{}q more={more}", questions.len()),
    }
}

fn show_unanswered(unanswered: &Unanswered) -> String {
    let Unanswered { questions, snapshots, reads } = unanswered;
    format!("{}q{}s{}r", questions.len(), snapshots.len(), reads.len())
}

/// The state in words: the standby's state, the kept entries, the questions that are ready and that
/// wait, and the other requests. Then the effects.
fn show(queue: &mut TestQueue) -> String {
    let standby = match queue.standby {
        StandbyState::Following => "following",
        StandbyState::CatchingUp { requested: false } => "catching up",
        StandbyState::CatchingUp { requested: true } => "catching up, requested",
        StandbyState::Returning { requested: false } => "returning",
        StandbyState::Returning { requested: true } => "returning, requested",
        StandbyState::Ended => "ended",
    };
    let kept: Vec<_> = [queue.finished.front(), queue.finished.back()]
        .into_iter()
        .flatten()
        .map(|finished| finished.index.to_string())
        .collect();
    let mut text =
        format!("{standby} [{}] {}+{}q", kept.join(".."), queue.ready.len(), queue.waiting.len());
    let requests = [
        (queue.snapshots.len(), "snapshot"),
        (queue.reads.len(), "read"),
        (queue.closed.len(), "closed"),
        (queue.promotion.iter().count(), "promotion"),
        (queue.replacement.iter().count(), "replacement"),
        (queue.successor.iter().count(), "successor"),
    ];
    for (_, what) in requests.iter().filter(|(count, _)| *count > 0) {
        text.push_str(&format!(" {what}"));
    }
    let Wakes { standby, room, queries, presence } = queue.take_wakes();
    let effects = [
        (standby, "wakes"),
        (room, "room"),
        (queries, "requests"),
        (presence == Some(false), "absent"),
        (presence == Some(true), "present"),
    ];
    for (_, effect) in effects.iter().filter(|(happens, _)| *happens) {
        text.push_str(&format!(" !{effect}"));
    }
    text
}

/// A transition with parameters. Its result is what it returned, in words.
type Transition = fn(&mut TestQueue) -> String;
type Before = fn() -> TestQueue;

/// Both instances stand at 4. The standby sleeps.
fn following() -> TestQueue {
    let mut queue = TestQueue::default();
    queue.begin_at(4);
    queue.standby_sleeps(Sleep::Asleep);
    queue
}

/// The primary has finished the entries 5 and 6. The standby naps.
fn napping() -> TestQueue {
    let mut queue = following();
    push(&mut queue, 6, 9);
    queue.standby_sleeps(Sleep::Napping);
    queue.take_wakes();
    queue
}

/// The standby is lost, and the entries 7 and 8 are kept.
fn catching_up() -> TestQueue {
    let mut queue = following();
    queue.standby_lost();
    push(&mut queue, 8, 2);
    queue.take_wakes();
    queue
}

/// The standby stands at 4, and more entries are kept than it follows in a turn.
fn returning() -> TestQueue {
    let mut queue = following();
    queue.standby_lost();
    push(&mut queue, 4 + TURN as u64, NO_LIMIT);
    assert_eq!(queue.decide(at(4)), Decision::Follow);
    queue.standby = StandbyState::Returning { requested: false };
    queue.take_wakes();
    queue
}

/// The number of entries of a turn.
const TURN: usize = next::TURN_COUNT;

fn ended() -> TestQueue {
    let mut queue = following();
    queue.end();
    queue.take_wakes();
    queue
}

/// Adds requests to a queue before the transition.
fn with(mut queue: TestQueue, requests: impl FnOnce(&mut TestQueue)) -> TestQueue {
    requests(&mut queue);
    queue.take_wakes();
    queue
}

/// State before, transition, its result, and state and effects after.
#[rustfmt::skip]
const TRANSITIONS: &[(Before, Transition, &str, &str)] = &[
    // begin_at
    (TestQueue::default, |q| { q.begin_at(4); String::new() }, "", "following [] 0+0q"),
    // ask
    (following, |q| name(q.ask(query(4), 9)), "ok", "following [] 1+0q !wakes"),
    (following, |q| name(q.ask(query(5), 9)), "ok", "following [] 0+1q"),
    (napping, |q| name(q.ask(query(5), 9)), "ok", "following [5..6] 0+1q !wakes"),
    (catching_up, |q| name(q.ask(query(4), 9)), "ok", "catching up, requested [7..8] 1+0q !requests"),
    (returning, |q| name(q.ask(query(4), 9)), "ok", "returning, requested [5..260] 1+0q !requests"),
    (following, |q| name(q.ask(query(4), 0)), "full", "following [] 0+0q"),
    // A caller that has given up makes room.
    (|| with(following(), |q| q.ask(question(9, Ask::Query(oneshot::channel().0)), 1).unwrap()),
     |q| name(q.ask(query(4), 1)), "ok", "following [] 1+0q !wakes"),
    (ended, |q| name(q.ask(query(4), 9)), "ended", "ended [] 0+0q"),
    // request_snapshot, request_read, close_stream
    (following, |q| name(q.request_snapshot(snapshot(4))), "ok", "following [] 0+0q snapshot !wakes"),
    (ended, |q| name(q.request_snapshot(snapshot(4))), "ended", "ended [] 0+0q"),
    (following, |q| name(q.request_read(read())), "ok", "following [] 0+0q read !wakes"),
    (ended, |q| name(q.request_read(read())), "ended", "ended [] 0+0q"),
    (following, |q| { q.close_stream(1); String::new() }, "", "following [] 0+0q closed !wakes"),
    (ended, |q| { q.close_stream(1); String::new() }, "", "ended [] 0+0q"),
    // offer_successor
    (following, |q| format!("{:?}", q.offer_successor(5, 5)), "None", "following [] 0+0q successor !wakes"),
    (following, |q| format!("{:?}", q.offer_successor(4, 4)), "Some(4)", "following [] 0+0q"),
    (|| with(following(), |q| assert!(q.offer_successor(5, 5).is_none())),
     |q| format!("{:?}", q.offer_successor(6, 6)), "Some(5)", "following [] 0+0q successor"),
    (ended, |q| format!("{:?}", q.offer_successor(5, 5)), "Some(5)", "ended [] 0+0q"),
    // adopt
    (napping, |q| name(q.adopt(9, 9)), "ok", "following [] 0+0q replacement !wakes"),
    (|| with(catching_up(), |q| assert!(q.offer_successor(7, 7).is_none())),
     |q| name(q.adopt(9, 9)), "ok", "catching up [] 0+0q replacement"),
    (ended, |q| name(q.adopt(9, 9)), "ended", "ended [] 0+0q"),
    // request_promotion
    (napping, |q| name(q.request_promotion(promotion(6))), "ok", "following [5..6] 0+0q promotion !wakes"),
    (ended, |q| name(q.request_promotion(promotion(6))), "ended", "ended [] 0+0q"),
    // push
    (following, |q| push(q, 5, 9), "ok", "following [5..5] 0+0q !wakes"),
    (napping, |q| push(q, 7, 9), "ok", "following [5..7] 0+0q"),
    (napping, |q| push(q, 4 + 64, 99), "ok", "following [5..68] 0+0q !wakes"),
    (|| with(napping(), |q| q.ask(query(9), 9).unwrap()),
     |q| { q.standby_sleeps(Sleep::Napping); push(q, 7, 9) }, "ok", "following [5..7] 0+1q !wakes"),
    (napping, |q| push(q, 7, 1), "full", "following [5..6] 0+0q !wakes"),
    (returning, |q| push(q, 261, 1), "full", "returning [5..260] 0+0q"),
    (catching_up, |q| push(q, 9, 2), "ok", "catching up [8..9] 0+0q"),
    (ended, |q| push(q, 5, 9), "ended", "ended [] 0+0q"),
    // primary_turn
    (following, |q| primary_turn(q, 4, 9), "idle", "following [] 0+0q"),
    (|| with(catching_up(), |q| { q.ask(query(4), 9).unwrap(); q.ask(query(8), 9).unwrap() }),
     |q| primary_turn(q, 8, 9), "2q more=false", "catching up [7..8] 0+0q"),
    (|| with(returning(), |q| { q.ask(subscription(4), 9).unwrap(); q.ask(query(4), 9).unwrap() }),
     |q| primary_turn(q, 8, 9), "1q more=false", "returning [5..260] 1+0q"),
    (|| with(catching_up(), |q| { q.ask(query(4), 9).unwrap(); q.ask(query(4), 9).unwrap() }),
     |q| primary_turn(q, 8, 1), "1q more=true", "catching up [7..8] 1+0q"),
    (|| with(catching_up(), |q| q.request_promotion(promotion(8)).unwrap()),
     |q| primary_turn(q, 8, 9), "idle", "catching up [7..8] 0+0q promotion"),
    (ended, |q| primary_turn(q, 4, 9), "idle", "ended [] 0+0q"),
    // put_back
    (following, |q| name(q.put_back([query(4)].into())), "ok", "following [] 1+0q !wakes"),
    (ended, |q| name(q.put_back([query(4)].into())), "ended", "ended [] 0+0q"),
    // primary_not_requested
    (|| with(catching_up(), |q| q.ask(query(4), 9).unwrap()),
     |q| { q.primary_not_requested(); String::new() }, "", "catching up [7..8] 1+0q"),
    (|| with(returning(), |q| q.ask(query(4), 9).unwrap()),
     |q| { q.primary_not_requested(); String::new() }, "", "returning [5..260] 1+0q"),
    // standby_lost
    (following, |q| { q.standby_lost(); String::new() }, "", "catching up [] 0+0q !room !absent"),
    (|| with(following(), |q| q.ask(query(4), 9).unwrap()),
     |q| { q.standby_lost(); String::new() }, "", "catching up, requested [] 1+0q !room !requests !absent"),
    (catching_up, |q| { q.standby_lost(); String::new() }, "", "catching up [7..8] 0+0q"),
    (returning, |q| { q.standby_lost(); String::new() }, "", "catching up [5..260] 0+0q !room"),
    (ended, |q| { q.standby_lost(); String::new() }, "", "ended [] 0+0q"),
    // next
    (following, |q| next(q, at(4)), "wait", "following [] 0+0q"),
    (napping, |q| next(q, at(4)), "follow [5, 6] 0q 0c0s0r", "following [] 0+0q !room"),
    (|| with(napping(), |q| { q.ask(query(4), 9).unwrap(); q.ask(query(6), 9).unwrap() }),
     |q| next(q, at(4)), "follow [5, 6] 1q 0c0s0r", "following [] 0+1q !room"),
    (|| with(following(), |q| { q.ask(query(4), 9).unwrap(); q.ask(query(6), 9).unwrap() }),
     |q| next(q, at(6)), "follow [] 2q 0c0s0r", "following [] 0+0q"),
    // An older state than before is not served.
    (|| with(napping(), |q| { q.serve(6); q.ask(query(5), 9).unwrap() }),
     |q| next(q, at(4)), "follow [5, 6] 0q 0c0s0r", "following [] 1+0q !room"),
    // The state at 5 is needed for a snapshot.
    (|| with(napping(), |q| q.request_snapshot(snapshot(5)).unwrap()),
     |q| next(q, at(4)), "follow [5] 0q 0c0s0r", "following [6..6] 0+0q snapshot !room"),
    (|| with(napping(), |q| { q.request_snapshot(snapshot(4)).unwrap(); q.close_stream(1) }),
     |q| next(q, at(4)), "follow [] 0q 1c1s0r", "following [5..6] 0+0q"),
    (|| with(napping(), |q| { q.request_read(read()).unwrap(); q.request_read(read()).unwrap() }),
     |q| next(q, at(6)), "follow [] 0q 0c0s1r", "following [] 0+0q read !room"),
    // A caller that has given up does not hold the standby.
    (|| with(napping(), |q| {
         q.request_snapshot(SnapshotRequest { index: 5, reply: oneshot::channel().0 }).unwrap();
     }),
     |q| next(q, at(4)), "follow [5, 6] 0q 0c0s0r", "following [] 0+0q !room"),
    (catching_up, |q| next(q, without_instance(4)), "build", "catching up [7..8] 0+0q"),
    (catching_up, |q| next(q, at(4)), "catch up to 6 0c0s0r", "catching up [7..8] 0+0q"),
    (|| with(catching_up(), |q| q.request_promotion(promotion(5)).unwrap()),
     |q| next(q, at(4)), "catch up to 5 0c0s0r", "catching up [7..8] 0+0q promotion"),
    (catching_up, |q| next(q, at(6)), "follow [7, 8] 0q 0c0s0r", "following [] 0+0q !room !present"),
    (|| with(catching_up(), |q| q.ask(query(4), 9).unwrap()),
     |q| next(q, at(8)), "follow [] 1q 0c0s0r", "following [] 0+0q !room !present"),
    (|| with(catching_up(), |q| assert_eq!(push(q, 8 + TURN as u64, NO_LIMIT), "ok")),
     |q| { next(q, at(6)); String::new() }, "", "returning [263..264] 0+0q !room"),
    (returning, |q| { next(q, at(5)); String::new() }, "", "returning [] 0+0q !room"),
    (|| with(napping(), |q| q.request_promotion(promotion(6)).unwrap()),
     |q| next(q, at(4)), "follow [5, 6] 0q 0c0s0r", "following [] 0+0q promotion !room"),
    (|| with(napping(), |q| { q.request_promotion(promotion(6)).unwrap(); q.close_stream(1) }),
     |q| next(q, at(6)), "promote 6 1c0s0r", "following [5..6] 0+0q"),
    (|| with(napping(), |q| q.request_promotion(promotion(5)).unwrap()),
     |q| next(q, at(6)), "fail 5", "following [5..6] 0+0q promotion"),
    (|| with(napping(), |q| q.adopt(9, 9).unwrap()), |q| next(q, at(4)), "adopt 9", "following [] 0+0q"),
    (|| with(following(), |q| assert!(q.offer_successor(5, 5).is_none())),
     |q| next(q, at(4)), "succeed 5", "catching up [] 0+0q !room !absent"),
    // take_unanswerable
    (|| with(catching_up(), |q| {
         for index in [4, 9] {
             q.ask(query(index), 9).unwrap();
             q.ask(subscription(index), 9).unwrap();
         }
         q.request_snapshot(snapshot(4)).unwrap();
         q.request_read(read()).unwrap();
         q.close_stream(1);
     }),
     |q| show_unanswered(&q.take_unanswerable()), "2q1s1r", "catching up, requested [7..8] 1+1q"),
    // end
    (|| with(napping(), |q| {
         q.ask(query(4), 9).unwrap();
         q.ask(query(9), 9).unwrap();
         q.request_snapshot(snapshot(4)).unwrap();
         q.request_read(read()).unwrap();
         q.close_stream(1);
         q.request_promotion(promotion(4)).unwrap();
         assert!(q.offer_successor(5, 5).is_none());
     }),
     |q| show_unanswered(&q.end()), "2q1s1r", "ended [] 0+0q !room"),
    // standby_sleeps
    (following, |q| { q.standby_sleeps(Sleep::Awake); name(q.ask(query(4), 9)) }, "ok", "following [] 1+0q"),
];

#[test]
fn each_transition_gives_the_expected_state_and_effects() {
    for (number, (before, transition, expected, after)) in TRANSITIONS.iter().enumerate() {
        let mut queue = before();
        let begun = show(&mut queue);
        let result = transition(&mut queue);
        let state = show(&mut queue);
        assert_eq!((&*result, &*state), (*expected, *after), "row {number}, from {begun}");
    }
}

/// The standby's decision depends on these facts only: a pending replacement, successor and promotion,
/// the requests for snapshots, and its position. The entries 5 and 6 are kept.
#[test]
fn the_standby_decides_in_this_order() {
    let reads = Position { is_read: true, ..at(4) };
    // Replacement, successor, promotion at an index, request for a snapshot.
    let table = [
        (true, true, Some(4), true, at(4), Decision::Adopt),
        (true, false, None, false, without_instance(4), Decision::Adopt),
        (false, true, None, false, at(4), Decision::Succeed),
        (false, true, Some(6), true, without_instance(4), Decision::Succeed),
        (false, true, None, false, reads, Decision::Follow),
        (false, true, None, true, at(4), Decision::Follow),
        (false, true, Some(4), false, at(4), Decision::Promote),
        (false, false, None, false, without_instance(4), Decision::Build),
        (false, false, Some(4), true, without_instance(4), Decision::Build),
        (false, false, Some(4), true, at(4), Decision::Promote),
        (false, false, Some(3), false, at(4), Decision::Fail { promotion: 3 }),
        (false, false, Some(6), false, at(4), Decision::Follow),
        (false, false, Some(3), false, at(2), Decision::CatchUp { to: 3 }),
        (false, false, None, false, at(2), Decision::CatchUp { to: 4 }),
        (false, false, None, false, at(6), Decision::Follow),
    ];
    for (number, (replaced, succeeded, promoted, saved, at, expected)) in
        table.into_iter().enumerate()
    {
        let mut queue = napping();
        queue.replacement = replaced.then_some(7);
        queue.successor = succeeded.then_some((7, 7));
        queue.promotion = promoted.map(promotion);
        queue.snapshots.extend(saved.then(|| snapshot(9)));
        assert_eq!(queue.decide(at), expected, "row {number}");
    }
}

#[test]
#[should_panic(expected = "entry 6 leaves a gap in the queue")]
fn an_entry_that_leaves_a_gap_is_a_bug() {
    let _ = following().push(&mut vec![blank(6)], ENTRY_BYTES, NO_LIMIT, false);
}
