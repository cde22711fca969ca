//! `conclave component push`: a component to all nodes.

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

/// Bring a machine's component to all nodes
///
/// The leader loads it first, as `conclave inspect` does, and refuses what no node would run; then it goes
/// through the log. Every node compiles and rehearses it in the background. Nothing is active yet. The cluster
/// keeps eight components; the oldest one that is neither active nor the one before gives way to a new one.
///
/// A component that the cluster has already is not sent again, and a push that was interrupted is continued.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave build my-machine && conclave component push my-machine/target/my-machine.wasm
  conclave component push my-machine.wasm --json | jq -r .component")]
pub(super) struct Push {
    /// The component
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
            true => "it is active already".to_owned(),
            false => format!(
                "its nodes rehearse it now: `conclave component rehearse {short}` waits for them, \
                 `conclave component diff {short}` shows what clients would notice, and then \
                 `conclave component activate {short}`"
            ),
        });
        Ok(())
    }
}
