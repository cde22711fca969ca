//! The calls that a stopped node's log has.

use std::{env, path::PathBuf};

use clap::Args;
use tokio::task::spawn_blocking;

use crate::{Failed, Result, output::Output, replay::PrivateDir};
use conclave::{
    config::{Settings, StoppedNode},
    node,
    replay::{AskedAll, Source},
};
use conclave_check::{Action, Step};

/// As many as a file of calls may have.
const CALLS_MAX: usize = 1_000_000;
const BYTES_MAX: usize = 1 << 30;

/// Where the log is, and what opens it.
#[derive(Args, Debug)]
pub(super) struct Recorded {
    /// Take the calls from the log in a stopped node's data directory, or a copy of it that was made while it
    /// was stopped. Nothing in it is changed
    #[arg(long, value_name = "DIR", conflicts_with_all = ["calls", "generate", "seed"])]
    pub(super) data_dir: Option<PathBuf>,

    /// The file with that node's master key; CONCLAVE_MASTER_KEY may hold the key itself
    #[arg(long, env = "CONCLAVE_MASTER_KEY_FILE", value_name = "FILE")]
    master_key_file: Option<PathBuf>,

    /// The settings of that node: its data_dir and master_key_file count here
    #[arg(long, value_name = "FILE", conflicts_with_all = ["calls", "generate", "seed"])]
    config: Option<PathBuf>,

    /// Make the copy that the log is read from in this directory [default: the system's for temporary files]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
}

impl Recorded {
    /// Whether calls are to come from a log.
    pub(super) fn is_wanted(&self) -> bool {
        self.data_dir.is_some() || self.config.is_some()
    }

    /// Reads them, and says which they are.
    pub(super) async fn steps(&self, output: &mut Output) -> Result<Vec<Step>> {
        let stopped = StoppedNode::load(Settings {
            config: self.config.clone(),
            data_dir: self.data_dir.clone(),
            master_key_file: self.master_key_file.clone(),
            ..Settings::default()
        });
        let stopped = stopped.map_err(|error| Failed::Usage(error.to_string()))?;
        // The copy is needed no longer than this.
        let private = PrivateDir::create(&self.work_dir.clone().unwrap_or_else(env::temp_dir))?;
        let stop = private.guard()?;
        let reading = spawn_blocking({
            let copy = private.path().to_owned();
            let failed = |error: &dyn std::fmt::Display| Failed::local(error.to_string());
            move || {
                let ended = || stop.is_asked_for();
                let source =
                    node::open_replay(&stopped, &copy, ended).map_err(|error| failed(&error))?;
                let found = source.asked(CALLS_MAX, BYTES_MAX).map_err(|error| failed(&error))?;
                if ended() {
                    return Err(failed(&"stopped; the data directory is as it was"));
                }
                Ok((said(&source, &found), steps(found)))
            }
        });
        let (said, steps) = reading.await.map_err(|error| Failed::local(error.to_string()))??;
        output.remark(said);
        Ok(steps)
    }
}

fn said(source: &Source, found: &AskedAll) -> String {
    let node = source.identity().node_id;
    let Some((first, last)) = found.span else {
        return format!("the log of node {node} has no entries");
    };
    let ticks = found.asked.iter().filter(|asked| asked.call.is_none()).count();
    let calls = found.asked.len() - ticks;
    let before = match found.from_the_beginning {
        true => "the state is empty at first, as it was then",
        false => {
            "what came before is in a snapshot only, and the state is empty at first, so that answers may be others \
             than they were"
        }
    };
    let more = if found.more { "; it has more, which are left out" } else { "" };
    format!(
        "{calls} calls and {ticks} ticks from entries {first} to {last} of the log of node {node}{more}; {before}. \
         They were encrypted, and what is shown of them may be secret"
    )
}

fn steps(found: AskedAll) -> Vec<Step> {
    let step = |asked: conclave::replay::Asked| Step {
        time_ms: asked.time_ms,
        action: asked.call.map_or(Action::Tick, Action::Apply),
    };
    found.asked.into_iter().map(step).collect()
}
