//! The watched files, with their times and sizes.

use std::{
    collections::BTreeMap,
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use ignore::WalkBuilder;

use crate::build::BYTECODE_DIR;

/// Modification time and size of each file. Two pictures that differ mean a change.
pub(super) type Picture = BTreeMap<PathBuf, (SystemTime, u64)>;

/// A directory of source files, without files that are no sources, or a single file.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    root: PathBuf,
    others: Vec<PathBuf>,
    /// Files to which this process writes, by device and inode: the output of `conclave dev >
    /// dev.log` is not a change.
    written: Vec<(u64, u64)>,
}

impl Sources {
    /// Includes all files below `root`, except `others`, hidden files, Python's bytecode, and files
    /// that a `.gitignore` names.
    pub(super) fn new(root: &Path, others: Vec<PathBuf>) -> Self {
        let outputs = [file_of(io::stdout()), file_of(io::stderr())];
        Self { root: root.to_owned(), others, written: outputs.into_iter().flatten().collect() }
    }

    /// Returns the present state of the files. Blocking.
    pub(super) fn picture(&self) -> Picture {
        let others = self.others.clone();
        let mut walk = WalkBuilder::new(&self.root);
        // A project has its .gitignore before it becomes a repository.
        walk.require_git(false);
        walk.filter_entry(move |entry| {
            entry.file_name() != BYTECODE_DIR && !others.iter().any(|other| other == entry.path())
        });
        let mut picture = Picture::new();
        // A file that is removed meanwhile is missing in the next picture too.
        for entry in walk.build().filter_map(Result::ok) {
            let Ok(metadata) = entry.metadata() else { continue };
            let source =
                metadata.is_file() && !self.written.contains(&(metadata.dev(), metadata.ino()));
            if let (true, Ok(modified)) = (source, metadata.modified()) {
                picture.insert(entry.into_path(), (modified, metadata.len()));
            }
        }
        picture
    }

    /// Returns the present state of the files without blocking.
    pub(super) async fn look(&self) -> Picture {
        let sources = self.clone();
        let looking = tokio::task::spawn_blocking(move || sources.picture());
        // The task does not fail. If it did, the next poll would find a change.
        looking.await.unwrap_or_default()
    }
}

fn file_of(open: impl AsFd) -> Option<(u64, u64)> {
    let file = std::fs::File::from(open.as_fd().try_clone_to_owned().ok()?);
    file.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_sources_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let write = |relative: &str, text: &str| {
            let path = dir.path().join(relative);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for relative in ["src/lib.rs", "proto/a.proto", "target/a.wasm", "data/cluster.json"] {
            write(relative, "one");
        }
        write(".git/HEAD", "main");
        write("notes.tmp", "ignored");
        write(".gitignore", "*.tmp\n");
        let others = vec![dir.path().join("target"), dir.path().join("data")];
        let mut sources = Sources::new(dir.path(), others);
        let before = sources.picture();
        let paths = before.keys().map(|path| path.strip_prefix(dir.path()).unwrap());
        assert_eq!(paths.collect::<Vec<_>>(), [Path::new("proto/a.proto"), "src/lib.rs".as_ref()]);

        write("target/a.wasm", "another");
        write("data/cluster.json", "another");
        write("src/__pycache__/machine.cpython-314.pyc", "compiled");
        assert_eq!(sources.picture(), before);
        write("src/lib.rs", "another");
        let changed = sources.picture();
        assert_ne!(changed, before);
        write("src/new.rs", "");
        assert_ne!(sources.picture(), changed);
        fs::remove_file(dir.path().join("src/new.rs")).unwrap();
        assert_eq!(sources.picture(), changed);

        let log = fs::File::create(dir.path().join("dev.log")).unwrap();
        assert_ne!(sources.picture(), changed);
        sources.written.extend(file_of(log));
        assert_eq!(sources.picture(), changed);
    }
}
