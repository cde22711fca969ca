//! `conclave dev status` and `conclave dev restart`: verbs for a cluster that another process runs.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::signal::unix::{self, SignalKind};

use super::{
    plan::{LOCK, Node, Plan},
    ready,
};
use crate::{
    Failed, Result,
    output::{Output, table},
};

/// The file with the id of the node to restart.
const REQUEST: &str = "restart";
/// Maximum time of a restart: a node stops within 10 s and may then compile its component.
const RESTART_TIME_MAX: Duration = Duration::from_secs(300);
const ASK_EVERY: Duration = Duration::from_millis(100);

#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    Status(Status),
    Restart(Restart),
}

/// Show the nodes of a development cluster
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave dev status
  conclave dev status --data-dir /tmp/five --json

With --json: {\"cluster\", \"running\", \"nodes\": [{\"id\", \"pid\" (or null), \"client\", \"peer\", \"admin\",
\"serving\", \"leads\", \"why\" (why it does not serve, or null), \"data_dir\", \"log\"}]}")]
pub(super) struct Status {
    /// Directory of the cluster
    #[arg(long, value_name = "DIR", default_value = "conclave-dev")]
    data_dir: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Restart one node of a development cluster, or start it again after it has ended
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave dev restart 2
  conclave dev restart 2 --data-dir /tmp/five")]
pub(super) struct Restart {
    /// Id of the node
    #[arg(value_name = "N")]
    node: u64,

    /// Directory of the cluster
    #[arg(long, value_name = "DIR", default_value = "conclave-dev")]
    data_dir: PathBuf,
}

pub(super) async fn run(verb: Verb, output: &mut Output) -> Result {
    match verb {
        Verb::Status(arguments) => status(arguments, output).await,
        Verb::Restart(arguments) => restart(arguments, output).await,
    }
}

async fn status(arguments: Status, output: &mut Output) -> Result {
    output.set_json(arguments.json);
    let plan = Plan::read(&arguments.data_dir)?;
    let is_running = dev_process(&arguments.data_dir)?.is_some();
    let mut nodes = Vec::new();
    for node in &plan.nodes {
        nodes.push((node, ready::state(&ready::of(node)?).await));
    }
    if arguments.json {
        let nodes: Vec<_> = nodes.iter().map(|(node, state)| as_json(node, state)).collect();
        output.value(&json!({"cluster": plan.cluster_id, "running": is_running, "nodes": nodes}));
        return Ok(());
    }
    let mut rows = vec![["NODE", "PID", "CLIENT", "STATE"].map(str::to_owned).to_vec()];
    for (node, state) in &nodes {
        let pid =
            node.pid.filter(|_| is_running).map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let state = match state {
            Ok(leader) if *leader == node.id => "serves, leads".to_owned(),
            Ok(_) => "serves".to_owned(),
            Err(_) if pid == "-" => "stopped".to_owned(),
            Err(why) => format!("does not serve: {why}"),
        };
        rows.push(vec![node.id.to_string(), pid, node.client.clone(), state]);
    }
    for line in table(&rows) {
        output.line(line);
    }
    if !is_running {
        output.remark("no `conclave dev` is running in this directory");
    }
    Ok(())
}

fn as_json(node: &Node, state: &std::result::Result<u64, String>) -> serde_json::Value {
    json!({
        "id": node.id, "pid": node.pid, "client": node.client, "peer": node.peer, "admin": node.admin,
        "serving": state.is_ok(), "leads": *state == Ok(node.id), "why": state.as_ref().err(),
        "data_dir": node.data_dir, "log": node.log,
    })
}

async fn restart(arguments: Restart, output: &mut Output) -> Result {
    let Restart { node: id, data_dir: dir } = arguments;
    let node = |plan: &Plan| {
        plan.nodes.iter().find(|node| node.id == id).cloned().ok_or_else(|| {
            Failed::Usage(format!(
                "there is no node {id}: the cluster has nodes 1 to {}",
                plan.nodes.len()
            ))
        })
    };
    let before = node(&Plan::read(&dir)?)?;
    let dev = dev_process(&dir)?.ok_or_else(|| {
        Failed::local(format!("no `conclave dev` is running in {}; start it first", dir.display()))
    })?;
    let request = dir.join(REQUEST);
    fs::write(&request, id.to_string()).map_err(Failed::at(&request))?;
    kill_process(dev, Signal::USR1)
        .map_err(|cause| Failed::because("cannot signal `conclave dev`", &cause))?;
    let ends = Instant::now() + RESTART_TIME_MAX;
    let client = ready::of(&before)?;
    let mut has_restarted = false;
    loop {
        tokio::time::sleep(ASK_EVERY).await;
        let now = node(&Plan::read(&dir)?)?;
        let why = match now.pid {
            None if has_restarted => {
                let log = now.log.display();
                return Err(Failed::local(format!("node {id} has ended again; see {log}")));
            }
            Some(pid) if now.pid != before.pid => {
                has_restarted = true;
                match ready::state(&client).await {
                    Ok(_) => {
                        output.line(format!("node {id} serves again, as process {pid}"));
                        return Ok(());
                    }
                    Err(why) => why,
                }
            }
            _ => "it has not been restarted yet".to_owned(),
        };
        if Instant::now() >= ends {
            let log = now.log.display();
            return Err(Failed::local(format!("node {id} does not serve yet: {why}; see {log}")));
        }
    }
}

/// Returns the process that runs the cluster in `dir`, if any.
fn dev_process(dir: &Path) -> Result<Option<Pid>> {
    let path = dir.join(LOCK);
    let failed = Failed::at(&path);
    let file = match File::open(&path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let text = fs::read_to_string(&path).map_err(failed)?;
            Ok(text.trim().parse().ok().and_then(Pid::from_raw))
        }
        Err(TryLockError::Error(cause)) => Err(failed(cause)),
    }
}

/// The requests from `conclave dev restart`.
pub(super) struct Requests {
    path: PathBuf,
    signal: unix::Signal,
}

impl Requests {
    pub(super) fn new(dir: &Path) -> Result<Self> {
        let signal = unix::signal(SignalKind::user_defined1())
            .map_err(|cause| Failed::because("cannot listen to signals", &cause))?;
        Ok(Self { path: dir.join(REQUEST), signal })
    }

    /// Waits for a request and returns the node's id.
    pub(super) async fn next(&mut self) -> u64 {
        loop {
            self.signal.recv().await;
            let request = fs::read_to_string(&self.path);
            // A file that cannot be removed is replaced by the next request.
            let _ = fs::remove_file(&self.path);
            if let Some(id) = request.ok().and_then(|text| text.trim().parse().ok()) {
                return id;
            }
        }
    }
}
