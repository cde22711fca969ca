//! Watches: every watcher on every node gets every change, through the loss of nodes.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use conclave_client::{
    CallOptions, Client, Code, Watch,
    proto::kv::{WatchRequest, key_value, watch_response::Kind},
};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::harness::{Cluster, call, conclave, eventually, put};

const PUTS: usize = 500;
const END: &str = "w/end";

async fn watch(client: &Client) -> Watch {
    let request = WatchRequest { prefix: "w/".into(), initial: true, ..WatchRequest::default() };
    client.kv().watch(request, None).await.unwrap()
}

/// Collects the changes up to the end: kinds, keys and values. Each is in an entry of its own,
/// in order.
async fn received(mut watch: Watch) -> Vec<(Kind, String, String)> {
    let mut received = Vec::new();
    let mut last = 0;
    loop {
        let message = timeout(Duration::from_secs(120), watch.next()).await;
        let message = match message.expect("the watch has an end") {
            Ok(message) => message,
            // There is no leader for a while. The watch continues at its position.
            Err(error) if error.is_unavailable() || error.is_deadline() => continue,
            Err(error) => panic!("{error}; received so far: {received:?}"),
        };
        let kind = message.kind();
        if !matches!(kind, Kind::Initial | Kind::Ready) {
            assert!(message.index > last, "{} comes after {last}", message.index);
        }
        last = message.index;
        let kv = message.kv.unwrap_or_default();
        let text = match kv.content {
            Some(key_value::Content::Text(text)) => text,
            _ => String::new(),
        };
        received.push((kind, kv.key, text));
        if received.last().is_some_and(|(_, key, _)| key == END) {
            return received;
        }
    }
}

