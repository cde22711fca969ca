//! Goal: the verbs' output and exit codes for a node's responses, for scripts and on terminals.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    dead_code,
    reason = "tests; those of the ports use all of the fake node"
)]

#[path = "../../../api/tests/api/fake.rs"]
mod fake;
#[path = "../../../api/tests/api/fake_components.rs"]
mod fake_components;
#[path = "../../../api/tests/api/protos.rs"]
mod protos;

use conclave_types::{Code as MachineCode, Failure, Outcome, Trap, TrapKind, error::Error};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::fake::{Node, Script};

struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

async fn conclave(node: &Node, arguments: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_conclave"));
    let endpoint = node.client.to_string();
    let output = command.args(arguments).args(["--endpoints", &endpoint]).output().await.unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A script must be able to decide without reading English whether to send a write again.
#[tokio::test(flavor = "multi_thread")]
async fn errors_say_whether_a_write_had_an_effect() {
    let node = Node::start().await;
    let trap = Trap { kind: TrapKind::Panic, message: "boom".to_owned() };
    let failure = Failure { code: MachineCode::Aborted, message: "no".to_owned() };
    let cases = [
        (Script::Refuse(Error::deadline_outcome_unknown), 4, json!("unknown"), "DEADLINE_EXCEEDED"),
        (Script::Refuse(|| Error::lost("the leader changed")), 4, json!("unknown"), "UNKNOWN"),
        (Script::Refuse(Error::no_quorum), 5, json!("not-applied"), "UNAVAILABLE"),
        (Script::Outcome(Outcome::Trap(trap)), 1, json!("not-applied"), "INTERNAL"),
        (Script::Outcome(Outcome::Failure(failure)), 1, Value::Null, "ABORTED"),
    ];
    for (script, code, outcome, name) in cases {
        node.script(script);
        let call = ["call", "kv.v1.KV/Put", "{}", "--json", "--timeout", "600ms"];
        let ended = conclave(&node, &call).await;
        let error: Value = serde_json::from_str(&ended.stderr).unwrap();
        let error = &error["error"];
        assert_eq!((ended.code, &error["outcome"]), (Some(code), &outcome), "{error}");
        assert_eq!(error["code"], name);
        assert_eq!(ended.stdout, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_of_servers_do_not_drive_the_terminal() {
    let node = Node::start().await;
    let message = "red \u{1b}[31m, \u{9b}2J and a bell \u{7}".to_owned();
    node.script(Script::Outcome(Outcome::Failure(Failure {
        code: MachineCode::Internal,
        message,
    })));
    let ended = conclave(&node, &["call", "kv.v1.KV/Put", "{}"]).await;
    assert!(ended.stderr.contains("red \\u{1b}[31m, \\u{9b}2J"), "{:?}", ended.stderr);
    assert!(!ended.stderr.trim_end().contains(char::is_control), "{:?}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_is_described_for_scripts() {
    let node = Node::start().await;
    let ended = conclave(&node, &["call", "--describe", "kv.v1.KV/Put", "--json"]).await;
    let described: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(
        (&described["name"], &described["kind"]),
        (&json!("kv.v1.KV/Put"), &json!("command"))
    );
    let weight = json!({
        "name": "weight", "number": 3, "type": "double", "repeated": false, "oneof": null,
    });
    assert_eq!(described["request"]["fields"][2], weight);
    assert_eq!(described["response"]["name"], "kv.v1.PutResponse");
}

/// A state machine receives the number on the command line exactly. Regression: this number was
/// read as its neighbour.
#[tokio::test(flavor = "multi_thread")]
async fn a_number_on_the_command_line_arrives_exactly() {
    const WEIGHT: f64 = 9.204938554384977;
    let node = Node::start().await;
    let request = format!("{{\"weight\": {WEIGHT}}}");
    let called = Command::new(env!("CARGO_BIN_EXE_conclave"))
        .args(["call", "kv.v1.KV/Put", &request, "--endpoints", &node.client.to_string()])
        .output()
        .await
        .unwrap();
    assert!(called.status.success(), "{}", String::from_utf8_lossy(&called.stderr));
    let seen = node.fake.seen.lock().unwrap();
    // Field 3, eight bytes.
    assert_eq!(seen[0].0.request, [&[0x19][..], &WEIGHT.to_le_bytes()].concat());
}
