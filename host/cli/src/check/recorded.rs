//! Calls from the log of a stopped node.

use std::{env, path::PathBuf};

use clap::Args;
use tokio::task::spawn_blocking;

use crate::{Failed, Result, output::Output, replay::PrivateDir};
use conclave::{
    config::{Settings, StoppedNode},
    node,
    replay::{LoggedCall, LoggedCalls, Source},
};
use conclave_check::{Action, Step};

/// Maximum number of calls, the same as for a file of calls.
const CALLS_MAX: usize = 1_000_000;
const BYTES_MAX: usize = 1 << 30;

/// The arguments that locate the log and its key.
#[derive(Args, Debug)]
pub(super) struct Recorded {
    /// Read the calls from the log in a stopped node's data directory, or in a copy of it that was
    /// made while it was stopped. The directory is not changed
    #[arg(long, value_name = "DIR", conflicts_with_all = ["calls", "generate", "seed"])]
    pub(super) data_dir: Option<PathBuf>,

    /// File with that node's master key; CONCLAVE_MASTER_KEY may hold the key itself
    #[arg(long, env = "CONCLAVE_MASTER_KEY_FILE", value_name = "FILE")]
    master_key_file: Option<PathBuf>,

    /// Configuration file of that node, to read its data_dir and master_key_file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["calls", "generate", "seed"])]
    config: Option<PathBuf>,

    /// Directory for a temporary copy of the log [default: the system's directory for
    /// temporary files]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
}

impl Recorded {
    /// Returns whether the calls come from a log.
    pub(super) fn is_wanted(&self) -> bool {
        self.data_dir.is_some() || self.config.is_some()
    }

    /// Reads the calls and describes them to the user.
    pub(super) async fn steps(&self, output: &mut Output) -> Result<Vec<Step>> {
        let stopped = StoppedNode::load(Settings {
            config: self.config.clone(),
            data_dir: self.data_dir.clone(),
            master_key_file: self.master_key_file.clone(),
            ..Settings::default()
        });
        let stopped = stopped.map_err(|error| Failed::usage(&error))?;
        // The copy is removed at the end of this function.
        let private = PrivateDir::create(&self.work_dir.clone().unwrap_or_else(env::temp_dir))?;
        let stop = private.guard()?;
        let reading = spawn_blocking({
            let copy = private.path().to_owned();
            move || {
                let ended = || stop.is_asked_for();
                let source = node::open_replay(&stopped, &copy, ended)
                    .map_err(|error| Failed::of(&error))?;
                let found =
                    source.calls(CALLS_MAX, BYTES_MAX).map_err(|error| Failed::of(&error))?;
                if ended() {
                    return Err(Failed::local("stopped; the data directory is unchanged"));
                }
                Ok((summary(&source, &found), steps(found)))
            }
        });
        let (text, steps) = reading.await.map_err(|error| Failed::of(&error))??;
        output.remark(text);
        Ok(steps)
    }
}

fn summary(source: &Source, found: &LoggedCalls) -> String {
    let node = source.identity().node_id;
    let Some((first, last)) = found.span else {
        return format!("the log of node {node} has no entries");
    };
    let ticks = found.calls.iter().filter(|logged| logged.call.is_none()).count();
    let calls = found.calls.len() - ticks;
    let before = match found.from_the_beginning {
        true => "the state is empty at first, as it was in the cluster",
        false => {
            "earlier calls are in a snapshot only; the state is empty at first, so outcomes may differ from those \
             in the cluster"
        }
    };
    let more = if found.more { "; more calls in it are left out" } else { "" };
    format!(
        "{calls} calls and {ticks} ticks from entries {first} to {last} of the log of node {node}{more}; {before}. \
         They were encrypted and may be secret"
    )
}

fn steps(found: LoggedCalls) -> Vec<Step> {
    let step = |logged: LoggedCall| Step {
        time_ms: logged.time_ms,
        action: logged.call.map_or(Action::Tick, Action::Apply),
    };
    found.calls.into_iter().map(step).collect()
}
