//! A replay switches to the components that the log activates, at the same entries.

use serde_json::{Value, json};

use super::machines::*;
use crate::replay::replayed;

/// Returns the active component's response to a query: its count and its step.
fn answered(at: &Value) -> (i64, i64) {
    use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
    let text = at["answers"][0]["answer"]["response"]["base64"].as_str().unwrap();
    let words = BASE64.decode(text).unwrap();
    let word = |at: usize| i64::from_le_bytes(words[at..at + 8].try_into().unwrap());
    (word(0), word(8))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_runs_the_components_of_the_time() {
    let (mut cluster, dir) = cluster_of(&first(), &[]).await;
    let client = cluster.client();
    let initial_component = active(&client).await;
    for _ in 0..3 {
        count(&client).await.unwrap();
    }
    let component = push_ready(&client, second().component()).await;
    let activated = client.activate_component(&component, false).await.unwrap().index;
    for _ in 0..2 {
        count(&client).await.unwrap();
    }
    assert_eq!(all_agree(&cluster, &component).await, 5);
    for id in 1..=3 {
        cluster.stop(id);
    }
    let query = ["--query", "any", "{}"];
    let at = |to: u64, more: &[&str]| {
        replayed(&cluster, 1, &[&["--to", &to.to_string()][..], &query, more].concat())
    };
    let whole = replayed(&cluster, 1, &query);
    let last = whole["index"].as_u64().unwrap();
    assert_eq!((answered(&whole), &whole["components"][0]), ((5, 1), &json!(component)), "{whole}");
    let before = at(activated - 1, &[]);
    assert_eq!(
        (answered(&before), &before["components"][0]),
        ((3, 1), &json!(initial_component)),
        "{before}"
    );
    let after = at(activated, &[]);
    assert_eq!((answered(&after), &after["components"][0]), ((3, 1), &json!(component)), "{after}");

    let shown = replayed(&cluster, 1, &["--show", &activated.to_string()]);
    let entry = &shown["shown"][0];
    assert_eq!((&entry["kind"], &entry["activates"]), (&json!("activation"), &json!(component)));
    assert_eq!(
        (&entry["component"], &entry["outcome"]["reply"]),
        (&json!(initial_component), &json!(true))
    );

    // A component that counts by ten is applied to the whole log, in spite of the activations.
    let tens = conclave_testing::counters::version("tens", 10, 1, &[1]);
    let tens = write(&dir, "tens.wasm", &tens.component());
    // From the first entry on, so that the replay does not start from a snapshot of the
    // second component.
    let other = at(last, &["--entries", "1..", "--component", tens.to_str().unwrap()]);
    assert_eq!(answered(&other), (50, 10), "{other}");
    let compared =
        at(last, &["--entries", "1..", "--component", tens.to_str().unwrap(), "--compare"]);
    // The ticks that an activation schedules are not a difference.
    assert_eq!(compared["different"], json!(5), "{compared}");
}
