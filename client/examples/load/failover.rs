//! The time without a leader, as a client sees it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::wire::{Call, Connection, Target, Work};

/// An attempt ends soon, so that one that hangs on the dead leader does not hide the new one.
const ATTEMPT_TIME_MAX: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(5);
/// A cluster that takes longer has failed.
const FAILOVER_TIME_MAX: Duration = Duration::from_secs(60);

#[derive(Args)]
pub(crate) struct Options {
    #[arg(long, value_enum)]
    target: Target,
    /// The client addresses of the nodes that stay.
    #[arg(long, value_delimiter = ',', required = true)]
    survivors: Vec<String>,
    /// The process to kill with SIGKILL: the leader.
    #[arg(long)]
    kill: i32,
}

pub(crate) async fn run(options: &Options) -> Result<Value> {
    let value = Bytes::from_static(&[7; 256]);
    let target = options.target;
    let mut connections: Vec<_> = options.survivors.iter().map(|at| Connection::new(at)).collect();
    for connection in &mut connections {
        let call = Call::new(target, Work::Put, 0, &value);
        connection.send(call).await.context("the cluster does not work before the failover")?;
    }

    let victim = Pid::from_raw(options.kill).context("--kill is not a process id")?;
    kill_process(victim, Signal::KILL).context("cannot kill the leader")?;
    let start = Instant::now();

    let mut clients = JoinSet::new();
    for mut connection in connections {
        let value = value.clone();
        clients.spawn(async move {
            loop {
                let call = Call::new(target, Work::Put, 1, &value);
                if connection.send_within(call, ATTEMPT_TIME_MAX).await.is_ok() {
                    return start.elapsed();
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
    }
    match tokio::time::timeout(FAILOVER_TIME_MAX, clients.join_next()).await {
        Ok(Some(time)) => Ok(json!({ "failover_ms": time?.as_millis() })),
        _ => bail!("no write was acknowledged within {FAILOVER_TIME_MAX:?}"),
    }
}
