//! Goal: every error that wasmtime may raise in a call is classified, also after an upgrade.
//! Method: the errors of the pinned version are read from its source in cargo's registry and
//! compared with the table. Errors that are missing from the table are listed here with the reason.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use wasmtime::component::{Component, Linker};

use super::*;
use crate::Engine;

/// Parts of wasmtime whose errors do not occur in a call, by the beginning of their path.
const NOT_READ: [(&str, &str); 6] = [
    ("component/concurrent", "component async is off"),
    ("component/instance.rs", "exports are looked up before any call"),
    ("component/linker.rs", "imports are linked before any call"),
    ("component/matching.rs", "types are compared before any call"),
    ("component/types.rs", "types are compared before any call"),
    ("component/values.rs", "values without static types are not used"),
];

/// Beginnings of messages that do not occur in a call.
const NOT_IN_A_CALL: [(&str, &str); 33] = [
    ("byte length overflow", "the host passes at most 16 MiB"),
    ("cannot drop busy", "component async is off"),
    ("cannot lower a `borrow` resource into an `own`", "a mistake of the host"),
    ("cannot remove busy", "component async is off"),
    ("cannot synchronously call an async-lifted export", "component async is off"),
    ("case `{name}` has", "types are compared before any call"),
    ("expected `", "types are compared before any call"),
    ("expected enum", "types are compared before any call"),
    ("expected flag", "types are compared before any call"),
    ("expected no `", "types are compared before any call"),
    ("expected record", "types are compared before any call"),
    ("expected variant", "types are compared before any call"),
    ("expected {", "types are compared before any call"),
    ("failed to find function export", "exports are looked up before any call"),
    ("handle is a future", "component async is off"),
    ("handle is a stream", "component async is off"),
    ("handle is not a future", "component async is off"),
    ("handle is not a guest thread", "component async is off"),
    ("handle is not a readable end", "component async is off"),
    ("handle is not a stream", "component async is off"),
    ("handle is not a subtask", "component async is off"),
    ("handle is not a waitable", "component async is off"),
    ("handle is not an error-context", "component async is off"),
    ("handle is not an waitable-set", "component async is off"),
    ("host resource already consumed", "a mistake of the host"),
    ("host-owned resource was already de-allocated", "a mistake of the host"),
    ("map pointer", "the contract has no maps"),
    ("mismatched resource types", "types are compared before any call"),
    ("passed read end to", "component async is off"),
    ("resource type mismatch", "types are compared before any call"),
    ("size overflow copying a", "the host passes at most 16 MiB"),
    ("string length of {} too large to copy", "the host passes at most 16 MiB"),
    ("type mismatch with async", "types are compared before any call"),
];

/// Errors with a type, which the source names. They are traps, or their text is in the table.
const TYPED: [&str; 5] = [
    "HostcallFuelExhausted",
    "ResourceTypeMismatch",
    "Trap::CannotEnterComponent",
    "crate::Trap::CannotEnterComponent",
    "e",
];

/// Traps that are not outcomes.
const NOT_OUTCOMES: [(&str, &str); 30] = [
    ("AsyncDeadlock", "component async is off"),
    ("AtomicWaitNonSharedMemory", "threads are off"),
    ("BackpressureOverflow", "component async is off"),
    ("CannotBlockSyncTask", "component async is off"),
    ("CannotResumeThread", "component async is off"),
    ("ConcurrentFutureStreamOp", "component async is off"),
    ("ContinuationAlreadyConsumed", "stack switching is off"),
    ("DebugAssertEqualCodeUnits", "adapters are not compiled for debugging"),
    ("DebugAssertPointerAligned", "adapters are not compiled for debugging"),
    ("DebugAssertStringEncodingFinished", "adapters are not compiled for debugging"),
    ("DebugAssertUpperBitsUnset", "adapters are not compiled for debugging"),
    ("DisabledOpcode", "only the interpreter raises it"),
    ("HeapMisaligned", "threads are off"),
    ("Interrupt", "this node stops"),
    ("NoAsyncResult", "component async is off"),
    ("ReferenceCountOverflow", "component async is off"),
    ("StreamOpTooBig", "component async is off"),
    ("SubtaskCancelAfterTerminal", "component async is off"),
    ("SubtaskDropNotResolved", "component async is off"),
    ("TaskCancelNotCancelled", "component async is off"),
    ("TaskCancelOrReturnTwice", "component async is off"),
    ("TaskReturnInvalid", "component async is off"),
    ("ThreadNewIndirectInvalidType", "component async is off"),
    ("ThreadNewIndirectUninitialized", "component async is off"),
    ("UncaughtException", "exceptions are off"),
    ("UnhandledTag", "stack switching is off"),
    ("UnsupportedCallbackCode", "component async is off"),
    ("WaitableSetDropHasWaiters", "component async is off"),
    ("WaitableSyncAndAsync", "component async is off"),
    ("WaitableSetWaitReentrant", "component async is off"),
];

