//! Rules for the source that the compiler does not check: dependencies between crates, supervised
//! tasks, and the length of files.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Maximum number of lines in a file.
const LINES_MAX: usize = 500;

/// Libraries that only the listed crates may use.
const KEPT_APART: [&str; 11] = [
    "aes-gcm",
    "argon2",
    "clap",
    "conclave-build",
    "hyper",
    "openraft",
    "prometheus",
    "sled",
    "tonic",
    "wasmparser",
    "wasmtime",
];

struct Crate {
    /// The crate's folder in `host`.
    folder: &'static str,
    /// The crates of `host` that it may depend on, by folder.
    sees: &'static [&'static str],
    /// The libraries of [`KEPT_APART`] that it may depend on.
    uses: &'static [&'static str],
}

/// The crates in reading order. `sees` names only crates above. A new edge is a decision.
const CRATES: [Crate; 11] = [
    Crate { folder: "types", sees: &[], uses: &[] },
    Crate { folder: "proto", sees: &["types"], uses: &["tonic"] },
    Crate { folder: "crypto", sees: &[], uses: &["aes-gcm", "argon2"] },
    Crate { folder: "metrics", sees: &[], uses: &["prometheus"] },
    Crate { folder: "machine", sees: &["types", "metrics"], uses: &["wasmparser", "wasmtime"] },
    Crate { folder: "check", sees: &["types", "machine"], uses: &["wasmparser"] },
    Crate { folder: "storage", sees: &["types", "proto", "crypto"], uses: &["openraft", "sled"] },
    Crate {
        folder: "raft",
        sees: &["types", "proto", "metrics", "machine", "storage"],
        uses: &["openraft", "tonic"],
    },
    Crate { folder: "api", sees: &["types", "proto", "metrics"], uses: &["hyper", "tonic"] },
    Crate {
        folder: "node",
        sees: &["types", "crypto", "metrics", "machine", "storage", "raft", "api"],
        // Needed for the settings, with the feature `command-line`.
        uses: &["clap"],
    },
    Crate {
        folder: "cli",
        // `check`, `inspect` and `replay` use components without a node. All fuzz targets are in this crate.
        sees: &["types", "machine", "check", "storage", "raft", "api", "node"],
        uses: &["clap", "conclave-build"],
    },
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The name of the crate in a folder of `host`.
fn package(folder: &str) -> String {
    if folder == "node" { "conclave".to_owned() } else { format!("conclave-{folder}") }
}

/// The names in a manifest's section `[dependencies]`.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap_or_default();
    let lines = section.lines().take_while(|line| !line.starts_with('['));
    let names = lines.filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
    names.map(|line| line.split(['.', ' ', '=']).next().unwrap().to_owned()).collect()
}

/// The dependencies that the table does not allow.
fn violations(of: &Crate, manifest: &str) -> Vec<String> {
    let allowed: BTreeSet<_> = of.sees.iter().map(|folder| package(folder)).collect();
    let ours: BTreeSet<_> = CRATES.iter().map(|other| package(other.folder)).collect();
    let is_violation = |name: &String| {
        let is_kept_apart = KEPT_APART.contains(&name.as_str());
        (ours.contains(name) && !allowed.contains(name))
            || (is_kept_apart && !of.uses.contains(&name.as_str()))
    };
    dependencies(manifest).into_iter().filter(is_violation).collect()
}

#[test]
fn each_crate_depends_only_on_what_the_table_allows() {
    for of in &CRATES {
        let path = root().join("host").join(of.folder).join("Cargo.toml");
        let found = violations(of, &fs::read_to_string(&path).unwrap());
        assert!(found.is_empty(), "{}: {found:?}", path.display());
    }
}

#[test]
fn the_table_has_every_crate_and_no_cycle() {
    let mut above = BTreeSet::new();
    for of in &CRATES {
        for seen in of.sees {
            assert!(above.contains(seen), "{} sees {seen}, which is not above it", of.folder);
        }
        above.insert(of.folder);
    }
    let folders = fs::read_dir(root().join("host")).unwrap().map(|entry| entry.unwrap().path());
    let crates = folders.filter(|folder| folder.join("src").is_dir());
    let names = crates.map(|folder| folder.file_name().unwrap().to_string_lossy().into_owned());
    let all: BTreeSet<_> = names.filter(|name| name != "testing").collect();
    assert_eq!(
        all,
        above.into_iter().map(str::to_owned).collect(),
        "folders of host, and the table"
    );
}

