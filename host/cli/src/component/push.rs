//! `conclave component push`: sends a component to all nodes.

use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use sha2::{Digest, Sha256};

use super::show;
use crate::{
    Result,
    output::Output,
    remote::{Remote, file},
};

/// Send a component to all nodes
///
/// The leader first loads the component as `conclave inspect` does, and refuses it if no node could
/// run it. Then the component goes through the log, and every node compiles and rehearses it in the
/// background. It does not become active yet. The cluster keeps eight components; a new one
/// replaces the oldest that is neither active nor the previous one.
///
/// A component that the cluster already has is not sent again. An interrupted push is continued.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave build my-machine && conclave component push my-machine/target/my-machine.wasm
  conclave component push my-machine.wasm --json | jq -r .component")]
pub(super) struct Push {
    /// Component to send
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Push {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let component = Bytes::from(file(&self.file)?);
        let id: [u8; 32] = Sha256::digest(&component).into();
        let mut progress = output.progress(component.len() as u64, "bytes");
        let mut sent = 0;
        let pushed = remote
            .client()?
            .push_component(id, component, |now| {
                progress.advance(now.saturating_sub(sent));
                sent = sent.max(now);
            })
            .await;
        progress.finish();
        let component = pushed.map_err(|error| remote.failed(&error))?;
        if remote.json {
            output.value(&show::as_json(&component));
            return Ok(());
        }
        output.line(format!("the cluster has {}", show::name(&component)));
        let short = show::short(&component.id);
        output.remark(match component.active {
            true => "the component is already active".to_owned(),
            false => format!(
                "the nodes rehearse it now: `conclave component rehearse {short}` waits for them, \
                 `conclave component diff {short}` shows the changes for clients, and \
                 `conclave component activate {short}` switches to it"
            ),
        });
        Ok(())
    }
}