/// Returns the directory in which cargo keeps the source of wasmtime. `None` if cargo or the
/// source is missing.
fn wasmtime_source() -> Option<PathBuf> {
    let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    cargo.args(["metadata", "--format-version=1", "--offline", "--locked"]);
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let packages = metadata["packages"].as_array()?;
    let package = packages.iter().find(|package| package["name"] == "wasmtime")?;
    let manifest = Path::new(package["manifest_path"].as_str()?);
    let source = manifest.parent()?.join("src/runtime");
    source.is_dir().then_some(source)
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// Returns the texts, or type names, of the errors that a source file raises.
fn errors(source: &str) -> Vec<String> {
    const RAISE: [&str; 3] = ["bail!(", "format_err!(", "Error::msg("];
    let code: String = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| format!("{line}\n"))
        .collect();
    let mut errors = Vec::new();
    for raise in RAISE {
        for (at, _) in code.match_indices(raise) {
            let argument = code[at + raise.len()..].trim_start();
            errors.push(match argument.strip_prefix('"') {
                Some(text) => literal(text),
                None => argument.split([',', ')', ' ', '(']).next().unwrap_or_default().to_owned(),
            });
        }
    }
    errors
}

/// Returns a string literal up to its closing quote, with its line continuations removed.
fn literal(text: &str) -> String {
    let mut literal = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => break,
            '\\' => match characters.next() {
                Some('\n') => {
                    let rest = characters.as_str().trim_start();
                    characters = rest.chars();
                }
                Some(other) => literal.push(other),
                None => break,
            },
            other => literal.push(other),
        }
    }
    literal
}

fn is_known(error: &str) -> bool {
    NOT_UNICODE.contains(&error)
        || BAD_ANSWERS.iter().any(|known| error.starts_with(known))
        || NOT_IN_A_CALL.iter().any(|(known, _)| error.starts_with(known))
        || TYPED.contains(&error)
}

#[test]
fn the_errors_of_the_pinned_wasmtime_are_all_classified() {
    let Some(root) = wasmtime_source() else {
        eprintln!("skipped: cargo does not know where the source of wasmtime is");
        return;
    };
    let mut raised = 0;
    let mut unknown = Vec::new();
    for dir in ["component", "vm/component"] {
        for file in files(&root.join(dir)) {
            let path = file.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
            if NOT_READ.iter().any(|(beginning, _)| path.starts_with(beginning)) {
                continue;
            }
            for error in errors(&fs::read_to_string(&file).unwrap()) {
                raised += 1;
                if !is_known(&error) {
                    unknown.push(format!("{path}: {error}"));
                }
            }
        }
    }
    assert!(raised > 80, "only {raised} errors were found: wasmtime raises them in another way");
    assert!(
        unknown.is_empty(),
        "not classified, add them to BAD_ANSWERS or to a list here: {unknown:#?}"
    );
}

