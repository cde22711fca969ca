//! Holds the table of which layer may see which (ARCHITECTURE.md), and that no file grows past reading.
//!
//! Goal: a new edge between layers is a decision, made here, and not an accident of an import.
//! Method: every source file is scanned for paths that begin with `crate::` and for the names of the
//! libraries that one layer keeps to itself. Comments and texts do not count. The scanner is itself
//! tried on planted violations.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// A file that is longer is split.
const LINES_MAX: usize = 500;

/// Libraries that only some layers may see.
const KEPT_APART: [&str; 8] =
    ["aes_gcm", "conclave_build", "hyper", "openraft", "sled", "tonic", "wasmparser", "wasmtime"];

struct Layer {
    /// A folder of `src`, or a file.
    name: &'static str,
    /// The layers below it that it sees.
    sees: &'static [&'static str],
    /// Those of [`KEPT_APART`] that it uses.
    uses: &'static [&'static str],
}

/// The table. The layers in the order of `lib.rs`, so that `sees` only ever points up in this list.
const LAYERS: [Layer; 18] = [
    Layer { name: "proto", sees: &[], uses: &["tonic"] },
    Layer { name: "types", sees: &["proto"], uses: &["openraft"] },
    // The defaults of limits.
    Layer { name: "config", sees: &["types"], uses: &[] },
    Layer { name: "crypto", sees: &[], uses: &["aes_gcm"] },
    Layer { name: "error", sees: &["types"], uses: &[] },
    Layer { name: "supervise", sees: &["types"], uses: &[] },
    Layer { name: "telemetry", sees: &["config"], uses: &[] },
    Layer { name: "machine", sees: &["types"], uses: &["wasmparser", "wasmtime"] },
    // The registry is part of snapshots, whose header is one of those messages.
    Layer { name: "modules", sees: &["proto", "types"], uses: &[] },
    // `conclave check` runs machines without a node. Of an upgrade it says what clients would notice.
    Layer { name: "check", sees: &["types", "machine", "modules"], uses: &["wasmparser"] },
    // The messages of what lies on disk, as defined in proto/conclave/raft/v1/entry.proto.
    Layer { name: "storage", sees: &["proto", "types", "crypto"], uses: &["openraft", "sled"] },
    Layer {
        name: "raft",
        sees: &["proto", "types", "config", "error", "machine", "modules", "storage", "supervise"],
        uses: &["openraft", "tonic"],
    },
    Layer {
        name: "api",
        // The number of lines that the log has dropped is a metric.
        sees: &["proto", "types", "error", "telemetry", "machine", "raft"],
        uses: &["hyper", "tonic"],
    },
    // A node's past without its cluster: what the log holds, as raft stored it.
    Layer { name: "replay", sees: &["types", "machine", "modules", "storage", "raft"], uses: &[] },
    Layer {
        name: "node",
        sees: &[
            "types",
            "config",
            "crypto",
            "error",
            "supervise",
            "machine",
            "storage",
            "raft",
            "api",
            "replay",
        ],
        uses: &[],
    },
    Layer { name: "embed", sees: &["config", "error", "node"], uses: &[] },
    // `conclave inspect` and `conclave check` load a module as a node would, without being one; `conclave
    // replay` runs its log, which the second may take its calls from.
    Layer {
        name: "cli",
        sees: &["types", "config", "machine", "check", "replay", "node", "telemetry"],
        uses: &["conclave_build"],
    },
    // For tests and `cargo fuzz`: everything that decodes bytes from outside.
    Layer {
        name: "fuzz",
        sees: &["api", "cli", "config", "machine", "raft", "storage"],
        uses: &[],
    },
];

