//! Measures the time without service after a fault of the leader, as observed by clients of
//! the other nodes.

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout_at};

use crate::wire::{Call, Connection, Target, Work};

/// Maximum time of an attempt. It is short, so that an attempt that hangs on the failed leader does
/// not hide the new one.
const ATTEMPT_TIME_MAX: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(5);
/// Time of observation. A fault has an effect immediately, or after the leader's timeouts.
const WATCHED: Duration = Duration::from_secs(4);
/// A cluster that takes longer has failed.
const FAILOVER_TIME_MAX: Duration = Duration::from_secs(60);

#[derive(Args)]
pub(crate) struct Options {
    #[arg(long, value_enum)]
    target: Target,
    /// Client addresses of the other nodes
    #[arg(long, value_delimiter = ',', required = true)]
    survivors: Vec<String>,
    /// Fault of the leader
    #[arg(long, value_enum, default_value = "kill")]
    fault: Fault,
    /// Process id of the leader
    #[arg(long)]
    process: i32,
    /// Mount point of the leader's disk, for the fault `freeze`
    #[arg(long, required_if_eq("fault", "freeze"))]
    disk: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Fault {
    /// Send SIGKILL
    Kill,
    /// Send SIGSTOP, and SIGCONT at the end
    Pause,
    /// Send SIGTERM: a planned stop
    Stop,
    /// Suspend writes to the disk (fsfreeze) until the end
    Freeze,
}

/// Reverts a fault that would outlive this program.
struct Undo<'a>(&'a Options);

impl Options {
    fn inject(&self) -> Result<Undo<'_>> {
        match self.fault {
            Fault::Kill => self.signal(Signal::KILL)?,
            Fault::Pause => self.signal(Signal::STOP)?,
            Fault::Stop => self.signal(Signal::TERM)?,
            Fault::Freeze => {
                let status = self.fsfreeze("-f").status().context("cannot run fsfreeze")?;
                anyhow::ensure!(status.success(), "cannot freeze the leader's disk");
            }
        }
        Ok(Undo(self))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let process = Pid::from_raw(self.process).context("--process is not a process id")?;
        kill_process(process, signal).context("cannot signal the leader")
    }

    fn fsfreeze(&self, flag: &str) -> Command {
        let mut command = Command::new("fsfreeze");
        command.arg(flag).args(&self.disk);
        command
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        match self.0.fault {
            Fault::Kill | Fault::Stop => {}
            Fault::Pause => drop(self.0.signal(Signal::CONT)),
            Fault::Freeze => drop(self.0.fsfreeze("-u").status()),
        }
    }
}

/// Writes through all other nodes and measures the longest time in which none of them acknowledges a write.
pub(crate) async fn run(options: &Options) -> Result<Value> {
    let value = Bytes::from_static(&[7; 256]);
    let target = options.target;
    let mut connections: Vec<_> = options.survivors.iter().map(|at| Connection::new(at)).collect();
    for connection in &mut connections {
        let call = Call::new(target, Work::Put, 0, &value);
        connection.send(call).await.context("the cluster does not work before the failover")?;
    }
    let (acknowledge, mut acknowledged) = mpsc::unbounded_channel();
    for mut connection in connections {
        let (value, acknowledge) = (value.clone(), acknowledge.clone());
        tokio::spawn(async move {
            while !acknowledge.is_closed() {
                let call = Call::new(target, Work::Put, 1, &value);
                if connection.send_within(call, ATTEMPT_TIME_MAX).await.is_ok() {
                    let _ = acknowledge.send(Instant::now());
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
    }

    let undo = options.inject()?;
    let began = Instant::now();
    let (mut last, mut gap) = (began, Duration::ZERO);
    // Runs until the time has passed and a later write has been acknowledged.
    while last < began + WATCHED {
        match timeout_at((began + FAILOVER_TIME_MAX).into(), acknowledged.recv()).await {
            Ok(Some(at)) => {
                gap = gap.max(at.saturating_duration_since(last));
                last = last.max(at);
            }
            _ => bail!("no write was acknowledged within {FAILOVER_TIME_MAX:?}"),
        }
    }
    drop(undo);
    Ok(json!({ "gap_ms": gap.as_millis() }))
}
