//! `conclave component activate`: another component goes on with the state.

use clap::Args;
use conclave_client::Permissions;

use super::show;
use crate::{Result, output::Output, remote::Remote};

/// Make a component the one that the cluster runs
///
/// Refused unless every voter has rehearsed it and is up (see --without), and, without --allow-breaking, if clients of
/// the active component could fail. At one index every node carries its state over; writes wait meanwhile, reads do
/// not. If the state cannot be carried over, the answer says why, and the active component goes on, on every node.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave component activate 3f8a02
  conclave component activate 3f8a02 --allow-breaking
  conclave component activate 3f8a02 --without 3")]
pub(super) struct Activate {
    /// The component's id, or the beginning of it
    #[arg(value_name = "COMPONENT")]
    component: String,

    /// Activate it though clients of the active component may fail: `conclave component diff` says which
    #[arg(long)]
    allow_breaking: bool,

    /// Do not wait for this node, which is down; it activates the component when it is back. Repeat for several: a
    /// majority of the voters must be ready
    #[arg(long, value_name = "NODE")]
    without: Vec<u64>,
}

impl Activate {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let permissions =
            Permissions { allow_breaking: self.allow_breaking, without: self.without };
        let client = remote.client()?;
        let activated = client.activate_component_with(&self.component, &permissions).await;
        let activated = activated.map_err(|error| remote.failed(&error))?;
        show::activated(&activated, remote.json, output);
        Ok(())
    }
}
