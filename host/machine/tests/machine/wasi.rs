//! A state machine that uses WASI observes only the log. A hand-written component calls every interface,
//! and its observations are compared with the entry, with other nodes and with restored nodes.

use std::sync::Arc;

use conclave_machine::{Component, Engine};
use conclave_types::{Call, Outcome, TrapKind};

use crate::{
    entry_source::MemorySource,
    printed::printed,
    support::{Node, limits, trap_kind},
};
use conclave_testing::wat::Wat;

/// All functions that `$probe` calls.
const IMPORTS: &str = r#"
  (import "wasi:clocks/wall-clock@0.2.12" "now" (func $wall (param i32)))
  (import "wasi:clocks/wall-clock@0.2.12" "resolution" (func $wall_resolution (param i32)))
  (import "wasi:clocks/monotonic-clock@0.2.0" "now" (func $monotonic (result i64)))
  (import "wasi:clocks/monotonic-clock@0.2.0" "subscribe-duration" (func $sleep (param i64) (result i32)))
  (import "wasi:io/poll@0.2.3" "[method]pollable.block" (func $block (param i32)))
  (import "wasi:io/poll@0.2.3" "[method]pollable.ready" (func $ready (param i32) (result i32)))
  (import "wasi:io/poll@0.2.3" "[resource-drop]pollable" (func $drop_pollable (param i32)))
  (import "wasi:io/poll@0.2.3" "poll" (func $poll (param i32 i32 i32)))
  (import "wasi:random/random@0.2.3" "get-random-bytes" (func $bytes (param i64 i32)))
  (import "wasi:random/random@0.2.3" "get-random-u64" (func $u64 (result i64)))
  (import "wasi:random/insecure@0.2.3" "get-insecure-random-u64" (func $insecure_u64 (result i64)))
  (import "wasi:random/insecure-seed@0.2.3" "insecure-seed" (func $seed (param i32)))
  (import "wasi:cli/environment@0.2.3" "get-environment" (func $environment (param i32)))
  (import "wasi:cli/environment@0.2.3" "get-arguments" (func $arguments (param i32)))
  (import "wasi:cli/environment@0.2.3" "initial-cwd" (func $cwd (param i32)))
  (import "wasi:cli/terminal-stdin@0.2.3" "get-terminal-stdin" (func $terminal (param i32)))
  (import "wasi:cli/stdin@0.2.3" "get-stdin" (func $stdin (result i32)))
  (import "wasi:io/streams@0.2.3" "[method]input-stream.blocking-read" (func $read (param i32 i64 i32)))
  (import "wasi:io/streams@0.2.3" "[resource-drop]input-stream" (func $drop_input (param i32)))
  (import "wasi:cli/stdout@0.2.3" "get-stdout" (func $stdout (result i32)))
  (import "wasi:io/streams@0.2.3" "[method]output-stream.check-write" (func $check (param i32 i32)))
  (import "wasi:io/streams@0.2.3" "[method]output-stream.write" (func $write (param i32 i32 i32 i32)))
  (import "wasi:io/streams@0.2.3" "[resource-drop]output-stream" (func $drop_output (param i32)))
  (import "wasi:filesystem/preopens@0.2.3" "get-directories" (func $directories (param i32)))
  (import "wasi:sockets/instance-network@0.2.3" "instance-network" (func $network (result i32)))
  (import "wasi:sockets/network@0.2.3" "[resource-drop]network" (func $drop_network (param i32)))
  (import "wasi:sockets/tcp-create-socket@0.2.3" "create-tcp-socket" (func $tcp (param i32 i32)))
  (import "wasi:sockets/udp-create-socket@0.2.3" "create-udp-socket" (func $udp (param i32 i32)))
  (import "wasi:sockets/ip-name-lookup@0.2.3" "resolve-addresses" (func $resolve (param i32 i32 i32 i32)))
"#;