/// What a file of this layer may not name, as `layer → name`.
fn violations(layer: &Layer, source: &str) -> BTreeSet<String> {
    let code = without_comments_and_texts(source);
    let mut found = BTreeSet::new();
    for name in crate_paths(&code) {
        if name != layer.name && !layer.sees.contains(&name.as_str()) {
            found.insert(format!("{} → crate::{name}", layer.name));
        }
    }
    for library in KEPT_APART {
        if !layer.uses.contains(&library) && names_library(&code, library) {
            found.insert(format!("{} → {library}", layer.name));
        }
    }
    // openraft's types stay out of the machine, also in their disguise as ours.
    if layer.name == "machine" && code.contains("types::raft") {
        found.insert("machine → types::raft".to_owned());
    }
    found
}

/// The first segments after `crate::`, also of a group: `crate::{a::b, c}` gives a and c.
fn crate_paths(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|before: char| is_word(before) || before == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => names.extend(top_level_names(group)),
            None => names.extend(first_word(rest)),
        }
    }
    names
}

/// `a::{b, c}, d}…` gives a and d.
fn top_level_names(group: &str) -> BTreeSet<String> {
    let (mut names, mut depth, mut item) = (BTreeSet::new(), 0, String::new());
    for character in group.chars() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.extend(first_word(&std::mem::take(&mut item))),
            _ if depth == 0 => item.push(character),
            _ => {}
        }
    }
    names.extend(first_word(&item));
    names
}

fn first_word(text: &str) -> Option<String> {
    let word: String = text.trim_start().chars().take_while(|&c| is_word(c)).collect();
    (!word.is_empty()).then_some(word)
}

/// `library::`, `use library;` or `use library as`, and not as the middle of another path.
fn names_library(code: &str, library: &str) -> bool {
    code.match_indices(library).any(|(at, _)| {
        let (before, after) = (&code[..at], &code[at + library.len()..]);
        let starts = !before.ends_with(|c: char| is_word(c) || c == '.')
            && (!before.ends_with("::") || before.ends_with([' ', '(', '<', '&']));
        let imported = before.trim_end().ends_with("use");
        starts && (after.starts_with("::") || imported && !after.starts_with(is_word))
    })
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// The code alone, so that a word in a sentence is no dependency.
fn without_comments_and_texts(source: &str) -> String {
    let mut code = String::new();
    let mut rest = source;
    while let Some(character) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = rest.find('\n').map_or("", |end| &rest[end..]);
        } else if rest.starts_with("/*") {
            rest = rest.find("*/").map_or("", |end| &rest[end + 2..]);
        } else if let Some(end) = raw_text_end(rest) {
            rest = &rest[end..];
        } else if character == '"' {
            rest = after_text(&rest[1..]);
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            rest = &rest[rest[1..].find("'").unwrap_or(0) + 2..];
        } else {
            code.push(character);
            rest = &rest[character.len_utf8()..];
        }
    }
    code
}

/// The end of `r"…"` or `r#"…"#`, if that is what begins here.
fn raw_text_end(rest: &str) -> Option<usize> {
    let hashes = rest.strip_prefix('r')?.chars().take_while(|&c| c == '#').count();
    let body = 1 + hashes + 1;
    if !rest[1 + hashes..].starts_with('"') {
        return None;
    }
    let closing = format!("\"{}", "#".repeat(hashes));
    rest[body..].find(&closing).map(|end| body + end + closing.len())
}

/// What follows the closing quote.
fn after_text(text: &str) -> &str {
    let mut escaped = false;
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return &text[at + 1..],
            _ => {}
        }
    }
    ""
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All Rust files below, but for what is compiled or generated.
fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        let hidden = name.to_string_lossy().starts_with('.');
        if path.is_dir() && !hidden && name != "target" {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn files_of(layer: &Layer) -> Vec<PathBuf> {
    let source = root().join("host/src");
    let folder = source.join(layer.name);
    if folder.is_dir() {
        rust_files(&folder)
    } else {
        vec![source.join(layer.name).with_extension("rs")]
    }
}

#[test]
fn each_layer_sees_only_what_the_table_allows() {
    let mut found = Vec::new();
    for layer in &LAYERS {
        for file in files_of(layer) {
            let violations = violations(layer, &fs::read_to_string(&file).unwrap());
            found.extend(violations.into_iter().map(|what| format!("{}: {what}", file.display())));
        }
    }
    assert!(found.is_empty(), "dependencies that the table does not allow:\n{}", found.join("\n"));
}

#[test]
fn the_table_names_every_layer_and_has_no_cycle() {
    let mut below = BTreeSet::new();
    for layer in &LAYERS {
        for seen in layer.sees {
            assert!(below.contains(seen), "{} sees {seen}, which is not below it", layer.name);
        }
        below.insert(layer.name);
    }
    let source = root().join("host/src");
    let named = fs::read_dir(&source).unwrap().map(|entry| entry.unwrap().path());
    let named = named.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned());
    let all: BTreeSet<_> = named.filter(|name| name != "lib" && name != "main").collect();
    assert_eq!(all, below.into_iter().map(str::to_owned).collect(), "host/src and the table");
}

