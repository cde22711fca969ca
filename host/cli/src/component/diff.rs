//! `conclave component diff`: the changes that clients would notice.

use clap::Args;
use serde_json::json;

use super::show;
use crate::{Result, output::Output, remote::Remote};

/// Compare a component with the active one: show the changes for clients
///
/// Compares the services of both components by their wire format. A change is breaking if a client
/// that was built for the active component could fail or be misunderstood. `activate` refuses
/// breaking changes without --allow-breaking. The comparison does not cover how the state machine
/// handles a request.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave component diff 3f8a02
  conclave component diff 3f8a02 --json | jq '.changes[] | select(.breaking)'

With --json: {\"from\", \"to\", \"from_state_version\", \"to_state_version\", \"restores\",
\"changes\": [{\"subject\", \"text\", \"breaking\"}]}")]
pub(super) struct Diff {
    /// Component id or its beginning, at least six digits
    #[arg(value_name = "COMPONENT")]
    component: String,
}

impl Diff {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let diff = remote.client()?.diff_component(&self.component).await;
        let diff = diff.map_err(|error| remote.failed(&error))?;
        if remote.json {
            let changes = diff.changes.iter().map(|change| {
                json!({
                    "subject": change.subject,
                    "text": change.text,
                    "breaking": change.breaking,
                })
            });
            output.value(&json!({
                "from": diff.from,
                "to": diff.to,
                "from_state_version": diff.from_state_version,
                "to_state_version": diff.to_state_version,
                "restores": diff.restores,
                "changes": changes.collect::<Vec<_>>(),
            }));
            return Ok(());
        }
        for change in &diff.changes {
            let mark = if change.breaking { "breaking: " } else { "" };
            output.line(format!("{mark}{} {}", change.subject, change.text));
        }
        if diff.changes.is_empty() {
            output.line("no changes for clients");
        }
        output.line(format!(
            "state version {} → {}: {}",
            diff.from_state_version,
            diff.to_state_version,
            match diff.restores {
                true => "the component restores the active one's state",
                false =>
                    "the component does not restore the active one's state and cannot be activated",
            }
        ));
        let short = show::short(&diff.to);
        if diff.changes.iter().any(|change| change.breaking) {
            output.remark(format!(
                "clients of the active component may fail: fix the component, or run \
                 `conclave component activate {short} --allow-breaking`"
            ));
        }
        Ok(())
    }
}
