//! The initial messages and the later events fit together, without a gap or a duplicate, whatever
//! happens to the instances. A subscriber that cannot be served any more gets an error.

use std::{sync::LazyLock, time::Duration};

use conclave_machine::{
    Component, Engine, Entry, QueryError, Subscribed, WatchError, Watcher, Work,
};
use conclave_types::{Call, Outcome};
use tokio::time::timeout;

use crate::support::{Node, limits};
use conclave_testing::wat::Wat;

/// Counts. Each entry is an event whose topic and payload are the request; an entry that begins with `!`
/// traps. A subscription covers all topics from its request on, and begins with the count. Queries trap.
static ECHO: LazyLock<Component> = LazyLock::new(|| {
    let wat = Wat {
        apply: r#"
          (if (i32.and (i32.ne (local.get 8) (i32.const 0)) (i32.eq (i32.load8_u (local.get 7)) (i32.const 33)))
            (then unreachable))
          (i64.store (i32.const 8) (i64.add (i64.load (i32.const 8)) (i64.const 1)))
          (i32.store (i32.const 800) (local.get 7)) (i32.store (i32.const 804) (local.get 8))
          (i32.store (i32.const 808) (local.get 7)) (i32.store (i32.const 812) (local.get 8))
          (i32.store (i32.const 272) (i32.const 800)) (i32.store (i32.const 276) (i32.const 1))
          (i32.const 256)"#,
        subscribe: r#"
          (i32.store8 (i32.const 512) (i32.const 0))
          (i32.store (i32.const 516) (local.get 7)) (i32.store (i32.const 520) (local.get 8))
          (i32.store (i32.const 524) (i32.const 0)) (i32.store (i32.const 528) (i32.const 0))
          (i32.store (i32.const 900) (i32.const 8)) (i32.store (i32.const 904) (i32.const 8))
          (i32.store (i32.const 532) (i32.const 900)) (i32.store (i32.const 536) (i32.const 1))
          (i32.const 512)"#,
        query: "unreachable",
        ..Wat::default()
    };
    Component::load(&Engine::new(&limits()).unwrap(), wat.component()).unwrap()
});

fn call(request: impl Into<Vec<u8>>) -> Call {
    Call { method: "echo".into(), request: request.into().into(), principal: "".into() }
}

fn number(number: u64) -> Call {
    call(number.to_be_bytes())
}

async fn subscribe(node: &Node, from: &[u8]) -> Subscribed {
    node.worker.subscribe(call(from), node.index, None).await.unwrap()
}

/// Returns the initial count, and the watcher of the events after it.
fn begun(subscribed: Subscribed) -> (u64, Watcher) {
    let subscribing = subscribed.result.unwrap();
    let [count] = &subscribing.initial[..] else { panic!("{subscribing:?}") };
    (u64::from_le_bytes(count[..].try_into().unwrap()), subscribing.events)
}

async fn next(events: &mut Watcher) -> Result<(u64, Vec<Vec<u8>>), WatchError> {
    let next = timeout(Duration::from_secs(60), events.next()).await.expect("something happens");
    next.map(|(index, payloads)| (index, payloads.iter().map(|bytes| bytes.to_vec()).collect()))
}

