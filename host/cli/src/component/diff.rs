//! `conclave component diff`: what clients would notice.

use clap::Args;
use serde_json::json;

use super::show;
use crate::{Result, output::Output, remote::Remote};

/// Show what would change for clients if a component were active
///
/// Compares the services of the active component with those of the other, by what travels: a change is breaking if
/// a client that was built for the active one could fail or be misunderstood. `activate` refuses those without
/// --allow-breaking. What the machine does with a request no comparison can tell.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave component diff 3f8a02
  conclave component diff 3f8a02 --json | jq '.changes[] | select(.breaking)'

With --json: {\"from\", \"to\", \"from_state_version\", \"to_state_version\", \"restores\",
\"changes\": [{\"subject\", \"text\", \"breaking\"}]}")]
pub(super) struct Diff {
    /// The component's id, or the beginning of it
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
            output.line("clients would notice nothing");
        }
        output.line(format!(
            "state version {} → {}: {}",
            diff.from_state_version,
            diff.to_state_version,
            match diff.restores {
                true => "it restores the active component's state",
                false =>
                    "it does not restore the active component's state, so it cannot be activated",
            }
        ));
        let short = show::short(&diff.to);
        if diff.changes.iter().any(|change| change.breaking) {
            output.remark(format!(
                "clients of the active component may fail: mend the component, or \
                 `conclave component activate {short} --allow-breaking`"
            ));
        }
        Ok(())
    }
}
