//! Opening of a stopped node's directory for a replay.

use std::{
    error::Error as StdError,
    fmt,
    path::{Path, PathBuf},
};

use super::{master_key, startup};
use crate::{config::StoppedNode, replay};
use conclave_machine as machine;
use conclave_machine::{Component, Engine};
use conclave_raft::{Components, KeptCode};
use conclave_storage as storage;
use conclave_storage::Storage;
use conclave_types::error::{Error, chain};

/// Opens a stopped node's directory for a replay. The replay works on `copy`, an empty directory of
/// the caller. Blocking; polls `stop` to cancel.
pub fn open_replay(
    stopped: &StoppedNode,
    copy: &Path,
    stop: impl Fn() -> bool,
) -> Result<replay::Source, Error> {
    let dir = &stopped.data_dir;
    let key = master_key(&stopped.master_key)?;
    // An error in the copy is an error in the original.
    let named = |error| {
        let (copy, original) = (copy.to_owned(), dir.clone());
        Error::caused_by(Error::fatal, InCopy { error, copy, original })
    };
    let storage = Storage::open_copy(dir, copy, key, stop).map_err(named)?;
    let Storage { identity, initial_component, log, snapshots, compiled, .. } = storage;
    let kept = KeptCode::new(compiled);
    let snapshot = snapshots.latest().map_err(named)?;
    let engine = Engine::new(&machine::Limits::default()).map_err(startup)?;
    let initial_component =
        Component::load_with(&engine, initial_component, kept.compiling(false)).map_err(startup)?;
    let seed = identity.seed();
    let components = Components::new(initial_component.clone(), seed, kept);
    Ok(replay::Source::new(replay::Parts {
        identity,
        log,
        snapshot,
        components,
        initial_component,
        seed,
    }))
}

/// An error in the copy of a data directory. Its text names the files of the original.
#[derive(Debug)]
struct InCopy {
    error: storage::Error,
    copy: PathBuf,
    original: PathBuf,
}

impl fmt::Display for InCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = chain(&self.error);
        f.write_str(&text.replace(&*self.copy.to_string_lossy(), &self.original.to_string_lossy()))
    }
}

impl StdError for InCopy {
    /// The cause of the error. The error itself would be shown a second time, with the copy's paths.
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.source()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn error_in_the_copy_names_the_original_and_keeps_its_cause() {
        let source = io::Error::from(io::ErrorKind::StorageFull);
        let path = "/tmp/copy/log/db".into();
        let error = storage::Error::Io { action: "cannot open", path, source };
        let (copy, original) = ("/tmp/copy".into(), "/data".into());
        let error = Error::caused_by(Error::fatal, InCopy { error, copy, original });
        let text = chain(&error);
        assert!(text.starts_with("cannot open /data/log/db: ") && !text.contains("copy"), "{text}");
        let cause = error.source().unwrap().source().unwrap();
        let cause = cause.downcast_ref::<io::Error>().unwrap();
        assert_eq!(cause.kind(), io::ErrorKind::StorageFull);
    }
}
