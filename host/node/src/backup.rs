//! Backups without a running node: description, verification, and restoring into new directories.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use crate::{
    config::{Config, MasterKeySource},
    node::{master_key, startup},
};
use conclave_crypto as crypto;
use conclave_crypto::{MasterKey, Passphrase};
use conclave_machine::{Engine, Limits};
use conclave_raft::backup::{NotRestored, restore_backup, verify_backup};
pub use conclave_raft::backup::{RestoredCluster, VerifiedBackup};
use conclave_storage::{Backup, BackupKey, BackupReader, RestoreTarget, WrappedBy};
use conclave_types::{
    backup::{Stretch, WrappingKey},
    error::Error,
};

/// The source of the key that opens a backup, or under which a backup is taken.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// A master key.
    MasterKey(MasterKeySource),
    /// A file with a key of its own.
    KeyFile(PathBuf),
    /// A file with a passphrase.
    PassphraseFile(PathBuf),
}

/// Returns the key for a new backup. Takes about a quarter of a second for a passphrase.
///
/// # Errors
/// The file cannot be read, or holds no key or passphrase.
pub fn new_key(source: &KeySource) -> Result<WrappingKey, Error> {
    match source {
        KeySource::MasterKey(source) => {
            Ok(WrappingKey { key: *master_key(source)?.bytes(), stretch: None })
        }
        KeySource::KeyFile(path) => {
            let key = MasterKey::from_file(path).map_err(wrong)?;
            Ok(WrappingKey { key: *key.bytes(), stretch: None })
        }
        KeySource::PassphraseFile(path) => {
            let stretch = crypto::Stretch::generate().map_err(wrong)?;
            let key = Passphrase::from_file(path).and_then(|given| given.key(&stretch));
            let crypto::Stretch { salt, memory_kib, passes, lanes } = stretch;
            let stretch = Some(Stretch { salt, memory_kib, passes, lanes });
            Ok(WrappingKey { key: *key.map_err(wrong)?.bytes(), stretch })
        }
    }
}

/// Returns the key of an operator in the form that storage uses.
pub(crate) fn of_operator(WrappingKey { key, stretch }: WrappingKey) -> BackupKey {
    let wrapped_by = match stretch {
        None => WrappedBy::KeyFile,
        Some(Stretch { salt, memory_kib, passes, lanes }) => {
            WrappedBy::Passphrase(crypto::Stretch { salt, memory_kib, passes, lanes })
        }
    };
    BackupKey { key: MasterKey::from_bytes(key), wrapped_by }
}

/// Opens a backup with the key from this source.
fn unlock<R: Read>(reader: BackupReader<R>, source: &KeySource) -> Result<Backup<R>, Error> {
    let key = match (source, reader.info().wrapped_by) {
        (KeySource::PassphraseFile(path), WrappedBy::Passphrase(stretch)) => {
            Passphrase::from_file(path).and_then(|given| given.key(&stretch)).map_err(wrong)?
        }
        (KeySource::PassphraseFile(_), WrappedBy::MasterKey | WrappedBy::KeyFile) => {
            return Err(Error::invalid(format!(
                "the backup is not sealed under a passphrase, but under the key with id {}: give that key",
                reader.key_id()
            )));
        }
        (KeySource::KeyFile(path), _) => MasterKey::from_file(path).map_err(wrong)?,
        (KeySource::MasterKey(source), _) => master_key(source)?,
    };
    reader.unlock(&key).map_err(startup)
}

/// Authenticates a backup to its end, and restores its state into an instance of its component.
/// Blocking.
///
/// # Errors
/// The key is wrong, the backup is damaged, or its state cannot be restored.
pub fn verify<R: Read + Send + 'static>(
    reader: BackupReader<R>,
    key: &KeySource,
) -> Result<VerifiedBackup, Error> {
    let backup = unlock(reader, key)?;
    let engine = Engine::new(&Limits::default()).map_err(startup)?;
    verify_backup(backup, &engine).map_err(not_restored)
}

/// Makes data directories of a new cluster, one per given node and directory. The configuration
/// has the cluster id, the members and the master key of the new nodes. Blocking.
///
/// # Errors
/// The key is wrong, the backup is damaged, or a directory is not empty. No directory is then made.
pub fn restore<R: Read>(
    reader: BackupReader<R>,
    key: &KeySource,
    config: &Config,
    nodes: &[(u64, &Path)],
) -> Result<RestoredCluster, Error> {
    if reader.info().cluster_id == config.cluster_id {
        return Err(Error::invalid(format!(
            "the backup was taken from a cluster with the id {0}: give the new cluster another id, so that its nodes \
             and those of the old one can never be mistaken for each other (for example --cluster-id {0}-2)",
            config.cluster_id
        )));
    }
    let backup = unlock(reader, key)?;
    let own_key = master_key(&config.master_key)?;
    let targets = nodes.iter().map(|(node_id, dir)| RestoreTarget {
        dir: dir.to_path_buf(),
        node_id: *node_id,
        master_key: own_key.clone(),
    });
    let restored = restore_backup(backup, &config.cluster_id, &config.members, targets.collect());
    restored.map_err(not_restored)
}

fn wrong(error: crypto::Error) -> Error {
    Error::caused_by(Error::invalid, error)
}

fn not_restored(error: NotRestored) -> Error {
    startup(error)
}
