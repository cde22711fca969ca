//! State machines in other languages. Each is compiled by its language's own compiler and must be a
//! function of the log, although its standard library reads the time and random numbers.
//!
//! All are the same raffle. `Enter` gives a name a ticket. `Draw` draws a name by chance and
//! returns it with the time. `Unsorted` returns the order of a hash table, as no state machine
//! should. `Panic` clears the state and panics. The compilers are downloaded at pinned versions to
//! a directory below the target directory, where they stay. If a download is impossible, the test
//! reports that and is skipped.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests: a failure is a panic"
)]

#[path = "../../../machine/tests/machine/entry_source.rs"]
#[allow(dead_code, reason = "the tests of the machine layer use all of it")]
mod entry_source;
mod go;
mod javascript;
mod rust;
#[path = "../../../machine/tests/machine/support.rs"]
#[allow(dead_code, reason = "the tests of the machine layer use all of it")]
mod support;
mod toolchains;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use conclave_machine::{Component, Engine};
use conclave_types::{Call, Outcome, TrapKind};
use serde_json::{Value, json};

use crate::{
    entry_source::MemorySource,
    support::{Node, limits, trap_kind},
};

/// The reason why a compiler is not available here.
type Missing = String;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Returns the directory in which downloaded and compiled files stay from run to run.
fn scratch() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("languages")
}

/// Reports a skipped test, even in a run that passes, where libtest captures the output of the
/// print macros.
fn skip(what: &str, why: &str) {
    let line = format!("skipped: {what}: {}\n", why.trim_end());
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Copies a project, so that a build writes nothing into this repository.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true if entry.file_name() == "target" => {}
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

fn conclave() -> Command {
    Command::new(env!("CARGO_BIN_EXE_conclave"))
}

/// Runs a command that must succeed.
fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let said = [&output.stdout[..], &output.stderr].concat();
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&said));
    output
}

fn call(method: &str, request: &str) -> Call {
    Call {
        method: format!("raffle.v1.Raffle/{method}").into(),
        request: request.as_bytes().to_vec().into(),
        principal: "".into(),
    }
}

fn answer(outcome: Outcome) -> String {
    match outcome {
        Outcome::Reply(reply) => String::from_utf8(reply.response.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn ask(node: &Node, method: &str) -> String {
    let answered = node.worker.query(call(method, ""), node.index).await.unwrap();
    String::from_utf8(answered.result.unwrap().to_vec()).unwrap()
}

const NAMES: [&str; 9] =
    ["ada", "alan", "barbara", "edsger", "grace", "john", "ken", "niklaus", "tony"];

/// Goal: the component has its name and version, gives the same results on nodes that applied
/// the whole log and on a restored one, and `conclave check` finds nothing except the order of a
/// hash table.
async fn assert_is_a_function_of_the_log(component: &Path) {
    let loaded =
        Component::load(&Engine::new(&limits()).unwrap(), fs::read(component).unwrap().into());
    let loaded = loaded.unwrap();
    let mut lived = Node::start_with(loaded.clone());
    let mut again = Node::start_with(loaded.clone());
    for name in NAMES.into_iter().chain(NAMES) {
        let entered = lived.apply(call("Enter", name)).await;
        assert_eq!(entered, again.apply(call("Enter", name)).await);
    }
    let refused = lived.apply(call("Enter", "")).await;
    assert!(matches!(refused, Outcome::Failure(_)), "{refused:?}");
    assert_eq!(refused, again.apply(call("Enter", "")).await);

    let mut drawn = Vec::new();
    for _ in 0..4 {
        let winner = answer(lived.apply(call("Draw", "")).await);
        assert_eq!(winner, answer(again.apply(call("Draw", "")).await));
        let (name, at_ms) = winner.split_once(' ').unwrap();
        assert_eq!(at_ms, (lived.index * 10).to_string(), "the entry's time");
        drawn.push(name.to_owned());
    }
    assert_ne!(drawn, NAMES[..4], "by chance, and not in order");
    assert!(drawn.iter().all(|name| NAMES.contains(&name.as_str())), "{drawn:?}");

    let saved = lived.snapshot().await;
    assert_eq!(saved, again.snapshot().await);
    let entry_source = Arc::new(MemorySource::new());
    entry_source.install(saved.clone());
    let mut restored = Node::start_from(loaded, entry_source, Some(saved.state()));
    let names = ask(&lived, "Names").await;
    assert_eq!(names.split(' ').count(), NAMES.len() - drawn.len());
    assert_eq!(names, ask(&restored, "Names").await);
    let trapped = lived.apply(call("Panic", "")).await;
    assert_eq!(trap_kind(&trapped), TrapKind::Panic, "{trapped:?}");
    assert_eq!(trapped, restored.apply(call("Panic", "")).await);
    assert_eq!(names, ask(&lived, "Names").await, "a trap leaves no trace");
    for (method, request) in [("Enter", "donald"), ("Draw", ""), ("Enter", "ada"), ("Draw", "")] {
        let outcome = lived.apply(call(method, request)).await;
        answer(outcome.clone());
        assert_eq!(outcome, restored.apply(call(method, request)).await, "{method}");
    }
    assert_eq!(lived.snapshot().await.bytes, restored.snapshot().await.bytes);
    assert_eq!((lived.worker.fatal_error(), restored.worker.fatal_error()), (None, None));
    assert_passes_its_checks(component);
}

/// Runs `conclave inspect`, and `conclave check` with calls of every kind.
fn assert_passes_its_checks(component: &Path) {
    let inspected = run(conclave().arg("inspect").arg(component).arg("--json"));
    let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(inspected["name"], "raffle");
    let imports = inspected["imports"].as_array().unwrap();
    let imported =
        |name: &str| imports.iter().any(|import| import.as_str().unwrap().starts_with(name));
    assert!(imported("wasi:clocks/wall-clock@0.2."), "{imports:?}");
    assert!(imported("wasi:cli/stdout@0.2."), "{imports:?}");

    let line = |(at, method, request): (usize, &str, &str)| {
        let kind = if method == "Names" { "query" } else { "command" };
        let method = format!("raffle.v1.Raffle/{method}");
        let request = BASE64.encode(request);
        let time_ms = 1_750_000_000_000 + 17 * at as u64;
        json!({"method": method, "kind": kind, "request_base64": request, "time_ms": time_ms})
            .to_string()
    };
    let mut log = Vec::new();
    for (at, name) in NAMES.into_iter().cycle().take(45).enumerate() {
        log.push(line((at, "Enter", name)));
        match at % 6 {
            2 => log.push(line((at, "Names", ""))),
            5 => log.push(line((at, "Draw", ""))),
            _ => {}
        }
    }
    let file = component.with_extension("calls");
    let check = |log: &[String]| {
        fs::write(&file, log.join("\n")).unwrap();
        let mut check = conclave();
        check
            .arg("check")
            .arg(component)
            .arg("--calls")
            .arg(&file)
            .args(["--shrink", "0", "--json"]);
        let output = check.output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    };
    let report = check(&log);
    assert_eq!(report["ok"], true, "{report:#}");

    log.push(line((45, "Unsorted", "")));
    let report = check(&log);
    let found =
        report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "restore");
    assert_eq!(found.unwrap()["verdict"], "failed", "{report:#}");
}
