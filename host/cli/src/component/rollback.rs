//! `conclave component rollback`: back to the component before.

use clap::Args;
use conclave_client::Permissions;

use super::show;
use crate::{Failed, Result, output::Output, remote::Remote};

/// Go back to the component that was active before
///
/// It is an activation like any other: the state as it is now is carried over, with all that was written since,
/// and it is refused if the component before does not restore a state of the active one's version. Writes are
/// never undone. Rolling back twice leads to the component that was left.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave component rollback
  conclave component rollback --allow-breaking
  conclave component rollback --without 3")]
pub(super) struct Rollback {
    /// Roll back though clients of the active component may fail
    #[arg(long)]
    allow_breaking: bool,

    /// Do not wait for this node, which is down; it rolls back when it is back. Repeat for several: a majority of the
    /// voters must be ready
    #[arg(long, value_name = "NODE")]
    without: Vec<u64>,
}

impl Rollback {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let client = remote.client()?;
        let components = client.components().await.map_err(|error| remote.failed(&error))?;
        // Named, so that a repeated request cannot roll back twice.
        let active = components.iter().find(|component| component.active);
        let active =
            active.ok_or_else(|| Failed::local("no node said which component is active"))?;
        let permissions =
            Permissions { allow_breaking: self.allow_breaking, without: self.without };
        let activated = client.rollback_component_with(&active.id, &permissions).await;
        let activated = activated.map_err(|error| remote.failed(&error))?;
        show::activated(&activated, remote.json, output);
        Ok(())
    }
}