/// Asserts that a watcher got `initial`, `ready`, and then each acknowledged put once and in order.
/// A put of unknown outcome may be among them.
fn assert_received(who: &str, received: &[(Kind, String, String)], acknowledged: &[String]) {
    assert_eq!(received[0], (Kind::Initial, "w/before".into(), "x".into()), "{who}");
    assert_eq!(received[1].0, Kind::Ready, "{who}");
    let puts: Vec<&str> = received[2..]
        .iter()
        .filter(|(_, key, _)| key == "w/number")
        .map(|(kind, _, text)| {
            assert_eq!(*kind, Kind::Put);
            text.as_str()
        })
        .collect();
    assert!(puts.is_sorted(), "{who}: {puts:?}");
    assert!(puts.windows(2).all(|two| two[0] != two[1]), "{who} received an event twice: {puts:?}");
    for text in acknowledged {
        assert!(puts.binary_search(&text.as_str()).is_ok(), "{who} did not receive {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_put_is_told_once_whichever_nodes_are_killed() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    put(&client, "w/before", "x").await.unwrap();
    put(&client, "elsewhere", "x").await.unwrap();
    let leader = cluster.leader().await;
    let follower = leader % 3 + 1;
    let stays = tokio::spawn(received(watch(&cluster.client_of(follower)).await));
    let moves = tokio::spawn(received(watch(&client).await));

    let done = Arc::new(AtomicUsize::new(0));
    let writer = tokio::spawn({
        let (client, done) = (client.clone(), done.clone());
        async move {
            let mut acknowledged = Vec::new();
            for number in 0..PUTS {
                let text = format!("{number:04}");
                // Not sent again if its outcome is unknown: a second put would be a second change.
                let request = json!({ "key": "w/number", "text": text });
                let put_once = call(&client, "kv.v1.KV/Put", request, CallOptions::write());
                if put_once.await.is_ok() {
                    acknowledged.push(text);
                }
                put(&client, "elsewhere", "y").await.ok();
                done.fetch_add(1, Ordering::Relaxed);
            }
            acknowledged
        }
    });
    let goes_on = async || {
        let enough = (done.load(Ordering::Relaxed) + 40).min(PUTS);
        eventually("writing continues", async || match done.load(Ordering::Relaxed) {
            now if now >= enough => Ok(()),
            now => Err(format!("{now} of {enough} puts")),
        })
        .await;
    };
    // The leader dies, and watchers at the follower do not notice. Then all nodes die in turn.
    for id in [leader, leader % 3 + 1, (leader + 1) % 3 + 1, leader] {
        goes_on().await;
        if id == follower {
            // A watch at this node alone reconnects to it.
            assert!(!stays.is_finished());
        }
        cluster.kill(id);
        goes_on().await;
        cluster.start_node(id);
        cluster.serving().await;
    }
    let acknowledged = writer.await.unwrap();
    assert!(acknowledged.len() > PUTS / 2, "{} were acknowledged", acknowledged.len());
    put(&client, END, "x").await.unwrap();
    assert_received("who moves", &moves.await.unwrap(), &acknowledged);
    assert_received("who stays", &stays.await.unwrap(), &acknowledged);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_prints_a_line_a_change() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    put(&client, "app/color", "green").await.unwrap();
    let start = |arguments: &[&str]| {
        let mut command = conclave();
        command.args(arguments).arg("--endpoints").arg(&cluster.node(2).client);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines.map(|line| line.unwrap()))
    };
    let (mut plain, mut lines) = start(&["kv", "watch", "app/", "--initial", "--count", "3"]);
    let (mut json, mut objects) = start(&["kv", "watch", "--key", "app/color", "--json"]);
    let request = r#"{"prefix": "app/", "initial": true}"#;
    let (mut called, mut messages) = start(&["call", "kv.v1.KV/Watch", request]);
    assert_eq!(lines.next().unwrap(), "initial app/color green");
    let message: Value = serde_json::from_str(&messages.next().unwrap()).unwrap();
    assert_eq!(message["kv"]["text"], "green");
    let message: Value = serde_json::from_str(&messages.next().unwrap()).unwrap();
    assert_eq!(message["kind"], "READY");

    put(&client, "app/lines", "one\ntwo").await.unwrap();
    assert_eq!(lines.next().unwrap(), "put app/lines one\\ntwo");
    // There is no signal when the watch without `initial` has started, so the test puts until the
    // watch prints a change.
    let received = tokio::task::spawn_blocking(move || objects.next().unwrap());
    let mut number = 0;
    while !received.is_finished() {
        number += 1;
        put(&client, "app/color", &format!("red {number}")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let object: Value = serde_json::from_str(&received.await.unwrap()).unwrap();
    assert_eq!((&object["kind"], &object["key"]), (&"put".into(), &"app/color".into()));
    assert!(lines.next().unwrap().starts_with("put app/color red"));
    assert!(plain.wait().unwrap().success(), "three changes");

    // A second watch resumes from this index.
    let index = object["index"].to_string();
    let from = ["kv", "watch", "--key", "app/color", "--count", "1", "--from-index", &index];
    put(&client, "app/color", "blue").await.unwrap();
    let (mut again, mut lines) = start(&from);
    assert!(lines.next().unwrap().starts_with("put app/color "));
    assert!(again.wait().unwrap().success());
    for child in [&mut json, &mut called] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// Makes more changes of other keys than a node keeps.
async fn much_elsewhere(client: &Client, prefix: &str) {
    let text = "x".repeat(900 << 10);
    for number in 0..20 {
        put(client, &format!("{prefix}{number}"), &text).await.unwrap();
    }
}

async fn quiet(client: &Client) -> Watch {
    let request = WatchRequest { prefix: "quiet/".into(), ..WatchRequest::default() };
    client.kv().watch(request, None).await.unwrap().relists(false)
}

/// Returns the next change, and waits while no node is available.
async fn change(watch: &mut Watch) -> (Kind, String) {
    loop {
        let next = timeout(Duration::from_secs(120), watch.next()).await.expect("a change");
        match next {
            Ok(message) => return (message.kind(), message.kv.unwrap_or_default().key),
            Err(error) if error.is_unavailable() || error.is_deadline() => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Regression: a quiet watch ended with its node, because it could only resume from the index of
/// its last change.
#[tokio::test(flavor = "multi_thread")]
async fn quiet_watch_beside_busy_keys_survives_the_loss_of_nodes() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    let mut watch = quiet(&client).await;
    let watching = tokio::spawn(async move {
        let mut changes = Vec::new();
        while changes.len() < 5 {
            changes.push(change(&mut watch).await);
        }
        changes
    });
    // A stopping node reports the position of the watch.
    for id in 1..=3 {
        much_elsewhere(&client, "busy/").await;
        cluster.stop(id);
        cluster.start_node(id);
        cluster.serving().await;
        put(&client, &format!("quiet/{id}"), "x").await.unwrap();
    }
    // A killed node has reported it within the last ten seconds.
    much_elsewhere(&client, "busy/").await;
    tokio::time::sleep(Duration::from_secs(12)).await;
    for id in 1..=3 {
        cluster.kill(id);
        cluster.start_node(id);
        cluster.serving().await;
    }
    put(&client, "quiet/4", "x").await.unwrap();
    put(&client, "quiet/5", "x").await.unwrap();
    let changes = watching.await.unwrap();
    let expected: Vec<_> = (1..=5).map(|id| (Kind::Put, format!("quiet/{id}"))).collect();
    assert_eq!(changes, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_that_has_missed_changes_lists_the_keys_again() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    let request = || WatchRequest { prefix: "w/".into(), ..WatchRequest::default() };
    put(&client, "w/deleted", "x").await.unwrap();
    let mut watch = client.kv().watch(request(), None).await.unwrap();
    let mut strict = client.kv().watch(request(), None).await.unwrap().relists(false);
    client.kv().delete("w/deleted").await.unwrap();
    // The watchers read nothing meanwhile. These are also more keys than a node sends at once.
    much_elsewhere(&client, "w/").await;
    much_elsewhere(&client, "w/").await;
    let mut kinds = Vec::new();
    let mut keys = Vec::new();
    loop {
        let (kind, key) = change(&mut watch).await;
        kinds.push(kind);
        match kind {
            Kind::Initial => keys.push(key),
            Kind::Ready => break,
            _ => {}
        }
    }
    let relist = kinds.iter().position(|kind| *kind == Kind::Relist).expect("changes are missing");
    assert!(
        kinds[..relist].iter().all(|kind| matches!(kind, Kind::Put | Kind::Delete)),
        "{kinds:?}"
    );
    let mut expected: Vec<_> = (0..20).map(|number| format!("w/{number}")).collect();
    expected.sort();
    assert_eq!(keys, expected);
    put(&client, "w/later", "x").await.unwrap();
    assert_eq!(change(&mut watch).await, (Kind::Put, "w/later".into()));
    let error = loop {
        match timeout(Duration::from_secs(60), strict.next()).await.expect("an end") {
            Ok(message) => assert_ne!(message.kind(), Kind::Relist),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), Code::OutOfRange, "{error}");

    // An index beyond the cluster's log is refused immediately, even without contacting the leader.
    for verb in [&["kv", "watch"][..], &["call", "kv.v1.KV/Watch", "--stale"]] {
        let began = Instant::now();
        let from = ["--timeout", "60s", "--from-index", "99999999"];
        let refused = cluster.verb(&[verb, &from].concat());
        let why = String::from_utf8_lossy(&refused.stderr);
        assert!(why.contains("but not 99999999"), "{why}");
        assert_eq!(refused.status.code(), Some(1), "{why}");
        assert!(began.elapsed() < Duration::from_secs(30), "{why}");
    }
}