#[test]
fn a_planted_dependency_is_found() {
    let machine = CRATES.iter().find(|of| of.folder == "machine").unwrap();
    for (line, expected) in [
        ("conclave-storage.workspace = true", "conclave-storage"),
        ("sled = { workspace = true }", "sled"),
        ("conclave.workspace = true", "conclave"),
    ] {
        let manifest =
            format!("[package]\n\n[dependencies]\nbytes.workspace = true\n{line}\n\n[lints]\n");
        assert_eq!(violations(machine, &manifest), [expected]);
    }
    let allowed = "[package]\n\n[dependencies]\nconclave-types.workspace = true\nwasmtime.workspace = true\n\n\
                   [dev-dependencies]\nconclave-build.workspace = true\n";
    assert_eq!(violations(machine, allowed), [""; 0]);
}

/// A program that embeds a node must not compile the command line, a compiler of components, or the client.
#[test]
fn node_as_a_library_does_not_depend_on_the_command_line() {
    let mut tree = Command::new(env!("CARGO"));
    tree.current_dir(root());
    tree.args([
        "tree",
        "--package",
        "conclave",
        "--edges",
        "normal,no-proc-macro",
        "--prefix",
        "none",
    ]);
    let output = tree.args(["--format", "{p}", "--locked", "--offline"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    let crates: BTreeSet<_> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(crates.contains("openraft"), "{tree}");
    for unwanted in ["clap", "indicatif", "wit-component", "conclave-client", "tracing-subscriber"]
    {
        assert!(!crates.contains(unwanted), "a node depends on {unwanted}");
    }
}

#[test]
fn the_client_depends_on_no_crate_of_the_host() {
    let manifest = fs::read_to_string(root().join("client/Cargo.toml")).unwrap();
    for of in &CRATES {
        assert!(!dependencies(&manifest).contains(&package(of.folder)), "{}", of.folder);
    }
}

/// A panic in an unsupervised task is not noticed, and the node would continue without the task.
#[test]
fn all_tasks_of_a_node_are_supervised() {
    // The caller awaits this task, so the caller receives its panic.
    const AWAITED: [&str; 1] = ["let asked = tokio::spawn(async move { raft.is_initialized()"];
    // This file waits for the end of the node and returns its error.
    const EMBEDDED: &str = "embed.rs";
    let folders =
        ["api", "raft", "storage", "node"].map(|of| root().join("host").join(of).join("src"));
    for file in folders.iter().flat_map(|folder| rust_files(folder)) {
        if file.ends_with(EMBEDDED) || file.ends_with("supervise.rs") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for line in code.lines().filter(|line| line.contains("tokio::spawn(")) {
            let is_allowed = AWAITED.iter().any(|allowed| line.contains(allowed))
                || line.trim_start().starts_with("//");
            assert!(is_allowed, "{}: {}: use the supervisor", file.display(), line.trim());
        }
    }
}

/// Lines that make text of an error for a reason: the file, a part of the line, and the reason.
const TEXT_ALLOWED: [(&str, &str, &str); 5] = [
    ("client/src/retry.rs", "error.to_string();", "the words of one attempt, listed in the error"),
    ("types/src/error.rs", "error.to_string();", "the helper that prints a chain"),
    ("types/src/error.rs", "cause.to_string()", "the cause is kept as the source"),
    ("proto/src/convert.rs", "cause.to_string();", "the cause is kept as the source"),
    (
        "storage/src/tree/guard.rs",
        "error.to_string();",
        "sled returns some errors of the system as text",
    ),
];

/// The largest number of lines in a folder that make text of an error. The numbers may only decrease.
const TEXT_MAX: [(&str, usize); 11] = [
    ("host/types", 0),
    ("host/proto", 0),
    ("host/crypto", 0),
    ("host/machine", 10),
    ("host/check", 0),
    // The reasons why a backup is damaged.
    ("host/storage", 3),
    ("host/raft", 50),
    ("host/api", 0),
    // An address that cannot be resolved.
    ("host/node", 1),
    ("host/cli", 0),
    ("client", 0),
];

/// Whether a line of code makes text of an error. A log line and a gRPC status are edges.
fn makes_text(line: &str) -> bool {
    let line = line.trim_start();
    let is_edge = line.contains("tracing::") || line.contains("Status::");
    if is_edge || line.starts_with("//") || line.starts_with("use ") {
        return false;
    }
    ["error", "cause", "err"].iter().any(|name| {
        ["{NAME}", "{NAME:#}", "{NAME:?}"]
            .iter()
            .any(|form| line.contains(&form.replace("NAME", name)))
            || line.match_indices(&format!("{name}.to_string()")).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
            })
    })
}