/// Writes its observations to the given address, eight bytes each, in the order of [`Seen`].
const PROBE: &str = r#"
  (func $probe (param i32) (local i32 i32)
    (call $wall (i32.const 3000))
    (call $put (local.get 0) (i32.const 0) (i64.load (i32.const 3000)))
    (call $put (local.get 0) (i32.const 1) (i64.load32_u (i32.const 3008)))
    (call $put (local.get 0) (i32.const 2) (call $monotonic))
    (call $put (local.get 0) (i32.const 3) (call $u64))
    (call $put (local.get 0) (i32.const 4) (call $insecure_u64))
    (call $seed (i32.const 3000))
    (call $put (local.get 0) (i32.const 5) (i64.load (i32.const 3000)))
    (call $bytes (i64.const 16) (i32.const 3000))
    (call $put (local.get 0) (i32.const 6) (i64.load (i32.load (i32.const 3000))))
    (call $put (local.get 0) (i32.const 7) (i64.load32_u (i32.const 3004)))
    ;; Nothing: lengths of lists, discriminants of options.
    (call $environment (i32.const 3000)) (local.set 1 (i32.load (i32.const 3004)))
    (call $arguments (i32.const 3000)) (local.set 1 (i32.or (local.get 1) (i32.load (i32.const 3004))))
    (call $directories (i32.const 3000)) (local.set 1 (i32.or (local.get 1) (i32.load (i32.const 3004))))
    (call $cwd (i32.const 3000)) (local.set 1 (i32.or (local.get 1) (i32.load8_u (i32.const 3000))))
    (call $terminal (i32.const 3000)) (local.set 1 (i32.or (local.get 1) (i32.load8_u (i32.const 3000))))
    (call $put (local.get 0) (i32.const 8) (i64.extend_i32_u (local.get 1)))
    ;; A wait for an hour, twice over.
    (local.set 1 (call $sleep (i64.const 3600000000000)))
    (call $block (local.get 1))
    (i32.store (i32.const 3100) (local.get 1)) (i32.store (i32.const 3104) (local.get 1))
    (call $poll (i32.const 3100) (i32.const 2) (i32.const 3000))
    (call $put (local.get 0) (i32.const 9)
      (i64.add (i64.mul (i64.load32_u (i32.const 3004)) (i64.const 10)) (i64.extend_i32_u (call $ready (local.get 1)))))
    (call $drop_pollable (local.get 1))
    (call $put (local.get 0) (i32.const 10) (call $monotonic))
    ;; Errors: the discriminant, then the case.
    (local.set 1 (call $stdin))
    (call $read (local.get 1) (i64.const 100) (i32.const 3000))
    (call $put (local.get 0) (i32.const 11)
      (i64.add (i64.mul (i64.load8_u (i32.const 3000)) (i64.const 100)) (i64.load8_u (i32.const 3004))))
    (call $drop_input (local.get 1))
    (call $tcp (i32.const 0) (i32.const 3000))
    (call $put (local.get 0) (i32.const 12)
      (i64.add (i64.mul (i64.load8_u (i32.const 3000)) (i64.const 100)) (i64.load8_u (i32.const 3004))))
    (call $udp (i32.const 1) (i32.const 3000))
    (call $put (local.get 0) (i32.const 13)
      (i64.add (i64.mul (i64.load8_u (i32.const 3000)) (i64.const 100)) (i64.load8_u (i32.const 3004))))
    (local.set 1 (call $network))
    (call $resolve (local.get 1) (i32.const 1024) (i32.const 4) (i32.const 3000))
    (call $put (local.get 0) (i32.const 14)
      (i64.add (i64.mul (i64.load8_u (i32.const 3000)) (i64.const 100)) (i64.load8_u (i32.const 3004))))
    (call $drop_network (local.get 1))
    (local.set 1 (call $stdout))
    (call $check (local.get 1) (i32.const 3000))
    (call $put (local.get 0) (i32.const 15)
      (i64.add (i64.shl (i64.load8_u (i32.const 3000)) (i64.const 32)) (i64.load (i32.const 3008))))
    (call $drop_output (local.get 1))
    (call $wall_resolution (i32.const 3000))
    (call $put (local.get 0) (i32.const 16) (i64.load32_u (i32.const 3008))))
  (func $put (param i32 i32 i64)
    (i64.store (i32.add (local.get 0) (i32.mul (local.get 1) (i32.const 8))) (local.get 2)))
"#;

/// The observations of one call: [`COUNT`] numbers.
type Seen = [u64; COUNT];
const COUNT: usize = 17;

/// Returns the component. `describe` probes to address 5000, and `apply` to 4000. `apply` answers
/// with both probes, `query` with a new one.
fn probing() -> Wat {
    Wat {
        name: "wasi",
        imports: IMPORTS,
        more: format!(
            "{PROBE}
             (func $answer (i32.store (i32.const 264) (i32.const 4000)) (i32.store (i32.const 268) (i32.const 2000)))"
        ),
        describe: "(call $probe (i32.const 5000)) (i32.const 64)",
        apply: "(call $probe (i32.const 4000)) (call $answer) (i32.const 256)",
        query: "(call $probe (i32.const 4000)) (i32.store8 (i32.const 512) (i32.const 0))
                (i32.store (i32.const 516) (i32.const 4000)) (i32.store (i32.const 520) (i32.const 2000))
                (i32.const 512)",
        ..Wat::default()
    }
}

