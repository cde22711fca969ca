//! Private directory for a copy of a node's files, removed when the verb ends.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{Failed, Result};

/// The request to end the verb.
#[derive(Clone)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    pub(crate) fn is_asked_for(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns the future's output, or an error if the verb is to end before.
    pub(super) async fn or<T>(&self, future: impl Future<Output = T>) -> Result<T> {
        let mut asked = self.0.clone();
        tokio::select! {
            biased;
            Ok(_) = asked.wait_for(|asked| *asked) => {
                Err(Failed::local("the replay was stopped; the data directory is unchanged"))
            }
            result = future => Ok(result),
        }
    }
}

/// A directory that only its owner can access. Dropping this removes it.
pub(crate) struct PrivateDir(PathBuf);

impl PrivateDir {
    pub(crate) fn create(parent: &Path) -> Result<Self> {
        let failed = |cause: &(dyn std::error::Error + 'static)| {
            Failed::because(format!("cannot create a directory in {}", parent.display()), cause)
        };
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|cause| failed(&cause))?;
        let path = parent.join(format!("conclave-replay-{}", hex::encode(random)));
        DirBuilder::new().mode(0o700).create(&path).map_err(|cause| failed(&cause))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Handles Ctrl-C and SIGTERM. The first signal requests the verb to end, even in the middle of
    /// an entry. The second one, or the first if the directory no longer exists, removes the
    /// directory and ends the process immediately.
    pub(crate) fn guard(&self) -> Result<Stop> {
        let failed = |cause| Failed::because("cannot wait for signals", &cause);
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let (asks, asked) = watch::channel(false);
        let path = self.0.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if asks.send_replace(true) || !path.exists() {
                    let _ = fs::remove_dir_all(&path);
                    process::exit(1);
                }
            }
        });
        Ok(Stop(asked))
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        // Files that remain are encrypted, and lie in a directory that the system cleans up.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_copy_is_for_its_owner_alone_and_goes_with_the_verb() {
        let parent = tempfile::tempdir().unwrap();
        let private = PrivateDir::create(parent.path()).unwrap();
        let path = private.path().to_owned();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        fs::write(path.join("file"), "content").unwrap();
        drop(private);
        assert!(!path.exists());
    }
}
