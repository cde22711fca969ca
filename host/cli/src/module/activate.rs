//! `conclave module activate`: another module goes on with the state.

use clap::Args;
use conclave_client::Permissions;

use super::show;
use crate::{Result, output::Output, remote::Remote};

/// Make a module the one that the cluster runs
///
/// Refused unless every voter has rehearsed it and is up (see --without), and, without --allow-breaking, if clients of
/// the active module could fail. At one index every node carries its state over; writes wait meanwhile, reads do
/// not. If the state cannot be carried over, the answer says why, and the active module goes on, on every node.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave module activate 3f8a02
  conclave module activate 3f8a02 --allow-breaking
  conclave module activate 3f8a02 --without 3")]
pub(super) struct Activate {
    /// The module's id, or the beginning of it
    #[arg(value_name = "MODULE")]
    module: String,

    /// Activate it though clients of the active module may fail: `conclave module diff` says which
    #[arg(long)]
    allow_breaking: bool,

    /// Do not wait for this node, which is down; it activates the module when it is back. Repeat for several: a
    /// majority of the voters must be ready
    #[arg(long, value_name = "NODE")]
    without: Vec<u64>,
}

impl Activate {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let permissions =
            Permissions { allow_breaking: self.allow_breaking, without: self.without };
        let client = remote.client()?;
        let activated = client.activate_module_with(&self.module, &permissions).await;
        let activated = activated.map_err(|error| remote.failed(&error))?;
        show::activated(&activated, remote.json, output);
        Ok(())
    }
}
