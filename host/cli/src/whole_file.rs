//! Output files that are complete or absent: temporary name, sync, rename, sync of the directory.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::{Failed, Result};

/// The treatment of a file that exists already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// The verb fails.
    Refused,
    /// The new file replaces it.
    Replaced,
}

/// A file that is being written. Dropping it before [`WholeFile::finish`] removes it. Only its owner
/// can read it.
#[derive(Debug)]
pub struct WholeFile {
    path: PathBuf,
    temporary: PathBuf,
    existing: Existing,
    file: Option<File>,
}

impl WholeFile {
    /// Creates the file under its temporary name.
    pub fn create(path: &Path, existing: Existing) -> Result<Self> {
        let path = path.to_owned();
        let temporary = path.with_added_extension("partial");
        let mut created = Self { path, temporary, existing, file: None };
        created.check_absent()?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&created.temporary);
        created.file = Some(file.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => Failed::local(format!(
                "{} exists: another process writes it, or was interrupted; remove it if there is none",
                created.temporary.display()
            )),
            _ => failed(&created.temporary, &error),
        })?);
        Ok(created)
    }

    fn check_absent(&self) -> Result {
        match self.existing == Existing::Refused && self.path.exists() {
            true => Err(Failed::local(format!(
                "{} exists and was not changed; choose another name",
                self.path.display()
            ))),
            false => Ok(()),
        }
    }

    /// The temporary name, for reading the file again before it is finished.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(bytes).map_err(|error| failed(&self.temporary, &error))
    }

    /// Makes the content durable under the temporary name.
    pub fn sync(&mut self) -> Result {
        let Some(file) = &self.file else { return Ok(()) };
        file.sync_all().map_err(|error| failed(&self.temporary, &error))
    }

    /// Gives the file its name, durably.
    pub fn finish(&mut self) -> Result {
        self.sync()?;
        self.check_absent()?;
        fs::rename(&self.temporary, &self.path).map_err(|error| failed(&self.path, &error))?;
        self.file = None;
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(|error| failed(parent, &error))
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        if self.file.is_some() {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Failed {
    Failed::because(path.display(), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn unfinished_file_never_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut file = WholeFile::create(&path, Existing::Refused).unwrap();
        file.write(b"half").unwrap();
        assert_eq!(names(dir.path()), ["a.partial"]);
        assert!(WholeFile::create(&path, Existing::Refused).is_err(), "two writers");
        assert_eq!(names(dir.path()), ["a.partial"]);
        drop(file);
        assert_eq!(names(dir.path()), [""; 0]);
    }

    #[test]
    fn existing_file_is_replaced_only_on_request() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "old").unwrap();
        assert!(WholeFile::create(&path, Existing::Refused).is_err());
        let mut file = WholeFile::create(&path, Existing::Replaced).unwrap();
        file.write(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        file.finish().unwrap();
        assert_eq!(
            (fs::read(&path).unwrap(), names(dir.path())),
            (b"new".to_vec(), vec!["a".into()])
        );
    }
}
