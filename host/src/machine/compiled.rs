//! A directory of compiled components, which the nodes of one computer share: the first compiles, the others wait for it.
//!
//! # Contract
//! 1. Compiled code is run as it is, so a file counts only with a keyed hash. Its key is derived from the cluster's
//!    master key, so a program that can write such a file could read and write the cluster's data as well.
//! 2. A file is for one component and one engine. Any other, and a damaged one, is compiled again.
//! 3. The directory is a help. If it cannot be read or written, components are compiled.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use wasmtime::component::Component;

/// Files that are kept: those of the newest components.
const FILES_MAX: usize = 8;
const HASH_BYTES: usize = blake3::OUT_LEN;

/// See the module's page.
#[derive(Clone)]
pub struct CompileCache {
    dir: PathBuf,
    key: [u8; HASH_BYTES],
}

impl CompileCache {
    /// A cache in this directory, which is made if need be. `key` is a secret of those that share it.
    pub fn new(dir: PathBuf, key: [u8; HASH_BYTES]) -> Self {
        Self { dir, key }
    }

    /// The compiled component of this name, from the directory or else by `compile`. The name covers the component
    /// and the engine.
    pub(super) fn component<E>(
        &self,
        engine: &wasmtime::Engine,
        name: &str,
        compile: impl FnOnce() -> Result<Component, E>,
    ) -> Result<Component, E> {
        // Held until the file is there. Whoever dies while it compiles lets go of it.
        let _lock = self.lock(name).map_err(|error| self.warn(&error));
        if let Some(component) = self.read(engine, name) {
            return Ok(component);
        }
        let component = compile()?;
        if let Err(error) = self.write(name, &component) {
            self.warn(&error);
        }
        Ok(component)
    }

    fn warn(&self, error: &dyn std::fmt::Display) {
        tracing::warn!(dir = %self.dir.display(), %error, "compiled components are not shared");
    }

    fn lock(&self, name: &str) -> io::Result<File> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let file = File::create(self.dir.join(format!("{name}.lock")))?;
        file.lock()?;
        Ok(file)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.compiled"))
    }

    fn read(&self, engine: &wasmtime::Engine, name: &str) -> Option<Component> {
        let bytes = fs::read(self.path(name)).ok()?;
        let (hash, code) = bytes.split_first_chunk::<HASH_BYTES>()?;
        // Compared in constant time.
        if self.hash(name, code) != blake3::Hash::from_bytes(*hash) {
            tracing::warn!(name, "a compiled component is damaged; it is compiled again");
            return None;
        }
        #[allow(unsafe_code, reason = "compiled code can only be loaded so")]
        // SAFETY: the keyed hash shows that this code is what `Component::serialize` gave a process that has the
        // master key. Other versions and engines are refused by wasmtime itself.
        let component = unsafe { Component::deserialize(engine, code) };
        component.map_err(|error| tracing::debug!(name, %error, "compiled by another engine")).ok()
    }

    fn write(&self, name: &str, component: &Component) -> io::Result<()> {
        let code = component.serialize().map_err(|error| io::Error::other(error.to_string()))?;
        let bytes = [self.hash(name, &code).as_bytes(), &code[..]].concat();
        let unfinished = self.dir.join(format!("{name}.unfinished"));
        fs::write(&unfinished, bytes)?;
        fs::rename(&unfinished, self.path(name))?;
        self.remove_old()
    }

    fn hash(&self, name: &str, code: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes()).update(code);
        hasher.finalize()
    }

    /// Removes the oldest files beyond the limit, with their locks.
    fn remove_old(&self) -> io::Result<()> {
        let mut files: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if is_compiled(&path) {
                files.push((fs::metadata(&path)?.modified()?, path));
            }
        }
        files.sort();
        for (_, path) in files.iter().rev().skip(FILES_MAX) {
            fs::remove_file(path)?;
            let _ = fs::remove_file(path.with_extension("lock"));
        }
        Ok(())
    }
}

fn is_compiled(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "compiled")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;
    use crate::machine::{Engine, Limits};

    const KEY: [u8; HASH_BYTES] = [7; HASH_BYTES];

    /// Gets a component out of the cache, and says how often it was compiled for that.
    fn compiles(cache: &CompileCache, engine: &Engine, name: &str) -> usize {
        let count = AtomicUsize::new(0);
        let component = cache.component(engine.inner(), name, || {
            count.fetch_add(1, Ordering::Relaxed);
            let component = wat::parse_str("(component)").unwrap();
            Ok::<_, Infallible>(Component::new(engine.inner(), component).unwrap())
        });
        assert!(component.is_ok());
        count.into_inner()
    }

    #[test]
    fn a_component_is_compiled_once_by_many_at_the_same_time() {
        let dir = tempfile::tempdir().unwrap();
        let compiled: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        // Each node has an engine of its own.
                        let engine = Engine::new(&Limits::default()).unwrap();
                        compiles(&CompileCache::new(dir.path().join("cache"), KEY), &engine, "a")
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(compiled, 1);
    }

    #[test]
    fn a_file_that_was_changed_or_is_for_another_engine_is_compiled_again() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::new(&Limits::default()).unwrap();
        let cache = CompileCache::new(dir.path().to_owned(), KEY);
        assert_eq!(compiles(&cache, &engine, "a"), 1);
        assert_eq!(compiles(&cache, &engine, "a"), 0);
        // Under another name, in its place.
        fs::copy(cache.path("a"), cache.path("b")).unwrap();
        assert_eq!(compiles(&cache, &engine, "b"), 1);
        let mut bytes = fs::read(cache.path("a")).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(cache.path("a"), bytes).unwrap();
        assert_eq!(compiles(&cache, &engine, "a"), 1);
        fs::write(cache.path("a"), b"short").unwrap();
        assert_eq!(compiles(&cache, &engine, "a"), 1);
        // With another secret, or for other options.
        assert_eq!(compiles(&CompileCache::new(dir.path().to_owned(), [8; 32]), &engine, "a"), 1);
        let other = Engine::interpreter(&Limits::default()).unwrap();
        assert_eq!(compiles(&cache, &engine, "a"), 1);
        assert_eq!(compiles(&cache, &other, "a"), 1);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_done_without() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        let engine = Engine::new(&Limits::default()).unwrap();
        assert_eq!(compiles(&CompileCache::new(file.join("below"), KEY), &engine, "a"), 1);
    }

    #[test]
    fn only_the_newest_files_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::new(&Limits::default()).unwrap();
        let cache = CompileCache::new(dir.path().to_owned(), KEY);
        for number in 0..FILES_MAX + 3 {
            compiles(&cache, &engine, &format!("{number:02}"));
        }
        let files = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        assert_eq!(files.filter(|path| is_compiled(path)).count(), FILES_MAX);
        assert_eq!(compiles(&cache, &engine, &format!("{:02}", FILES_MAX + 2)), 0);
    }
}
