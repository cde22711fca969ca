//! `conclave backup`: backups of a running cluster, and backup files.

mod create;
mod inspect;
mod verify;

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};

use super::{Failed, Result, output::Output};
use conclave::{
    backup::KeySource,
    config::{MasterKeySource, Settings, StoppedNode},
};
use conclave_storage::BackupReader;

/// Save the state of a running cluster to a file, and examine such files
///
/// A backup holds everything that the cluster has applied up to one log index: the state, the
/// components and the limits. It is encrypted. By default, the master key of the cluster opens it.
/// `conclave restore` makes the data directories of a new cluster from it.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave backup create cluster.backup
  conclave backup create - --passphrase-file phrase.txt | ssh host 'cat > cluster.backup'
  conclave backup inspect cluster.backup
  conclave backup verify cluster.backup --master-key-file master.key")]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Create(create::Create),
    Inspect(inspect::Inspect),
    Verify(verify::Verify),
}

/// Runs the verb.
pub async fn run(arguments: Arguments, output: &mut Output) -> Result {
    match arguments.verb {
        Verb::Create(create) => create.run(output).await,
        Verb::Inspect(inspect) => inspect.run(output).await,
        Verb::Verify(verify) => verify.run(output).await,
    }
}

/// A key of a backup other than a master key.
#[derive(Args, Clone, Debug)]
pub(crate) struct OwnKey {
    /// File with the key of the backup, as `conclave key generate` writes it
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_file")]
    key_file: Option<PathBuf>,

    /// File with the passphrase of the backup, at least 12 characters
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl OwnKey {
    /// Returns the key, if one is given.
    pub(crate) fn source(&self) -> Option<KeySource> {
        let passphrase = self.passphrase_file.clone().map(KeySource::PassphraseFile);
        passphrase.or_else(|| self.key_file.clone().map(KeySource::KeyFile))
    }
}

/// Returns the master key from a flag or the environment.
pub(crate) fn master_key(file: Option<PathBuf>) -> Result<MasterKeySource> {
    let settings =
        // The directory is not used. The rules for the key are those of a node.
        Settings { master_key_file: file, data_dir: Some(PathBuf::new()), ..Settings::default() };
    let found = StoppedNode::load(settings).map_err(|error| Failed::usage(&error))?;
    Ok(found.master_key)
}

/// Opens a backup file, or stdin for `-`.
pub(crate) fn open(path: &Path) -> Result<BackupReader<Box<dyn Read + Send>>> {
    let (name, source): (String, Box<dyn Read + Send>) = match path.as_os_str() == "-" {
        true => ("stdin".to_owned(), Box::new(io::stdin())),
        false => {
            let file = File::open(path).map_err(Failed::at(path))?;
            (path.display().to_string(), Box::new(io::BufReader::with_capacity(1 << 18, file)))
        }
    };
    BackupReader::open(name, source).map_err(|error| local(&error))
}

pub(crate) fn local(error: &(dyn std::error::Error + 'static)) -> Failed {
    Failed::of(error)
}
