//! `conclave module activate`: another module goes on with the state.

use clap::Args;

use super::show;
use crate::cli::{Result, output::Output, remote::Remote};

/// Make a module the one that the cluster runs
///
/// Refused unless every voter has rehearsed it and is up, and, without --allow-breaking, if clients of the
/// active module could fail. At one index every node carries its state over; writes wait meanwhile, reads do
/// not. If the state cannot be carried over, the answer says why, and the active module goes on, on every node.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave module activate 3f8a02
  conclave module activate 3f8a02 --allow-breaking")]
pub(super) struct Activate {
    /// The module's id, or the beginning of it
    #[arg(value_name = "MODULE")]
    module: String,

    /// Activate it though clients of the active module may fail: `conclave module diff` says which
    #[arg(long)]
    allow_breaking: bool,
}

impl Activate {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let activated = remote.client()?.activate_module(&self.module, self.allow_breaking).await;
        let activated = activated.map_err(|error| remote.failed(&error))?;
        show::activated(&activated, remote.json, output);
        Ok(())
    }
}
