//! `conclave component activate`: makes another component the active one, with the state migrated.

use clap::Args;
use conclave_client::Permissions;

use super::show;
use crate::{Result, output::Output, remote::Remote};

/// Activate a component: switch the running cluster to it
///
/// Every node migrates its state to the component at one log index. Writes wait meanwhile, reads do
/// not. If the state cannot be migrated, the response has the reason and the active component stays
/// active on every node.
///
/// An activation is refused unless every voter has rehearsed the component and is up (see
/// --without). Without --allow-breaking, it is also refused if clients of the active component
/// could fail.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave component activate 3f8a02
  conclave component activate 3f8a02 --allow-breaking
  conclave component activate 3f8a02 --without 3")]
pub(super) struct Activate {
    /// Component id or its beginning, at least six digits
    #[arg(value_name = "COMPONENT")]
    component: String,

    /// Activate the component although clients of the active one may fail; `conclave component
    /// diff` shows the changes
    #[arg(long)]
    allow_breaking: bool,

    /// Do not wait for this node, which is down; it activates the component when it is back.
    /// Repeatable; a majority of the voters must be ready
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
