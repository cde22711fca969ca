//! `conclave backup create`: saves the state of a running cluster.

use std::path::PathBuf;

use clap::Args;
use conclave_client::{BackupData, BackupStream, proto::cluster::WrappingKey};
use serde_json::json;
use tokio::task::spawn_blocking;

use super::{OwnKey, inspect, local, open};
use crate::{
    Failed, Result,
    output::Output,
    remote::Remote,
    whole_file::{Existing, WholeFile},
};
use conclave::backup::new_key;
use conclave_storage::{BackupInfo, Frames};
use conclave_types::backup::Stretch;

/// Save the state of a running cluster to a file
///
/// The backup has one consistent state: everything up to one log index, which includes every write
/// that was acknowledged before. Any node can make it. The node takes a snapshot, restores it into
/// an instance, encrypts it under a key of its own and streams it. The cluster keeps serving.
///
/// By default, the master key of the node that makes the backup opens it. With --passphrase-file or
/// --key-file, that passphrase or key opens it instead. The node receives a key that is derived from
/// it, and the connection is not encrypted: use these options only on a network where no other
/// program can listen.
///
/// The file gets its name only after it was written, synced and read again. An existing file is not
/// replaced.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave backup create cluster.backup
  conclave backup create /backups/$(date +%F).backup --endpoints 10.0.0.2:7101
  conclave backup create cluster.backup --passphrase-file phrase.txt
  conclave backup create - | ssh host 'cat > cluster.backup'

With --json: {\"file\", \"cluster_id\", \"index\", \"bytes\", \"key\", \"key_id\", ...}, as of `conclave backup inspect`.
A backup on stdout is complete only if the exit code is 0: check it with `conclave backup verify`.")]
pub(super) struct Create {
    /// File to write, - for stdout
    #[arg(value_name = "FILE")]
    file: PathBuf,

    #[command(flatten)]
    key: OwnKey,

    #[command(flatten)]
    remote: Remote,
}

/// Returns the request's form of a key.
fn to_wire(key: &conclave_types::backup::WrappingKey) -> WrappingKey {
    let mut wire = WrappingKey { key: key.key.to_vec(), ..WrappingKey::default() };
    if let Some(Stretch { salt, memory_kib, passes, lanes }) = key.stretch {
        wire = WrappingKey { salt: salt.to_vec(), memory_kib, passes, lanes, ..wire };
    }
    wire
}

impl Create {
    pub(super) async fn run(self, output: &mut Output) -> Result {
        output.set_json(self.remote.json);
        let key = match self.key.source() {
            None => None,
            Some(source) => {
                let key = spawn_blocking(move || new_key(&source)).await;
                let key = key.map_err(|error| local(&error))?.map_err(|error| local(&error))?;
                Some(to_wire(&key))
            }
        };
        if self.file.as_os_str() == "-" {
            let stream = self.begin(key).await?;
            return self.to_stdout(stream, output).await;
        }
        let mut file = WholeFile::create(&self.file, Existing::Refused)?;
        let stream = self.begin(key).await?;
        let sent = self.receive(stream, |bytes| file.write(bytes)).await?;
        file.sync()?;
        let temporary = file.temporary().to_owned();
        let checking = spawn_blocking(move || {
            let reader = open(&temporary)?;
            let (info, key_id) = (reader.info().clone(), reader.key_id());
            let found = reader.check_frames().map_err(|error| local(&error))?;
            Ok::<_, Failed>((info, key_id, found))
        });
        let (info, key_id, found) = checking.await.map_err(|error| local(&error))??;
        if found != sent {
            return Err(Failed::local(format!(
                "{} does not have the bytes that the node sent: check the disk, and try again",
                self.file.display()
            )));
        }
        file.finish()?;
        self.tell(&info, &key_id, found, output);
        Ok(())
    }

    async fn begin(&self, key: Option<WrappingKey>) -> Result<BackupStream> {
        let begun = self.remote.client()?.create_backup(key).await;
        begun.map_err(|error| self.remote.failed(&error))
    }

    /// Passes all bytes on, and returns the size and the hash that the node sent at the end.
    async fn receive(
        &self,
        mut stream: BackupStream,
        mut write: impl FnMut(&[u8]) -> Result,
    ) -> Result<Frames> {
        let mut end = None;
        let mut received = 0;
        while let Some(data) = stream.next().await.map_err(|error| self.remote.failed(&error))? {
            match data {
                BackupData::Bytes(bytes) => {
                    received += bytes.len() as u64;
                    write(&bytes)?;
                }
                BackupData::End { bytes, blake3 } => end = Some((bytes, blake3)),
            }
        }
        let incomplete = || Failed::local("the node did not send the whole backup: try again");
        let (bytes, blake3) = end.filter(|(bytes, _)| *bytes == received).ok_or_else(incomplete)?;
        let blake3 = blake3.try_into().map_err(|_| incomplete())?;
        Ok(Frames { bytes, blake3 })
    }

    /// Writes the backup to stdout, where it cannot be read again.
    async fn to_stdout(&self, stream: BackupStream, output: &mut Output) -> Result {
        let mut out = output.clone();
        self.receive(stream, |bytes| {
            out.bytes(bytes);
            match out.is_broken() {
                true => Err(Failed::local("cannot write the backup to standard output")),
                false => Ok(()),
            }
        })
        .await?;
        Ok(())
    }

    fn tell(&self, info: &BackupInfo, key_id: &str, found: Frames, output: &mut Output) {
        let mut value = inspect::as_json(info, key_id, found.bytes);
        if self.remote.json {
            value["file"] = json!(self.file.display().to_string());
            output.value(&value);
            return;
        }
        output.line(format!(
            "{}: cluster {} at index {}, {} bytes",
            self.file.display(),
            info.cluster_id,
            info.index,
            found.bytes
        ));
        output.remark(format!(
            "{} opens it: keep a copy of that key apart from the backup, and check the backup with `conclave backup \
             verify`",
            inspect::key_name(info, key_id)
        ));
    }
}
