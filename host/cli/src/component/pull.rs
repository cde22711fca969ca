//! `conclave component pull`: saves a component of the cluster to a file.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::show;
use crate::{
    Failed, Result,
    output::Output,
    remote::Remote,
    whole_file::{Existing, WholeFile},
};

/// Save a component of the cluster to a file
///
/// The component's hash is checked. An existing file is not replaced.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave component pull 3f8a02 machine.wasm
  conclave component pull $(conclave component list --json | jq -r '.[0].component') active.wasm
  conclave component pull 3f8a02 - | sha256sum")]
pub(super) struct Pull {
    /// Component to save: its id or the beginning of its id, at least six digits
    component: String,

    /// File to write, - for stdout
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Pull {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let to_stdout = self.file.as_os_str() == "-";
        let mut file = match to_stdout {
            true => None,
            false => Some(WholeFile::create(&self.file, Existing::Refused)?),
        };
        let pulled = remote.client()?.pull_component(&self.component, |_, _| ()).await;
        let (id, bytes) = pulled.map_err(|error| remote.failed(&error))?;
        if Sha256::digest(&bytes)[..] != id[..] {
            return Err(Failed::local(
                "the received component does not match its id: the nodes were upgraded meanwhile, or the connection \
                 changes data; try again",
            ));
        }
        let id = hex::encode(id);
        let Some(file) = &mut file else {
            output.bytes(&bytes);
            return Ok(());
        };
        file.write(&bytes)?;
        file.finish()?;
        if remote.json {
            output.value(&json!({"component": id, "bytes": bytes.len()}));
        } else {
            let (short, file) = (show::short(&id), self.file.display());
            output.line(format!("{file}: component {short}, {} bytes", bytes.len()));
        }
        Ok(())
    }
}