/// Checks that the next numbers are those after `after`, up to `to`.
async fn assert_counts(events: &mut Watcher, after: u64, to: u64) {
    for expected in after + 1..=to {
        let (_, payloads) = next(events).await.unwrap();
        assert_eq!(payloads, [expected.to_be_bytes()]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_first_and_what_happens_fit_together_whenever_one_subscribes() {
    const ENTRIES: u64 = 600;
    let mut node = Node::start_with(ECHO.clone());
    let mut watchers = Vec::new();
    let mut traps = 0;
    for count in 1..=ENTRIES {
        drop(node.push(number(count)).await);
        match count % 50 {
            // Subscribes at whatever index the standby has reached.
            0..4 => {
                let worker = node.worker.clone();
                watchers.push(tokio::spawn(async move {
                    let (first, mut events) =
                        begun(worker.subscribe(call(b""), 0, None).await.unwrap());
                    assert_counts(&mut events, first, ENTRIES).await;
                    first
                }));
            }
            // The primary traps, and the standby takes its place.
            20 => {
                traps += 1;
                drop(node.push(call(b"!")).await);
            }
            // The standby traps.
            40 => _ = node.worker.query(call(b""), 0).await,
            _ => {}
        }
    }
    let mut firsts = Vec::new();
    for watcher in watchers {
        firsts.push(watcher.await.unwrap());
    }
    assert!(firsts.iter().any(|first| *first > 0) && traps > 5, "{firsts:?}");
    assert!(node.worker.metrics().standby_builds.get() > 0);
    assert_eq!(node.worker.fatal_error(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_sees_its_range_and_goes_on_from_an_index() {
    let mut node = Node::start_with(ECHO.clone());
    let (first, mut all) = begun(subscribe(&node, b"").await);
    let (_, mut late) = begun(subscribe(&node, b"m").await);
    assert_eq!(first, 0);
    for topic in ["a", "z", "b", "m"] {
        assert!(matches!(node.apply(call(topic)).await, Outcome::Reply(_)));
    }
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(next(&mut all).await.unwrap());
    }
    assert_eq!(next(&mut late).await.unwrap(), seen[1]);
    assert_eq!(next(&mut late).await.unwrap(), seen[3]);

    // Resumes after the second event, with a new subscription: no initial count.
    let resumed = node.worker.subscribe(call(b""), 0, Some(seen[1].0)).await.unwrap();
    let mut resumed = resumed.result.unwrap();
    assert!(resumed.initial.is_empty());
    assert_eq!(next(&mut resumed.events).await.unwrap(), seen[2]);
    assert_eq!(next(&mut resumed.events).await.unwrap(), seen[3]);

    // From an index that this node has not reached: the call waits.
    let worker = node.worker.clone();
    let ahead = worker.subscribe(call(b""), 0, Some(node.index + 1));
    let mut ahead = std::pin::pin!(ahead);
    assert!(timeout(Duration::from_millis(100), &mut ahead).await.is_err());
    node.apply(call(b"seen")).await;
    node.apply(call(b"new")).await;
    let mut events = ahead.await.unwrap().result.unwrap().events;
    assert_eq!(next(&mut events).await.unwrap().1, [b"new"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_too_slow_or_away_for_too_long_is_told_to_begin_anew() {
    let mut node = Node::start_with(ECHO.clone());
    let (_, mut slow) = begun(subscribe(&node, b"").await);
    let (_, mut quick) = begun(subscribe(&node, b"").await);
    node.apply(call(b"first")).await;
    let (first, _) = next(&mut quick).await.unwrap();
    // Twice the size of the buffer: topic and payload of 50 kB each.
    for _ in 0..400 {
        node.apply(call(vec![7; 50_000])).await;
        next(&mut quick).await.unwrap();
    }
    let error = next(&mut slow).await.unwrap_err();
    assert!(matches!(error, WatchError::Gone { .. }), "{error}");
    assert!(error.to_string().contains("subscribe again"), "{error}");
    let gone = node.worker.subscribe(call(b""), 0, Some(first)).await.unwrap_err();
    assert!(matches!(gone, QueryError::Watch(WatchError::Gone { index, .. }) if index == first));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_another_node_sent_and_a_shutdown_end_subscriptions() {
    let mut node = Node::start_with(ECHO.clone());
    node.apply(number(1)).await;
    let (_, mut events) = begun(subscribe(&node, b"").await);
    let mut saved = node.snapshot().await;
    saved.index += 10;
    node.entry_source.install(saved.clone());
    node.worker.restore(saved.state()).await.unwrap();
    node.index = saved.index;
    // The entries in between were never applied here.
    let error = next(&mut events).await.unwrap_err();
    assert!(matches!(error, WatchError::Replaced { .. }), "{error}");

    let (_, mut events) = begun(subscribe(&node, b"").await);
    node.apply(number(2)).await;
    next(&mut events).await.unwrap();
    let worker = node.worker.clone();
    let ending = tokio::spawn(async move { next(&mut events).await });
    tokio::task::spawn_blocking(move || worker.shutdown()).await.unwrap();
    assert_eq!(ending.await.unwrap().unwrap_err(), WatchError::Stopped);
    assert!(node.worker.subscribe(call(b""), 0, None).await.is_err());
}

/// A diverged node is repaired while the cluster is idle: the peer's state has the same index at
/// which the standby stands. The standby's own events may be wrong, so no subscriber may get them,
/// neither a watcher nor one that resumes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_of_the_same_index_ends_subscriptions_and_drops_the_events_before() {
    let mut node = Node::start_with(ECHO.clone());
    node.apply(call(b"first")).await;
    let before = node.index;
    node.apply(call(b"wrong")).await;
    let (_, mut watching) = begun(subscribe(&node, b"").await);
    let resumed = node.worker.subscribe(call(b""), node.index, Some(before)).await.unwrap();
    let mut resumed = resumed.result.unwrap().events;
    let saved = node.snapshot().await;
    node.entry_source.install(saved.clone());
    node.worker.restore(saved.state()).await.unwrap();
    node.worker.query(call(b""), node.index).await.unwrap_err();
    for events in [&mut watching, &mut resumed] {
        let error = next(events).await.unwrap_err();
        assert!(matches!(error, WatchError::Replaced { .. }), "{error}");
    }
    let gone = node.worker.subscribe(call(b""), node.index, Some(before)).await.unwrap_err();
    assert!(matches!(gone, QueryError::Watch(WatchError::Gone { .. })), "{gone}");
    // Subscriptions from here on work again.
    let resumed = node.worker.subscribe(call(b""), 0, Some(node.index)).await.unwrap();
    let mut resumed = resumed.result.unwrap().events;
    node.apply(call(b"right")).await;
    assert_eq!(next(&mut resumed).await.unwrap().1, [b"right"]);
}

/// An entry without a reply, and one that the state machine does not see, have no events and end
/// no subscription.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_without_events_pass_by() {
    let mut node = Node::start_with(ECHO.clone());
    let (_, mut events) = begun(subscribe(&node, b"").await);
    node.push_blank().await;
    let trap = node.apply(call(b"!")).await;
    assert!(matches!(trap, Outcome::Trap(_)));
    let tick = Entry { index: node.index + 1, time_ms: 0, work: Work::Tick };
    // The tick of this state machine traps.
    drop(node.push_entry(tick).await);
    node.apply(number(1)).await;
    let (index, payloads) = next(&mut events).await.unwrap();
    assert_eq!((index, payloads), (node.index, vec![1_u64.to_be_bytes().to_vec()]));
}

/// A watcher that has taken all of its own events is not behind, however many events of
/// others were dropped.
#[tokio::test]
async fn quiet_watcher_misses_nothing_while_events_of_others_are_dropped() {
    let mut node = Node::start_with(ECHO.clone());
    let (_, mut quiet) = begun(subscribe(&node, b"z").await);
    let (_, mut slow) = begun(subscribe(&node, b"").await);
    let began = node.index;
    // Topic and payload of 50 kB each.
    let large = vec![b'a'; 50_000];
    for _ in 0..400 {
        assert!(matches!(node.apply(call(large.clone())).await, Outcome::Reply(_)));
    }
    let index = node.index;
    timeout(Duration::from_secs(60), async {
        while quiet.position().unwrap() != Some(index) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the watcher comes as far as the log");
    node.apply(call("z")).await;
    assert_eq!(next(&mut quiet).await.unwrap(), (node.index, vec![b"z".to_vec()]));
    // A watcher with events left to take is behind, and so is one that resumes from before them.
    assert!(matches!(next(&mut slow).await, Err(WatchError::Gone { .. })));
    let resumed = node.worker.subscribe(call("z"), node.index, Some(began)).await;
    assert!(matches!(resumed, Err(QueryError::Watch(WatchError::Gone { .. }))), "{resumed:?}");
    // From the position of the quiet watcher, nothing is missing.
    let resumed = node.worker.subscribe(call("z"), node.index, Some(index)).await.unwrap();
    let mut resumed = resumed.result.unwrap().events;
    assert_eq!(next(&mut resumed).await.unwrap(), (node.index, vec![b"z".to_vec()]));
}