fn load(wat: &Wat) -> Component {
    Component::load(&Engine::new(&limits()).unwrap(), wat.component()).unwrap()
}

fn call(request: &'static [u8]) -> Call {
    Call { method: "probe".into(), request: request.into(), principal: "".into() }
}

/// Returns the observations of a call, and those of `describe` in the same instance.
fn seen(response: &[u8]) -> [Seen; 2] {
    [0, 1000].map(|at| {
        std::array::from_fn(|number| {
            let at = at + 8 * number;
            u64::from_le_bytes(response[at..at + 8].try_into().unwrap())
        })
    })
}

async fn apply(node: &mut Node) -> [Seen; 2] {
    match node.apply(call(b"")).await {
        Outcome::Reply(reply) => seen(&reply.response),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_interface_shows_the_entry_and_nothing_else() {
    let component = load(&probing());
    assert!(component.imports().iter().any(|import| import == "wasi:random/insecure-seed@0.2.3"));
    let mut node = Node::start_with(component.clone());
    let [first, described] = apply(&mut node).await;
    // The test's entries are ten milliseconds apart, starting from zero.
    assert_eq!((first[0], first[1]), (0, 10_000_000), "the wall clock");
    assert_eq!(first[2], 10_000_000, "the monotonic clock");
    assert_eq!(first[10], first[2], "time does not pass, even if one waits for it");
    assert_eq!(first[7], 16, "random bytes");
    assert!(first[3] != first[4] && first[4] != first[6], "one stream, not one number");
    assert_eq!(first[8], 0, "no variables, arguments, directories, terminal");
    assert_eq!(first[9], 21, "two pollables were ready, and the one");
    assert_eq!(first[11], 101, "the input is closed");
    assert_eq!((first[12], first[13]), (102, 102), "sockets: not-supported");
    assert_eq!(first[14], 118, "names: name-unresolvable");
    assert_eq!(first[15], 64 << 10, "there is room for output");
    assert_eq!(first[16], 1_000_000, "the log counts milliseconds");
    assert_eq!((described[0], described[1]), (946_684_800, 0), "described: the year 2000");

    let [second, _] = apply(&mut node).await;
    assert_eq!(second[2], 20_000_000);
    for random in [3, 4, 6] {
        assert_ne!(first[random], second[random], "another entry, other numbers");
    }
    assert_eq!(first[5], second[5], "the seed of hash tables is a constant");
    assert_eq!(first[5], described[5]);

    // A query gets the last entry's time and stream, on the other instance.
    let answered = node.worker.query(call(b""), node.index).await.unwrap();
    assert_eq!(seen(&answered.result.unwrap())[0], second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_agree_whether_they_lived_through_the_log_or_were_restored() {
    let component = load(&probing());
    let mut lived = Node::start_with(component.clone());
    let mut first = Vec::new();
    for _ in 0..5 {
        first.push(apply(&mut lived).await);
    }
    let saved = lived.snapshot().await;
    let entry_source = Arc::new(MemorySource::new());
    entry_source.install(saved.clone());
    let mut restored = Node::start_from(component.clone(), entry_source, Some(saved.state()));
    for _ in 0..3 {
        assert_eq!(apply(&mut lived).await, apply(&mut restored).await);
    }
    let mut fresh = Node::start_with(component);
    for expected in first {
        assert_eq!(apply(&mut fresh).await, expected);
    }
    // The standby, which follows the primary, has found no difference either.
    assert_eq!((lived.worker.fatal_error(), restored.worker.fatal_error()), (None, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_machine_may_do_is_a_trap_and_the_next_entry_is_applied() {
    let wat = Wat {
        name: "wasi",
        imports: r#"
          (import "wasi:cli/exit@0.2.3" "exit" (func $exit (param i32)))
          (import "wasi:cli/exit@0.2.3" "exit-with-code" (func $exit_with (param i32)))
          (import "wasi:random/random@0.2.3" "get-random-bytes" (func $bytes (param i64 i32)))
          (import "wasi:clocks/monotonic-clock@0.2.0" "now" (func $now (result i64)))
          (import "wasi:cli/stdout@0.2.3" "get-stdout" (func $stdout (result i32)))
          (import "wasi:io/streams@0.2.3" "[method]output-stream.write" (func $write (param i32 i32 i32 i32)))
        "#,
        // The length of the request selects the case.
        apply: "(if (i32.eq (local.get 8) (i32.const 1)) (then (call $exit (i32.const 0))))
                (if (i32.eq (local.get 8) (i32.const 2)) (then (call $exit_with (i32.const 7))))
                (if (i32.eq (local.get 8) (i32.const 3)) (then (call $bytes (i64.const -1) (i32.const 3000))))
                (if (i32.eq (local.get 8) (i32.const 4)) (then
                  (loop $wait (br_if $wait (i64.lt_u (call $now) (i64.const 9000000000000000000))))))
                (if (i32.eq (local.get 8) (i32.const 5)) (then
                  (loop $print
                    (call $write (call $stdout) (i32.const 1024) (i32.const 4) (i32.const 3000)) (br $print))))
                (if (i32.eq (local.get 8) (i32.const 6)) (then
                  (call $write (call $stdout) (i32.const -8) (i32.const 100) (i32.const 3000))))
                (i32.const 256)",
        ..Wat::default()
    };
    let mut node = Node::start_with(load(&wat));
    for (request, kind, words) in [
        (&b"1"[..], TrapKind::Panic, "the state machine exited with code 0"),
        (b"22", TrapKind::Panic, "exited with code 7"),
        (b"333", TrapKind::Invalid, "random bytes at once"),
        (b"4444", TrapKind::FuelExhausted, "fuel"),
        // A handle is leaked with each line, and a thousand are allowed.
        (b"55555", TrapKind::BadAnswer, "ABI"),
        (b"666666", TrapKind::BadAnswer, ""),
    ] {
        let outcome = node.apply(call(request)).await;
        let Outcome::Trap(trap) = &outcome else { panic!("{outcome:?}") };
        assert_eq!(trap_kind(&outcome), kind, "{trap:?}");
        assert!(trap.message.contains(words), "{trap:?}");
        assert!(matches!(node.apply(call(b"")).await, Outcome::Reply(_)));
    }
    assert_eq!(node.worker.fatal_error(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_machine_prints_is_lines_of_the_log_once_and_not_too_many() {
    let wat = Wat {
        name: "wasi",
        imports: r#"
          (import "wasi:cli/stdout@0.2.3" "get-stdout" (func $stdout (result i32)))
          (import "wasi:cli/stderr@0.2.3" "get-stderr" (func $stderr (result i32)))
          (import "wasi:io/streams@0.2.3" "[method]output-stream.blocking-write-and-flush"
            (func $write (param i32 i32 i32 i32)))
          (import "wasi:io/streams@0.2.3" "[resource-drop]output-stream" (func $drop (param i32)))
        "#,
        // Writes the request to both streams, to the second in halves of a line.
        apply: "(local.set 9 (call $stdout))
                (call $write (local.get 9) (local.get 7) (local.get 8) (i32.const 3000))
                (call $drop (local.get 9))
                (local.set 9 (call $stderr))
                (call $write (local.get 9) (local.get 7) (i32.const 4) (i32.const 3000))
                (call $write (local.get 9) (i32.add (local.get 7) (i32.const 4))
                  (i32.sub (local.get 8) (i32.const 4)) (i32.const 3000))
                (call $drop (local.get 9)) (i32.const 256)",
        ..Wat::default()
    };
    printed();
    let mut node = Node::start_with(load(&wat));
    node.apply(call(b"wasi-one\nwasi-\x1b[2Jtwo\xff, with no end")).await;
    let log = printed();
    for (level, line) in [(" INFO", "wasi-one"), (" WARN", "wasi-one")] {
        let line = format!("machine: {line} ");
        let found = log.lines().filter(|found| found.contains(level) && found.contains(&line));
        assert_eq!(found.count(), 1, "of {line}:\n{log}");
    }
    let second = "wasi- [2Jtwo\u{fffd}, with no end";
    assert_eq!(log.matches(second).count(), 2, "{log}");

    // More than the burst of a hundred lines. The standby, which applies the entries too, is silent.
    for _ in 0..200 {
        node.apply(call(b"wasi-many\n")).await;
    }
    node.until("the standby follows", |node| {
        node.worker.metrics().standby_applied.get() as u64 == node.index
    })
    .await;
    let many = printed().matches("wasi-many").count();
    assert!((50..=350).contains(&many), "{many} of 400");
    assert_eq!(node.worker.fatal_error(), None);
}
