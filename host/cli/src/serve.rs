//! `conclave serve`: runs one node in the foreground.

use std::{future::Future, io, io::Read, thread};

use tokio::sync::oneshot;

use super::{Failed, Result, output::Output, signals};
use crate::{DEFAULT_MACHINE, telemetry};
use bytes::Bytes;
use conclave::{
    config::{ComponentSource, Config, LogFormat, Settings},
    node,
};

/// Run one node of a cluster
///
/// Every setting can be given as a flag, as an environment variable or in the TOML file named by
/// --config. A flag takes precedence over the environment, which takes precedence over the file.
/// Start every initial node with the same member list.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "\
Examples:
  A cluster of one:
    conclave key generate master.key
    conclave serve --node-id 1 --cluster-id trial --data-dir data --master-key-file master.key \\
        --member 1=127.0.0.1:7201,127.0.0.1:7101

  The first node of three:
    conclave serve --node-id 1 --cluster-id prod --data-dir /var/lib/conclave \\
        --listen-client 0.0.0.0:7101 --listen-peer 0.0.0.0:7201 \\
        --master-key-file /etc/conclave/master.key \\
        --member 1=10.0.0.1:7201,10.0.0.1:7101 \\
        --member 2=10.0.0.2:7201,10.0.0.2:7101 \\
        --member 3=10.0.0.3:7201,10.0.0.3:7101

  The same from a file:
    conclave serve --config /etc/conclave/node1.toml")]
pub struct Arguments {
    #[command(flatten)]
    settings: Settings,
}

/// Runs the node until a signal or, if requested, until standard input closes.
pub async fn run(arguments: Arguments, output: &mut Output) -> Result {
    let mut config = Config::load(arguments.settings).map_err(|error| Failed::usage(&error))?;
    config.component.get_or_insert(ComponentSource::Default(Bytes::from_static(DEFAULT_MACHINE)));
    // The reason for the end is written in the format of the log.
    output.set_json(config.log_format == LogFormat::Json);
    let _log = telemetry::start(config.log_format).map_err(Failed::Usage)?;
    node::raise_file_limit();
    let stop = stop_requested(config.exit_on_stdin_close);
    let stop = stop.map_err(|error| Failed::because("cannot wait for signals", &error))?;
    node::run(config, stop).await.map_err(|error| Failed::of(&error))
}

/// Completes at SIGTERM, at Ctrl-C and, if requested, when standard input closes.
fn stop_requested(exit_on_stdin_close: bool) -> io::Result<impl Future<Output = ()>> {
    let signalled = signals::requested()?;
    let (closed, stdin_closed) = oneshot::channel::<()>();
    if exit_on_stdin_close {
        // A thread of its own, because a read of standard input cannot be cancelled.
        thread::Builder::new().name("stdin".to_owned()).spawn(move || {
            let mut ignored = [0; 64];
            while io::stdin().read(&mut ignored).is_ok_and(|bytes| bytes > 0) {}
            drop(closed);
        })?;
    } else {
        std::mem::forget(closed);
    }
    Ok(async move {
        tokio::select! {
            () = signalled => {}
            _ = stdin_closed => {}
        }
    })
}
