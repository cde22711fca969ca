//! Name of a state machine, in the spellings that a project needs.

use std::path::Path;

/// Maximum length of a name. The name in a description may have 64 bytes (`wit/types.wit`), but a
/// path `name.v1.Name/Method` needs more.
const BYTES_MAX: usize = 48;

/// Reserved names: keywords of Rust and Python, names of the template and the SDK, and packages
/// that the host or protobuf reserve.
const TAKEN: [&str; 103] = [
    // Rust keywords, and names that cargo rejects for crates.
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "core",
    "crate",
    "default",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc-macro",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
    // Rust's prelude, which the state machine's type would hide.
    "b-tree-map",
    "err",
    "none",
    "ok",
    "option",
    "result",
    "some",
    "string",
    "vec",
    // Python keywords.
    "and",
    "assert",
    "class",
    "def",
    "del",
    "elif",
    "except",
    "from",
    "global",
    "import",
    "is",
    "lambda",
    "not",
    "or",
    "pass",
    "raise",
    "with",
    // The template's messages, and names that it and its tests import from the standard library and
    // the SDK.
    "add-request",
    "add-response",
    "call",
    "code",
    "context",
    "failure",
    "get-request",
    "get-response",
    "lazy-lock",
    "log",
    "machine",
    "outcome",
    "reply",
    "router",
    "snapshot",
    // Packages of the SDK, of the host, and of protobuf.
    "conclave",
    "conclave-protobuf",
    "conclave-sdk",
    "google",
    "grpc",
];

/// The name of a state machine, see the module's documentation.
///
/// Invariants: words of lower-case letters and digits, each beginning with a letter, joined by
/// single dashes; at most [`BYTES_MAX`] bytes; none of [`TAKEN`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name(String);

impl Name {
    /// Derives the name from the project's path, or returns the reason why it is invalid.
    pub(super) fn of(path: &Path) -> Result<Self, String> {
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let refuse = |why: &str| Err(format!("{name:?} cannot be a state machine's name: {why}"));
        let word = |word: &str| {
            word.starts_with(|c: char| c.is_ascii_lowercase())
                && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        };
        if name.len() > BYTES_MAX {
            return refuse(&format!("it has {} bytes; the maximum is {BYTES_MAX}", name.len()));
        }
        if !name.split('-').all(word) {
            return refuse(
                "use words of lower-case letters and digits, each beginning with a letter, \
                 with single dashes between them, such as my-counter",
            );
        }
        if TAKEN.contains(&&*name) {
            return refuse("Rust, Python, protobuf or the SDK already have something of this name");
        }
        Ok(Self(name.into_owned()))
    }

    /// Returns `my-counter`: the name of the package and the state machine.
    pub(super) fn kebab(&self) -> &str {
        &self.0
    }

    /// Returns `my_counter`: the name of the crate, the module and the protobuf package.
    pub(super) fn snake(&self) -> String {
        self.0.replace('-', "_")
    }

    /// Returns `MyCounter`: the name of the type and the service.
    pub(super) fn pascal(&self) -> String {
        let capitalized = |word: &str| {
            let (first, rest) = word.split_at(1);
            first.to_ascii_uppercase() + rest
        };
        self.0.split('-').map(capitalized).collect()
    }

    /// Replaces the template's name by this one in a text or a path of the template.
    pub(super) fn instead_of_the_templates(&self, template: &str) -> String {
        template
            .replace("my-machine", self.kebab())
            .replace("my_machine", &self.snake())
            .replace("MyMachine", &self.pascal())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(path: &str) -> Result<Name, String> {
        Name::of(Path::new(path))
    }

    #[test]
    fn a_name_has_three_spellings() {
        let name = name("machines/my-lock2").unwrap();
        assert_eq!(name.kebab(), "my-lock2");
        assert_eq!(name.snake(), "my_lock2");
        assert_eq!(name.pascal(), "MyLock2");
        assert_eq!(
            name.instead_of_the_templates("my_machine.v1.MyMachine of my-machine"),
            "my_lock2.v1.MyLock2 of my-lock2"
        );
    }

    #[test]
    fn a_name_that_does_not_work_everywhere_is_refused() {
        for bad in ["", "..", "/", "Lock", "my_lock", "2locks", "a-", "-a", "a--b", "a-2", "grün"]
        {
            let error = name(bad).unwrap_err();
            assert!(error.contains("lower-case"), "{bad}: {error}");
        }
        assert!(name(&"a".repeat(49)).unwrap_err().contains("48"));
        for taken in ["match", "reply", "conclave", "add-request"] {
            assert!(name(taken).unwrap_err().contains("of this name"), "{taken}");
        }
    }
}