#[test]
fn the_client_knows_only_protobuf() {
    for file in rust_files(&root().join("client/src")) {
        let code = without_comments_and_texts(&fs::read_to_string(&file).unwrap());
        for library in ["aes_gcm", "conclave", "openraft", "sled", "wasmtime"] {
            assert!(!names_library(&code, library), "{} names {library}", file.display());
        }
    }
}

/// A task that panics outside of the supervisor ends unnoticed, and the node continues without it.
#[test]
fn all_tasks_of_a_node_are_supervised() {
    // A task that is awaited, so its panic is the caller's.
    const AWAITED: [&str; 1] = ["let asked = tokio::spawn(async move { raft.is_initialized()"];
    let source = root().join("host/src");
    let mut files: Vec<_> = ["api", "raft", "storage"]
        .iter()
        .flat_map(|layer| rust_files(&source.join(layer)))
        .collect();
    files.push(source.join("node.rs"));
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let code = without_comments_and_texts(text.split("#[cfg(test)]").next().unwrap());
        for line in code.lines().filter(|line| line.contains("tokio::spawn(")) {
            let awaited = AWAITED.iter().any(|allowed| line.contains(allowed));
            assert!(awaited, "{}: {}: use the supervisor", file.display(), line.trim());
        }
    }
}

#[test]
fn no_file_is_too_long() {
    for file in rust_files(&root()) {
        let lines = fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines: split it", file.display());
    }
}

#[test]
fn a_planted_violation_is_caught() {
    let machine = LAYERS.iter().find(|layer| layer.name == "machine").unwrap();
    for (source, expected) in [
        ("use crate::storage::Storage;", "machine → crate::storage"),
        ("use crate::{types::Call, storage};", "machine → crate::storage"),
        (
            "use crate::{\n    types::{Call, Outcome},\n    raft::{a, b},\n};",
            "machine → crate::raft",
        ),
        ("fn f() { crate::api::serve() }", "machine → crate::api"),
        ("use sled::Db;", "machine → sled"),
        ("use openraft as library;", "machine → openraft"),
        ("fn f(status: &tonic::Status) {}", "machine → tonic"),
        ("use crate::types::raft::Member;", "machine → types::raft"),
        ("let quote = '\"'; let other = sled::open(\"x\");", "machine → sled"),
    ] {
        assert_eq!(violations(machine, source), [expected.to_owned()].into(), "{source}");
    }
}

#[test]
fn what_is_allowed_or_only_said_is_not_a_violation() {
    let machine = LAYERS.iter().find(|layer| layer.name == "machine").unwrap();
    for source in [
        "use crate::types::{Call, Outcome};",
        "use crate::{machine::error::Fault, types::Trap};",
        "use wasmtime::component::Component;",
        "// Storage, crate::storage::Storage, uses sled::Db.",
        "/// As in [`crate::raft::Replica`].",
        "let text = \"crate::storage \\\" and sled::Db\";",
        "let text = r#\"use sled::Db;\"#;",
        "macro_rules! m { () => { $crate::storage::x() } }",
        "let module = our_sled::open(); let x = module.sled;",
    ] {
        assert_eq!(violations(machine, source), BTreeSet::new(), "{source}");
    }
}
