//! The mechanical rules for prose (CONTRIBUTING.md): banned words, and the beginnings of comments.
//!
//! Words are searched in the whole text of source files and documents, so messages are checked like comments.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Words and phrases with a plainer equivalent. Things are not persons, and idioms of other
/// languages are not English.
const BANNED: [&[&str]; 17] = [
    &["nobody"],
    &["somebody"],
    &["everybody"],
    &["whoever"],
    &["anew"],
    &["goes", "on"],
    &["go", "on"],
    &["going", "on"],
    &["went", "on"],
    &["of", "late"],
    &["for", "ever"],
    &["has", "yet", "to"],
    &["have", "yet", "to"],
    &["mend"],
    &["mends"],
    &["mended"],
    &["torture", "kit"],
];

/// Files that quote the banned words.
const QUOTING: [&str; 2] = ["host/testing/tests/language.rs", "CONTRIBUTING.md"];

/// First words of comments that are a clause, where a noun phrase or a verb belongs.
const OPENERS: [&str; 4] = ["What", "Who", "Whoever", "Whose"];

/// Allowed number of such comment lines per 1,000 comment lines.
const OPENERS_MAX: usize = 2;

const FILES: [&str; 5] = ["rs", "proto", "wit", "md", "py"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The files below a folder that contain prose. Compiled, downloaded and generated files are left out.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        let is_hidden = name.to_string_lossy().starts_with('.');
        let is_foreign = name == "target" || name == "corpus" || name == "planted";
        if path.is_dir() && !is_hidden && !is_foreign {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|it| FILES.iter().any(|one| it == *one)) {
            found.push(path);
        }
    }
    found
}

/// The words of a text in lower case, each with its line. An identifier is one word.
fn words(text: &str) -> Vec<(usize, String)> {
    let lines = text.lines().zip(1..);
    let words = lines.flat_map(|(line, number)| {
        let words = line.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '\'');
        words.filter(|word| !word.is_empty()).map(move |word| (number, word.to_lowercase()))
    });
    words.collect()
}

/// The banned phrases in a text, with their lines.
fn banned(text: &str) -> Vec<(usize, String)> {
    let words = words(text);
    let mut found = Vec::new();
    for at in 0..words.len() {
        for phrase in BANNED {
            let rest = &words[at..];
            let is_here = rest.len() >= phrase.len()
                && phrase.iter().zip(rest).all(|(wanted, (_, word))| word == wanted);
            if is_here {
                found.push((words[at].0, phrase.join(" ")));
            }
        }
    }
    found
}

/// The text of the comment, if the line is one.
fn comment(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("//")?;
    Some(rest.trim_start_matches(['/', '!']).trim_start())
}

fn begins_with_opener(comment: &str) -> bool {
    let first = comment.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    OPENERS.contains(&first)
}

#[test]
fn prose_has_no_banned_words() {
    let mut found = Vec::new();
    for file in files(&root()) {
        let name = file.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        if QUOTING.contains(&&*name) {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        found
            .extend(banned(&text).into_iter().map(|(line, what)| format!("{name}:{line}: {what}")));
    }
    assert!(
        found.is_empty(),
        "{} banned words, see CONTRIBUTING.md:\n{}",
        found.len(),
        found.join("\n")
    );
}

#[test]
fn comments_begin_with_a_noun_or_a_verb() {
    let (mut comments, mut found) = (0, Vec::new());
    for file in files(&root()).iter().filter(|file| file.extension().unwrap() == "rs") {
        let text = fs::read_to_string(file).unwrap();
        for (line, number) in text.lines().zip(1..) {
            let Some(comment) = comment(line) else { continue };
            comments += 1;
            if begins_with_opener(comment) {
                found.push(format!("{}:{number}: {comment}", file.display()));
            }
        }
    }
    let allowed = comments * OPENERS_MAX / 1000;
    assert!(found.len() <= allowed, "{} of {comments} lines:\n{}", found.len(), found.join("\n"));
}

#[test]
fn planted_sentences_are_found() {
    assert_eq!(banned("/// It goes\n/// on."), [(1, "goes on".to_owned())]);
    assert_eq!(banned("let x = \"Nobody leads\";"), [(1, "nobody".to_owned())]);
    assert_eq!(banned("fn the_node_goes_on() {} // an amendment, Go on Linux").len(), 1);
    assert_eq!(comment("    /// What comes."), Some("What comes."));
    assert!(begins_with_opener("Whose it is.") && !begins_with_opener("Whatever the order is."));
}