/// An error keeps its causes as values until an edge prints them with `conclave_types::error::chain`.
#[test]
fn errors_become_text_at_the_edges_only() {
    for (folder, max) in TEXT_MAX {
        let mut found = Vec::new();
        for file in rust_files(&root().join(folder).join("src")) {
            let name = file.to_string_lossy().into_owned();
            if name.ends_with("tests.rs") || name.ends_with("fuzz.rs") {
                continue;
            }
            let text = fs::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            let lines = code.lines().zip(1..).filter(|(line, _)| makes_text(line));
            let is_allowed = |line: &str| {
                let mut allowed = TEXT_ALLOWED.iter();
                allowed.any(|(file, part, _)| name.ends_with(file) && line.contains(part))
            };
            let lines = lines.filter(|(line, _)| !is_allowed(line));
            found.extend(lines.map(|(line, at)| format!("{name}:{at}: {}", line.trim())));
        }
        assert!(
            found.len() <= max,
            "{folder}: {} lines make text of an error, at most {max} may: keep the error as the source\n{}",
            found.len(),
            found.join("\n")
        );
    }
}

#[test]
fn planted_text_of_an_error_is_found() {
    for line in [
        r#"    .map_err(|error| Error::fatal(format!("cannot start: {error}")))?;"#,
        r#"    .map_err(|error| X(error.to_string()))?;"#,
        r#"    let why = format!("{cause:#}");"#,
    ] {
        assert!(makes_text(line), "{line}");
    }
    for line in [
        "use super::{error::Error, source::Source};",
        r#"    Status::internal(error.to_string())"#,
        r#"    /// The text of `error.to_string()`."#,
        r#"    last_error.to_string()"#,
        r#"    #[error("{what}: {source}")]"#,
    ] {
        assert!(!makes_text(line), "{line}");
    }
}

/// A handle whose methods are spread over files owns the state of all of them.
#[test]
fn replica_is_implemented_in_one_file() {
    let files = rust_files(&root().join("host/raft/src")).into_iter();
    let with_impl =
        files.filter(|file| fs::read_to_string(file).unwrap().contains("impl Replica "));
    let names: Vec<_> =
        with_impl.map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(names, ["lib.rs"], "add the method to the part that owns its state");
}

/// Polling delays a reaction and costs an idle node, so each interval states why no event serves.
#[test]
fn each_poll_interval_has_a_reason() {
    for file in rust_files(&root().join("host/raft/src")) {
        let text = fs::read_to_string(&file).unwrap();
        let lines: Vec<_> = text.lines().map(str::trim_start).collect();
        for at in (0..lines.len()).filter(|at| lines[*at].contains("const POLL_INTERVAL:")) {
            let comment = lines[..at].iter().rev().take_while(|line| line.starts_with("///"));
            let reason: Vec<_> = comment.collect();
            let has_reason = reason.iter().any(|line| line.contains("because"));
            assert!(has_reason, "{}: state why POLL_INTERVAL is needed", file.display());
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

/// All Rust files below a folder, without what is compiled or generated.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        let is_hidden = name.to_string_lossy().starts_with('.');
        if path.is_dir() && !is_hidden && name != "target" {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