#[test]
fn the_traps_of_the_pinned_wasmtime_are_all_classified() {
    let traps = (0..=u8::MAX).map_while(Wasm::from_u8);
    let mut count = 0;
    for trap in traps {
        count += 1;
        let name = format!("{trap:?}");
        let is_outcome = kind_of(trap, false).is_some();
        let is_listed = NOT_OUTCOMES.iter().any(|(listed, _)| *listed == name);
        assert!(
            is_outcome != is_listed,
            "{name} is an outcome or is listed with a reason, and not both"
        );
        let has_words = !detail(trap).is_empty()
            || matches!(
                kind_of(trap, false),
                None | Some(
                    TrapKind::Panic
                        | TrapKind::FuelExhausted
                        | TrapKind::StackExhausted
                        | TrapKind::MemoryExhausted
                )
            );
        assert!(has_words, "{name} has no description in `detail`");
    }
    assert!(count > 30, "{count}");
}

/// Calls `run` of a nested component, and classifies its error.
fn run(component: &str) -> Broken {
    let limits = Limits::default();
    let engine = Engine::new(&limits).unwrap();
    let component = Component::new(engine.inner(), wat::parse_str(component).unwrap()).unwrap();
    let mut store = wasmtime::Store::new(engine.inner(), ());
    store.set_fuel(1_000_000).unwrap();
    store.set_epoch_deadline(1);
    let instance = Linker::new(engine.inner()).instantiate(&mut store, &component).unwrap();
    let run = instance.get_typed_func::<(), ()>(&mut store, "run").unwrap();
    let error = run.call(&mut store, ()).unwrap_err();
    classify(&error, false, &About { method: "run", fuel: 1_000_000, limits: &limits })
}

/// One component passes a string to another, in two encodings.
#[test]
fn text_between_components_that_is_not_unicode_is_an_outcome() {
    for (encoding, bytes) in [("utf8", r"\ff"), ("utf16", r"\00\d8")] {
        let broken = run(&format!(
            r#"(component
  (component $takes
    (core module $m
      (memory (export "memory") 1)
      (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 64))
      (func (export "take") (param i32 i32)))
    (core instance $i (instantiate $m))
    (func (export "take") (param "text" string)
      (canon lift (core func $i "take") (memory (core memory $i "memory")) (realloc (core func $i "realloc"))
        string-encoding={encoding})))
  (component $gives
    (import "take" (func $take (param "text" string)))
    (core module $memory (memory (export "memory") 1) (data (i32.const 0) "{bytes}"))
    (core instance $memory (instantiate $memory))
    (core func $take (canon lower (func $take) (memory (core memory $memory "memory")) string-encoding={encoding}))
    (core module $m
      (import "" "take" (func $take (param i32 i32)))
      (func (export "run") (call $take (i32.const 0) (i32.const 1))))
    (core instance $i (instantiate $m (with "" (instance (export "take" (func $take))))))
    (func (export "run") (canon lift (core func $i "run"))))
  (instance $takes (instantiate $takes))
  (instance $gives (instantiate $gives (with "take" (func $takes "take"))))
  (export "run" (func $gives "run")))"#
        ));
        let Broken::Trap(trap) = broken else { panic!("{encoding}: {broken:?}") };
        assert_eq!(trap.kind, TrapKind::BadAnswer, "{encoding}");
        assert!(trap.message.contains("not Unicode"), "{encoding}: {}", trap.message);
    }
}

/// A component calls one that it contains, which the component model forbids.
#[test]
fn a_call_of_a_component_that_may_not_be_entered_is_an_outcome() {
    let broken = run(r#"(component
  (component $child
    (core module $m (func (export "f")))
    (core instance $i (instantiate $m))
    (func (export "f") (canon lift (core func $i "f"))))
  (instance $child (instantiate $child))
  (core func $f (canon lower (func $child "f")))
  (core module $m (import "" "f" (func $f)) (func (export "run") (call $f)))
  (core instance $i (instantiate $m (with "" (instance (export "f" (func $f))))))
  (func (export "run") (canon lift (core func $i "run"))))"#);
    let Broken::Trap(trap) = broken else { panic!("{broken:?}") };
    assert_eq!(trap.kind, TrapKind::Invalid);
    assert!(trap.message.contains("may not be entered"), "{}", trap.message);
}
