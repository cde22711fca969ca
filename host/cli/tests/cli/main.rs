//! The binary's verbs: stdout, and the exit codes on which scripts rely. Client verbs run against a
//! small store in this process with the limits of `kv.v1.KV`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod check;
mod check_fails;
mod projects;
mod store;

use std::{
    io::{Read, Write},
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};
use store::Store;

/// Runs `conclave` against the store.
fn conclave(store: &Store, arguments: &[&str]) -> Output {
    with_stdin(store, arguments, b"")
}

fn with_stdin(store: &Store, arguments: &[&str], stdin: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_conclave"))
        .args(arguments)
        .args(["--endpoints", &store.address, "--timeout", "2s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    child.wait_with_output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

#[test]
fn a_value_comes_back_as_it_was_put() {
    let store = Store::start();
    assert_eq!(code(&conclave(&store, &["kv", "put", "color", "grün"])), 0);
    assert_eq!(out(&conclave(&store, &["kv", "get", "color"])), "grün\n");
    assert_eq!(out(&conclave(&store, &["kv", "get", "color", "--raw"])), "grün");

    with_stdin(&store, &["kv", "put", "raw", "-"], &[0xff, 0, 1]);
    assert_eq!(conclave(&store, &["kv", "get", "raw", "--raw"]).stdout, [0xff, 0, 1]);
    let refused = conclave(&store, &["kv", "get", "raw"]);
    assert_eq!(code(&refused), 1);
    assert!(err(&refused).contains("--raw"), "{}", err(&refused));
    let json: Value =
        serde_json::from_str(&out(&conclave(&store, &["kv", "get", "raw", "--json"]))).unwrap();
    assert_eq!(json["value"], "/wAB");
}

#[test]
fn a_missing_key_has_an_exit_code_of_its_own() {
    let store = Store::start();
    let missing = conclave(&store, &["kv", "get", "nothing"]);
    assert_eq!((code(&missing), out(&missing).as_str()), (3, ""));
    let missing = conclave(&store, &["kv", "get", "nothing", "--json"]);
    let error: Value = serde_json::from_str(&err(&missing)).unwrap();
    assert_eq!(error["error"]["code"], "NOT_FOUND");
}

#[test]
fn wrong_usage_and_a_dead_cluster_differ() {
    let store = Store::start();
    assert_eq!(code(&conclave(&store, &["kv", "put", "key"])), 2);
    assert_eq!(code(&conclave(&store, &["call", "kv.v1.KV/Put", "{"])), 2);
    store.stop();
    let dead = conclave(&store, &["kv", "get", "key"]);
    assert_eq!(code(&dead), 5, "no effect, and worth another try");
    assert_eq!(err(&dead).lines().count(), 1, "{}", err(&dead));
}

#[test]
fn keys_are_listed_page_by_page() {
    let store = Store::start();
    for at in 0..1234 {
        store.insert(&format!("many/{at:04}"), "x");
    }
    store.insert("other", "y");
    let lines = out(&conclave(&store, &["kv", "list", "many/", "--keys-only"]));
    assert_eq!(lines.lines().count(), 1234);
    assert_eq!(lines.lines().last(), Some("many/1233"));
    let lines = out(&conclave(&store, &["kv", "list", "--limit", "700", "--json"]));
    let json: Vec<Value> = serde_json::from_str(&lines).unwrap();
    assert_eq!((json.len(), &json[699]["key"]), (700, &json!("many/0699")));
    assert_eq!(out(&conclave(&store, &["kv", "list", "none/", "--json"])), "[]\n");
}

#[test]
fn deleting_what_is_not_there_is_no_failure() {
    let store = Store::start();
    store.insert("a", "1");
    let deleted = conclave(&store, &["kv", "delete", "a", "b", "--json"]);
    assert_eq!(code(&deleted), 0);
    let json: Value = serde_json::from_str(&out(&deleted)).unwrap();
    assert_eq!(json, json!({"deleted": 1, "keys": 2}));
}

#[test]
fn a_document_is_imported_whole_and_again() {
    let store = Store::start();
    let numbers: Vec<_> = (0..3000).collect();
    let document = json!({"app": {"name": "demo", "numbers": numbers, "none": {}}, "a/b": null});
    for _ in 0..2 {
        let arguments = ["kv", "import", "-", "--prefix", "p/"];
        let imported = with_stdin(&store, &arguments, document.to_string().as_bytes());
        assert_eq!(code(&imported), 0, "{}", err(&imported));
        assert!(out(&imported).starts_with("3003 of 3003 keys written"), "{}", out(&imported));
    }
    assert_eq!(store.get("p/app/name").unwrap(), "demo");
    assert_eq!(store.get("p/app/numbers/2999").unwrap(), "2999");
    assert_eq!(store.get("p/app/none").unwrap(), "{}");
    assert_eq!(store.get("p/a~1b").unwrap(), "null");
}

/// Goal: refused keys are named, and all others are written.
#[test]
fn refused_keys_are_named_and_the_rest_is_written() {
    let store = Store::start();
    let mut document: serde_json::Map<_, _> =
        (0..500).map(|at| (format!("key-{at:03}"), json!(at))).collect();
    document.insert("key-250".to_owned(), json!("x".repeat((1 << 20) + 1)));
    document.insert("refuse-me".to_owned(), json!(1));
    document.insert("l".repeat(5000), json!(1));
    document.insert(String::new(), json!(1));
    let document = Value::Object(document).to_string();
    let imported = with_stdin(&store, &["kv", "import", "-"], document.as_bytes());
    assert_eq!(code(&imported), 1);
    assert!(out(&imported).starts_with("499 of 503 keys written"), "{}", out(&imported));
    let remarks = err(&imported);
    for named in ["\"\"", "\"key-250\"", "\"refuse-me\"", "\"lll"] {
        assert!(remarks.contains(named), "{named} is not in: {remarks}");
    }
    assert_eq!(store.get("key-499").unwrap(), "499");
}

/// Goal: an import that cannot continue names the first key that was not written.
#[test]
fn an_import_that_stops_says_where() {
    let store = Store::start();
    store.stop();
    let imported = with_stdin(&store, &["kv", "import", "-"], br#"{"a": {"b": 1, "c": 2}}"#);
    assert_eq!(code(&imported), 5, "nothing was written");
    assert!(out(&imported).starts_with("0 of 2 keys written"), "{}", out(&imported));
    assert!(err(&imported).contains("the first key not written is \"a/b\""), "{}", err(&imported));
}

/// Goal: a verb ends when its reader is gone, and fails when the disk is full. Method: a listing
/// with more pages than fit into the pipe.
#[test]
fn a_listing_ends_with_its_reader() {
    let store = Store::start();
    for at in 0..20_000 {
        store.insert(&format!("many/{at:05}"), &"x".repeat(100));
    }
    let list = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_conclave"));
        command.args(["kv", "list", "many/", "--endpoints", &store.address]);
        command
    };
    let mut child = list().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((code(&output), err(&output).as_str()), (0, ""));
    let read = store.ranges();
    assert_eq!(code(&list().output().unwrap()), 0);
    let whole = store.ranges() - read;
    assert!(read < whole / 2, "{read} of {whole} pages were read for nothing");

    for arguments in [&["kv", "list", "many/"][..], &["kv", "get", "many/00000", "--raw"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_conclave"));
        command.args(arguments).args(["--endpoints", &store.address]).stdout(full);
        let output = command.output().unwrap();
        assert_eq!(code(&output), 1, "{}", err(&output));
        assert!(err(&output).contains("standard output"), "{}", err(&output));
    }
}
