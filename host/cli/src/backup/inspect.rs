//! `conclave backup inspect`: describes a backup without its key.

use std::{
    path::PathBuf,
    time::{Duration, UNIX_EPOCH},
};

use clap::Args;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::{local, open};
use crate::{Failed, Result, output::Output};
use conclave_storage::{BackupInfo, WrappedBy};

/// Show the description of a backup file, without its key
///
/// Checks that the file is complete, by its structure. Only `conclave backup verify`, which needs
/// the key, detects every change.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave backup inspect cluster.backup
  conclave backup inspect cluster.backup --json | jq .index

With --json: {\"cluster_id\", \"index\", \"component\", \"name\", \"version\", \"created\", \"created_ms\", \"format_version\",
\"bytes\" (of the file), \"state_bytes\", \"key\" (master-key, key-file or passphrase), \"key_id\", \"backup_id\",
\"written_by\" (version of Conclave)}")]
pub(super) struct Inspect {
    /// Backup file, - for stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub(super) async fn run(self, output: &mut Output) -> Result {
        output.set_json(self.json);
        let file = self.file;
        let reading = spawn_blocking(move || {
            let reader = open(&file)?;
            let (info, key_id) = (reader.info().clone(), reader.key_id());
            let found = reader.check_frames().map_err(|error| local(&error))?;
            Ok::<_, Failed>((info, key_id, found))
        });
        let (info, key_id, found) = reading.await.map_err(|error| local(&error))??;
        if self.json {
            output.value(&as_json(&info, &key_id, found.bytes));
            return Ok(());
        }
        let rows = [
            ("cluster", info.cluster_id.clone()),
            ("index", info.index.to_string()),
            ("component", info.component_id.to_string()),
            ("name", format!("{} {}", info.component_name, info.component_version)),
            ("created", created(&info)),
            ("key", key_name(&info, &key_id)),
            ("size", format!("{} bytes, {} of them contents", found.bytes, info.bytes)),
            ("format", format!("version {FORMAT_VERSION}, written by Conclave {}", info.version)),
        ];
        for (name, value) in rows {
            output.line(format!("{name:<10} {}", crate::output::printable(&value)));
        }
        Ok(())
    }
}

/// The only format version that this program reads.
const FORMAT_VERSION: u16 = 1;

/// Returns the time of the backup in UTC.
fn created(info: &BackupInfo) -> String {
    // The format ends with the year 9999. The field is not authenticated here.
    let seconds = (info.created_ms / 1000).min(253_402_300_799);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

fn kind(info: &BackupInfo) -> &'static str {
    match info.wrapped_by {
        WrappedBy::MasterKey => "master-key",
        WrappedBy::KeyFile => "key-file",
        WrappedBy::Passphrase(_) => "passphrase",
    }
}

/// Names the key that opens a backup.
pub(super) fn key_name(info: &BackupInfo, key_id: &str) -> String {
    match info.wrapped_by {
        WrappedBy::MasterKey => format!("the master key with id {key_id}"),
        WrappedBy::KeyFile => format!("the key file with id {key_id}"),
        WrappedBy::Passphrase(_) => "its passphrase".to_owned(),
    }
}

/// Formats a description as JSON.
pub(super) fn as_json(info: &BackupInfo, key_id: &str, bytes: u64) -> Value {
    json!({
        "cluster_id": info.cluster_id,
        "index": info.index,
        "component": info.component_id.to_string(),
        "name": info.component_name,
        "version": info.component_version,
        "created": created(info),
        "created_ms": info.created_ms,
        "format_version": FORMAT_VERSION,
        "bytes": bytes,
        "state_bytes": info.bytes,
        "key": kind(info),
        "key_id": key_id,
        "backup_id": hex::encode(info.backup_id),
        "written_by": info.version,
    })
}
