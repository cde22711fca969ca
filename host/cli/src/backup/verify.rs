//! `conclave backup verify`: reads a whole backup and restores it into an instance.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use tokio::task::spawn_blocking;

use super::{OwnKey, local, master_key, open};
use crate::{Failed, Result, output::Output};
use conclave::{backup, backup::KeySource};

/// Check a backup file with its key: decrypt all of it and restore it into an instance
///
/// Compiles the component in the backup and restores the state into an instance of it, as a node
/// would. Needs no cluster and no data directory, and writes nothing.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave backup verify cluster.backup --master-key-file master.key
  conclave backup verify cluster.backup --passphrase-file phrase.txt
  ssh host cat cluster.backup | conclave backup verify - --key-file backup.key

With --json: {\"cluster_id\", \"index\", \"component\", \"components\" (their number), \"snapshot_bytes\", \"restore_ms\",
\"memory_bytes\"}")]
pub(super) struct Verify {
    /// Backup file, - for stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// File with the master key of the cluster from which the backup was taken
    #[arg(long, env = "CONCLAVE_MASTER_KEY_FILE", value_name = "FILE")]
    master_key_file: Option<PathBuf>,

    #[command(flatten)]
    key: OwnKey,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(super) async fn run(self, output: &mut Output) -> Result {
        output.set_json(self.json);
        let key = match self.key.source() {
            Some(key) => key,
            None => KeySource::MasterKey(master_key(self.master_key_file)?),
        };
        let file = self.file.clone();
        let verifying = spawn_blocking(move || {
            let reader = open(&file)?;
            let info = reader.info().clone();
            let verified = backup::verify(reader, &key).map_err(|error| local(&error))?;
            Ok::<_, Failed>((info, verified))
        });
        let (info, verified) = verifying.await.map_err(|error| local(&error))??;
        let rehearsal = verified.rehearsal;
        let restore_ms = u64::try_from(rehearsal.restore_time.as_millis()).unwrap_or(u64::MAX);
        if self.json {
            output.value(&json!({
                "cluster_id": info.cluster_id,
                "index": info.index,
                "component": info.component_id.to_string(),
                "components": verified.components,
                "snapshot_bytes": rehearsal.snapshot_bytes,
                "restore_ms": restore_ms,
                "memory_bytes": rehearsal.memory_bytes,
            }));
        } else {
            output.line(format!(
                "the backup is intact: cluster {} at index {}, whose state was restored in {restore_ms} ms",
                info.cluster_id, info.index
            ));
        }
        Ok(())
    }
}
