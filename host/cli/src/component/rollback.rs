//! `conclave component rollback`: activates the previous component.

use clap::Args;
use conclave_client::Permissions;

use super::show;
use crate::{Failed, Result, output::Output, remote::Remote};

/// Activate the previous component again
///
/// A rollback is an activation like any other. The present state is migrated with all writes; no
/// write is undone. It is refused if the previous component does not restore states of the active
/// component's version. A second rollback returns to the component that was left.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave component rollback
  conclave component rollback --allow-breaking
  conclave component rollback --without 3")]
pub(super) struct Rollback {
    /// Roll back although clients of the active component may fail
    #[arg(long)]
    allow_breaking: bool,

    /// Do not wait for this node, which is down; it rolls back when it is back. Repeatable; a
    /// majority of the voters must be ready
    #[arg(long, value_name = "NODE")]
    without: Vec<u64>,
}

impl Rollback {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let client = remote.client()?;
        let components = client.components().await.map_err(|error| remote.failed(&error))?;
        // The request names the active component, so that a repeated request cannot roll
        // back twice.
        let active = components.iter().find(|component| component.active);
        let active = active.ok_or_else(|| Failed::local("no node reported an active component"))?;
        let permissions =
            Permissions { allow_breaking: self.allow_breaking, without: self.without };
        let activated = client.rollback_component_with(&active.id, &permissions).await;
        let activated = activated.map_err(|error| remote.failed(&error))?;
        show::activated(&activated, remote.json, output);
        Ok(())
    }
}
