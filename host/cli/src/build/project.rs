//! Language and name of a project, as its manifest defines them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{Failed, Result};
use conclave_types::error::chain;

/// A programming language that `conclave build` compiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Language {
    Rust,
    Python,
    Go,
}

impl Language {
    const ALL: [Self; 3] = [Self::Rust, Self::Python, Self::Go];

    /// Returns the manifest's file name, which identifies the language.
    fn manifest(self) -> &'static str {
        match self {
            Self::Rust => "Cargo.toml",
            Self::Python => "pyproject.toml",
            Self::Go => "go.mod",
        }
    }

    /// Returns the name in a manifest, and the manifest if it is TOML.
    fn read(self, manifest: &str) -> std::result::Result<(String, toml::Table), String> {
        match self {
            Self::Rust => in_table(manifest, "package"),
            Self::Python => in_table(manifest, "project"),
            Self::Go => in_go_mod(manifest).map(|name| (name, toml::Table::new())),
        }
    }
}

/// The project of a state machine.
#[derive(Clone, Debug)]
pub(super) struct Project {
    pub(super) dir: PathBuf,
    pub(super) name: String,
    pub(super) language: Language,
    /// The whole manifest; empty for Go, whose manifest is not TOML.
    pub(super) manifest: toml::Table,
}

impl Project {
    /// Reads the project in `dir`; the empty path is the current directory.
    pub(super) fn of(dir: &Path) -> Result<Self> {
        for language in Language::ALL {
            let path = dir.join(language.manifest());
            match fs::read_to_string(&path) {
                Ok(text) => {
                    let (name, manifest) = language
                        .read(&text)
                        .map_err(|why| Failed::local(format!("{}: {why}", path.display())))?;
                    return Ok(Self { dir: dir.to_owned(), name, language, manifest });
                }
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
                Err(cause) => return Err(Failed::because(path.display(), &cause)),
            }
        }
        let manifests = Language::ALL.map(Language::manifest).join(" or ");
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        Err(Failed::local(format!(
            "{} holds no project: there is no {manifests}; `conclave new` creates one",
            dir.display()
        )))
    }

    /// Returns the nearest project whose directory is above `file`. A manifest that cannot be
    /// built, such as a workspace of other crates, does not count.
    pub(super) fn above(file: &Path) -> Option<Self> {
        file.ancestors().skip(1).find_map(|dir| Self::of(dir).ok())
    }
}

fn in_table(manifest: &str, table: &str) -> std::result::Result<(String, toml::Table), String> {
    let manifest: toml::Table = manifest.parse().map_err(|cause| chain(&cause))?;
    let name = manifest.get(table).and_then(|table| table.get("name")?.as_str());
    let name = plain(name.ok_or_else(|| format!("there is no name in a table [{table}]"))?)?;
    Ok((name, manifest))
}

/// Returns the last part of the module's path: `tally` of `module example.com/machines/tally`.
fn in_go_mod(manifest: &str) -> std::result::Result<String, String> {
    let path = manifest.lines().find_map(|line| line.trim().strip_prefix("module "));
    let path = path.ok_or("there is no line `module PATH`")?.trim().trim_matches('"');
    plain(path.rsplit('/').next().unwrap_or(path))
}

/// Checks that a name is plain, because it becomes a file name.
fn plain(name: &str) -> std::result::Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    match !name.is_empty() && name.chars().all(plain) {
        true => Ok(name.to_owned()),
        false => Err(format!("{name:?} cannot be a state machine's name")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(project: Result<Project>) -> String {
        let Err(Failed::Failure { message, .. }) = project else { panic!("{project:?}") };
        message
    }

    #[test]
    fn the_manifest_tells_language_and_name() {
        let dir = tempfile::tempdir().unwrap();
        assert!(refusal(Project::of(dir.path())).contains("conclave new"));
        let manifest = dir.path().join("Cargo.toml");
        fs::write(&manifest, "[package]\nname = \"lock\"\n").unwrap();
        let project = Project::of(dir.path()).unwrap();
        assert_eq!((project.name.as_str(), project.language), ("lock", Language::Rust));
        fs::write(dir.path().join("pyproject.toml"), "[project]\nname = \"flags\"\n").unwrap();
        assert_eq!(Project::of(dir.path()).unwrap().language, Language::Rust, "the first of two");
        fs::remove_file(&manifest).unwrap();
        let project = Project::of(dir.path()).unwrap();
        assert_eq!((project.name.as_str(), project.language), ("flags", Language::Python));
        for (bad, why) in [
            ("[workspace]", "[package]"),
            ("[package]\nname = \"../lock\"", "cannot be"),
            ("[package", "Cargo.toml"),
        ] {
            fs::write(&manifest, bad).unwrap();
            let message = refusal(Project::of(dir.path()));
            assert!(message.contains(why), "{bad}: {message}");
        }
    }

    #[test]
    fn a_module_of_go_is_named_by_the_end_of_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = dir.path().join("go.mod");
        for (text, name) in [
            ("module tally\n\ngo 1.24\n", "tally"),
            ("// Counts.\nmodule example.com/machines/tally\n", "tally"),
        ] {
            fs::write(&manifest, text).unwrap();
            let project = Project::of(dir.path()).unwrap();
            assert_eq!((project.name.as_str(), project.language), (name, Language::Go));
        }
        for (bad, why) in [("go 1.24\n", "module PATH"), ("module a/b.c\n", "cannot be")] {
            fs::write(&manifest, bad).unwrap();
            let message = refusal(Project::of(dir.path()));
            assert!(message.contains(why), "{bad}: {message}");
        }
    }

    #[test]
    fn a_components_project_is_the_nearest_above_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lock/target/lock.wasm");
        assert!(Project::above(&file).is_none());
        fs::create_dir(dir.path().join("lock")).unwrap();
        fs::write(dir.path().join("Cargo.toml"), "[package]\nname = \"outer\"\n").unwrap();
        assert_eq!(Project::above(&file).unwrap().name, "outer");
        let manifest = dir.path().join("lock/Cargo.toml");
        fs::write(&manifest, "[workspace]\n").unwrap();
        assert_eq!(Project::above(&file).unwrap().name, "outer");
        fs::write(&manifest, "[package]\nname = \"lock\"\n").unwrap();
        let found = Project::above(&file).unwrap();
        assert_eq!((found.name.as_str(), found.dir), ("lock", dir.path().join("lock")));
    }
}
