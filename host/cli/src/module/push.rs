//! `conclave module push`: a component to all nodes.

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
/// keeps eight modules; the oldest one that is neither active nor the one before gives way to a new one.
///
/// A component that the cluster has already is not sent again, and a push that was interrupted is continued.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave build my-machine && conclave module push my-machine/target/my-machine.wasm
  conclave module push my-machine.wasm --json | jq -r .module")]
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
            .push_module(id, component, |now| {
                progress.advance(now.saturating_sub(sent));
                sent = sent.max(now);
            })
            .await;
        progress.finish();
        let module = pushed.map_err(|error| remote.failed(&error))?;
        if remote.json {
            output.value(&show::as_json(&module));
            return Ok(());
        }
        output.line(format!("the cluster has {}", show::name(&module)));
        let short = show::short(&module.id);
        output.remark(match module.active {
            true => "it is active already".to_owned(),
            false => format!(
                "its nodes rehearse it now: `conclave module rehearse {short}` waits for them, \
                 `conclave module diff {short}` shows what clients would notice, and then \
                 `conclave module activate {short}`"
            ),
        });
        Ok(())
    }
}
