//! `conclave module rollback`: back to the module before.

use clap::Args;

use super::show;
use crate::cli::{Failed, Result, output::Output, remote::Remote};

/// Go back to the module that was active before
///
/// It is an activation like any other: the state as it is now is carried over, with all that was written since,
/// and it is refused if the module before does not restore a state of the active one's version. Writes are
/// never undone. Rolling back twice leads to the module that was left.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave module rollback
  conclave module rollback --allow-breaking")]
pub(super) struct Rollback {
    /// Roll back though clients of the active module may fail
    #[arg(long)]
    allow_breaking: bool,
}

impl Rollback {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let client = remote.client()?;
        let modules = client.modules().await.map_err(|error| remote.failed(&error))?;
        // Named, so that a repeated request cannot roll back twice.
        let active = modules.iter().find(|module| module.active);
        let active = active.ok_or_else(|| Failed::local("no node said which module is active"))?;
        let activated = client.rollback_module(&active.id, self.allow_breaking).await;
        let activated = activated.map_err(|error| remote.failed(&error))?;
        show::activated(&activated, remote.json, output);
        Ok(())
    }
}
