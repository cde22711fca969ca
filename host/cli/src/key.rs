//! `conclave key`: generation of master keys.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};

use super::{Failed, Result, output::Output};

const KEY_BYTES: usize = 32;

/// Generate master keys
///
/// The master key wraps the keys that encrypt everything a node writes. All nodes of a cluster may
/// share one master key, or each may have its own. Without its master key, a node's data cannot be
/// read: keep a copy of the key away from the disks that it protects.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave key generate /etc/conclave/master.key
  conclave serve --master-key-file /etc/conclave/master.key ...")]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write a new random master key to a file that only its owner can read
    #[command(after_long_help = "\
The file holds 64 hexadecimal digits. An existing file is never overwritten: the data that its key
encrypts would become unreadable.

Examples:
  conclave key generate master.key")]
    Generate {
        /// File to create
        file: PathBuf,
    },
}

/// Runs the verb.
pub fn run(arguments: Arguments, output: &mut Output) -> Result {
    let Verb::Generate { file } = arguments.verb;
    generate(&file)?;
    output.remark(format!("{}: wrote a new master key; keep a copy elsewhere", file.display()));
    Ok(())
}

/// Writes a new key durably to a new file. Fails if the file exists.
pub fn generate(path: &Path) -> Result {
    let mut key = zeroize::Zeroizing::new([0; KEY_BYTES]);
    getrandom::fill(key.as_mut_slice())
        .map_err(|cause| Failed::because("cannot get random numbers", &cause))?;
    let text = zeroize::Zeroizing::new(format!("{}\n", hex::encode(key.as_slice())));
    write_new(path, text.as_bytes()).map_err(|cause| match cause.kind() {
        std::io::ErrorKind::AlreadyExists => Failed::local(format!(
            "{} exists and was not changed; choose another name",
            path.display()
        )),
        _ => Failed::because(path.display(), &cause),
    })
}

fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_for_its_owner_alone_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        generate(&path).unwrap();
        let first = std::fs::read_to_string(&path).unwrap();
        assert_eq!(first.trim().len(), 2 * KEY_BYTES);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let Err(Failed::Failure { message, .. }) = generate(&path) else { panic!("overwritten") };
        assert!(message.contains("exists"), "{message}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), first);
    }
}
